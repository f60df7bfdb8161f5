//! From a source to the bus: reading, shaping, publishing, confirming, and trying again.

mod backoff;
mod board;
mod publisher;
mod reader;
mod supervise;

pub use backoff::Backoff;
pub use board::{Board, Rate};
pub use publisher::{Counted, Release, count};
pub use supervise::SourceTask;
