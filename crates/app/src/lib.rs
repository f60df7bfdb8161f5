//! Reliable messaging for services: publish in the transaction of your own change, consume with effect
//! exactly once.
//!
//! A service publishes an event by writing it to an outbox table in the transaction that makes the change
//! ([`Outbox`]); `headwater run` brings it to the bus. A service that consumes hands each event to a handler
//! together with an open transaction of its own database ([`Consumer`]): what the handler writes, that the
//! event was handled, and how far the consumer has come are committed together.
//!
//! The tables are made by `headwater init URL`. Adapters are behind features: `postgres`, `mysql` and `sqlite`
//! for the service's database, `kafka` and `embedded` for the bus; they are found in the module `connect`.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use headwater::connect::embedded::{EmbeddedBus, EmbeddedConfig};
//! use headwater::connect::postgres::inbox::PostgresInbox;
//! use headwater::{Consumer, Handled, Received, StopToken};
//! use sqlx::{PgPool, Postgres, Transaction};
//!
//! #[derive(serde::Deserialize)]
//! struct Placed {
//!     id: i64,
//!     total: f64,
//! }
//!
//! async fn remember(tx: &mut Transaction<'static, Postgres>, event: &Received) -> Handled {
//!     let order: Placed = event.body()?;
//!     sqlx::query("INSERT INTO order_total VALUES ($1, $2)")
//!         .bind(order.id)
//!         .bind(order.total)
//!         .execute(&mut **tx)
//!         .await?;
//!     Ok(())
//! }
//!
//! # async fn example(data_dir: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
//! let bus = EmbeddedBus::open_reader(data_dir, EmbeddedConfig::default()).await?;
//! let pool = PgPool::connect("postgres://localhost/features").await?;
//! let consumer = Consumer::builder("features")
//!     .bus(Arc::new(bus))
//!     .streams(["orders"])
//!     .inbox(PostgresInbox::new(pool))
//!     .build()?;
//! consumer.run(remember, StopToken::new()).await?;
//! # Ok(())
//! # }
//! ```

mod consumer;
mod handler;
mod outbox;
mod state_change;
mod trace;

pub use consumer::{Builder, Consumer};
pub use handler::{Handled, Handler};
#[cfg(any(
    feature = "postgres",
    feature = "mysql",
    feature = "sqlite",
    feature = "kafka",
    feature = "embedded"
))]
pub use headwater_connect as connect;
pub use headwater_core as core;
pub use headwater_core::{Error, Kind, Result};
pub use headwater_runtime::consume::{Failure, Received};
pub use outbox::{Event, Outbox};
pub use state_change::{ChangeSource, StateChange};
/// Asks a consumer to stop: what is begun is finished, and its group is left.
pub use tokio_util::sync::CancellationToken as StopToken;
