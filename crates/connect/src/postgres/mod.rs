//! PostgreSQL 14 to 18: capture by logical replication.

pub mod catalog;
mod check;
pub mod client;
mod config;
mod connector;
mod decode;
mod feedback;
mod follow;
pub mod inbox;
mod indexes;
mod lane;
pub mod lsn;
mod messages;
mod monitor;
mod opening;
pub mod outbox;
mod pulse;
pub mod setup;
mod snapshot;
mod source;
mod spill;
mod state;
mod types;
pub mod url;

pub use config::{Names, PostgresConfig, TablePattern};
pub use connector::PostgresConnector;
pub use indexes::to_mend;
pub use messages::TABLE as MESSAGES;
pub use state::State;
