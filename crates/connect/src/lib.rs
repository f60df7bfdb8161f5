//! Adapters: one folder for each outside system, each implementing ports of `headwater_core`.

pub mod embedded;
pub mod kafka;
pub mod outbox;
pub mod parked;
pub mod postgres;
pub mod requests;
pub mod settings;
pub mod sqlite;
mod store;
