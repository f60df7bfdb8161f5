//! From changes to events.

pub mod condition;
mod outbox;
mod output;
mod plan;
mod routes;
mod rows;
mod seen;
mod shaped;
mod shaper;

pub use routes::{OutboxTable, Routes, StreamRoute};
pub use seen::Seen;
pub use shaped::{EventOrigin, Shaped, Trouble};
pub use shaper::Shaper;

use headwater_core::{Batch, Event, Result};

use crate::config::StreamConfig;

/// Shaping by itself, for measurements and for tools that show what a change becomes.
pub struct Shaping(Shaper);

impl Shaping {
    /// Shapes changes of `source` for one stream. Errors are of kind `Config`.
    pub fn of(stream: &str, config: &StreamConfig, source: &str) -> Result<Self> {
        let route = StreamRoute::new(stream, config, source)?;
        let streams = vec![std::sync::Arc::new(route)];
        Ok(Self(Shaper::new(std::sync::Arc::new(Routes { streams, ..Routes::default() }))))
    }

    /// The events that a batch becomes; what cannot become one is left out.
    pub fn events(&mut self, batch: Batch) -> Vec<Event> {
        self.0.shape(batch).events
    }
}
