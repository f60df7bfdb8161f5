//! Real servers, started on free ports of 127.0.0.1 in directories of their own, and ways to break them.
//!
//! Whatever is started here ends with the process that started it, however that process ends: each
//! server has a watchdog that waits for the end of a pipe only this process holds.

mod acls;
mod kafka;
mod mysql;
mod pgbouncer;
mod postgres;
mod process;
mod proxy;

pub use acls::Right;
pub use kafka::{Kafka, KafkaSettings};
pub use mysql::{MySql, MySqlDatabase, MySqlSettings};
pub use pgbouncer::PgBouncer;
pub use postgres::{Database, Postgres, PostgresSettings};
pub use process::free_port;
pub use proxy::Proxy;
