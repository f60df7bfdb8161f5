//! Empties an outbox onto the bus, together with other relays.
//!
//! A relay holds some of the outbox's lanes under leases. One [`driver`] claims their rows, hands each
//! lane's to a [`lane`] of its own, which publishes them in order through a writer that fences whoever
//! wrote for that lane before, and writes down what became of them. Rows are marked, never walked: a claim
//! begins above what the store knows to be decided, so that a transaction that commits late is neither
//! missed nor overtaken by a later row of its key.

mod driver;
mod held;
mod lane;
mod pace;
mod rows;

use std::sync::Arc;
use std::time::Duration;

use headwater_core::ports::{Bus, OutboxStore};
use headwater_core::{Origin, Result, StreamSpec};
use serde::{Deserialize, Deserializer};
use tokio_util::sync::CancellationToken;

use crate::config::{Settings, required_duration};
use crate::pipeline::Board;
use crate::shape::Routes;
use driver::Driver;

/// `[relay]`: how outboxes are emptied by query.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RelaySettings {
    /// The name of this process among those that share an outbox; made up unless given.
    pub name: Option<String>,
    /// How long lanes stay with a relay that is not heard of.
    #[serde(deserialize_with = "required_duration")]
    pub lease: Duration,
    /// The longest pause between two looks for new rows.
    #[serde(deserialize_with = "required_duration")]
    pub poll: Duration,
    /// How often a row is tried before it is parked.
    pub attempts: u32,
    /// How many rows of a lane are read at once.
    #[serde(deserialize_with = "rows_at_once")]
    pub batch: usize,
    /// How long published rows stay.
    #[serde(deserialize_with = "required_duration")]
    pub retention: Duration,
}

/// None would be no relay; and the ids of all that a lane may have on its way, six times as many, go into each of its
/// checkpoints, which a broker takes up to a megabyte.
fn rows_at_once<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<usize, D::Error> {
    let rows = usize::deserialize(deserializer)?;
    if (1..=5_000).contains(&rows) {
        return Ok(rows);
    }
    Err(serde::de::Error::custom("expected a whole number from 1 to 5000"))
}

impl Default for RelaySettings {
    fn default() -> Self {
        Self {
            name: None,
            lease: Duration::from_secs(10),
            poll: Duration::from_millis(50),
            attempts: 10,
            batch: 1_000,
            retention: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// One outbox with all that its relay needs.
pub struct RelayTask {
    /// The source's name in the config.
    pub name: Arc<str>,
    /// The outbox.
    pub store: Arc<dyn OutboxStore>,
    /// Where events go.
    pub bus: Arc<dyn Bus>,
    /// Which streams rows go to.
    pub routes: Arc<Routes>,
    /// The streams to make sure of.
    pub specs: Vec<StreamSpec>,
    /// Where rows come from, as events say it.
    pub origin: Arc<Origin>,
    /// How it works.
    pub relay: RelaySettings,
    /// Budgets and waits.
    pub settings: Settings,
    /// Where it says how it is doing.
    pub board: Arc<Board>,
}

impl RelayTask {
    /// Relays until `stop`, then lets what is on its way arrive and gives its lanes back. `Ok` when every
    /// row that was published is settled; an error when no retry can help.
    pub async fn run(self, stop: CancellationToken) -> Result<()> {
        crate::metrics::begin(&self.name, self.specs.iter().map(|spec| &*spec.name));
        let board = Arc::clone(&self.board);
        let outcome = Driver::new(self).run(stop).await;
        board.ended(outcome.as_ref().err());
        outcome
    }
}
