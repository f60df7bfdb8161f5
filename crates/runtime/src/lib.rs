//! The pipeline from a source to the bus: shaping, batching, acknowledgement, retry, parking, status.
//!
//! It knows the core's ports and the wire's formats, and nothing of any one database or broker.

mod asked;
mod builder;
pub mod clock;
pub mod config;
pub mod consume;
pub mod metrics;
mod names;
mod park;
mod pipeline;
mod relay;
mod runtime;
mod shape;
mod status;

pub use builder::Builder;
pub use config::{OutboxRoute, Settings, StreamConfig, TableRef};
pub use park::describe as describe_parked;
pub use pipeline::Backoff;
pub use relay::RelaySettings;
pub use runtime::Runtime;
pub use shape::Shaping;
pub use status::{Phase, PushReport, RelayReport, RuntimeStatus, SourceReport, StreamReport};
