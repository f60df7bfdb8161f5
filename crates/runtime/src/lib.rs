//! The pipeline from a source to the bus: shaping, batching, acknowledgement, retry, parking, status.
//!
//! It knows the core's ports and the wire's formats, and nothing of any one database or broker.

mod builder;
pub mod config;
mod names;
mod park;
mod shape;
mod status;

pub use builder::{Builder, Runtime};
pub use config::{OutboxRoute, Settings, StreamConfig, TableRef};
pub use status::{Phase, RuntimeStatus, SourceReport, StreamReport};
