//! PostgreSQL 14 to 18: capture by logical replication.

pub mod client;
pub mod url;
