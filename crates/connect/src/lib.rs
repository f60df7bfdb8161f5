//! Adapters: one folder for each outside system, each implementing ports of `headwater_core`.

pub mod embedded;
mod inbox;
pub mod kafka;
mod lent;
pub mod mysql;
mod outbox;
pub mod parked;
pub mod postgres;
pub mod requests;
pub mod settings;
pub mod sqlite;
mod sqlx_errors;
mod store;
