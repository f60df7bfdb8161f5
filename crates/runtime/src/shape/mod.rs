//! From changes to events.

pub mod condition;
mod outbox;
mod output;
mod plan;
mod routes;
mod rows;
mod shaped;
mod shaper;

pub use routes::{OutboxTable, Routes, StreamRoute};
pub use shaped::{EventOrigin, Shaped, Trouble};
pub use shaper::Shaper;
