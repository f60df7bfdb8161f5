//! PostgreSQL 14 to 18: capture by logical replication.

pub mod catalog;
pub mod client;
mod config;
pub mod lsn;
mod state;
mod types;
pub mod url;

pub use config::{Names, PostgresConfig, TablePattern};
pub use state::State;
