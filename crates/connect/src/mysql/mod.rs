//! MySQL 8 and MariaDB 10.6 or newer.

mod config;
mod errors;
pub mod inbox;
pub mod outbox;
mod sql;
pub mod url;

pub use config::MySqlConfig;
