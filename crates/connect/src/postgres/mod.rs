//! PostgreSQL 14 to 18: capture by logical replication.

pub mod client;
mod config;
pub mod url;

pub use config::{Names, PostgresConfig, TablePattern};
