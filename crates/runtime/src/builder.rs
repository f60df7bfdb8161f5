//! Putting a runtime together.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use headwater_core::ports::{Bus, Connector, OutboxStore, ParkedStore, Shelf};
use headwater_core::{Error, Kind, Origin, Result, StreamSpec, Table, check_stream_name};
use tokio::sync::mpsc;

use crate::asked::Asked;
use crate::clock::now;
use crate::config::{Columns, OutboxRoute, Settings, StreamConfig};
use crate::consume::Watch;
use crate::names;
use crate::pipeline::{Board, SourceTask};
use crate::relay::{RelaySettings, RelayTask};
use crate::runtime::{Aside, PushHandle, RelayHandle, Runtime, SourceHandle};
use crate::shape::{OutboxTable, Routes, Seen, StreamRoute};

struct SourceSetup {
    name: String,
    connector: Arc<dyn Connector>,
    outbox: Vec<OutboxRoute>,
    tables: Option<Vec<String>>,
}

struct RelaySetup {
    name: String,
    store: Arc<dyn OutboxStore>,
    shelf: Arc<dyn Shelf>,
    outbox: OutboxRoute,
    origin: Origin,
}

struct PushSetup {
    name: String,
    watch: Arc<Watch>,
    shelf: Arc<dyn Shelf>,
}

/// Collects what a [`Runtime`] needs.
#[derive(Default)]
pub struct Builder {
    only_reads: bool,
    sources: Vec<SourceSetup>,
    relays: Vec<RelaySetup>,
    pushes: Vec<PushSetup>,
    streams: Vec<(String, StreamConfig)>,
    bus: Option<Arc<dyn Bus>>,
    parked: Option<Arc<dyn ParkedStore>>,
    settings: Settings,
    relay: RelaySettings,
    outbox_streams: StreamConfig,
}

impl Builder {
    /// Adds a source, and its outbox where it has one (or several).
    #[must_use]
    pub fn source(
        mut self,
        name: &str,
        connector: Arc<dyn Connector>,
        outbox: impl IntoIterator<Item = OutboxRoute>,
    ) -> Self {
        let outbox = outbox.into_iter().collect();
        self.sources.push(SourceSetup { name: name.to_owned(), connector, outbox, tables: None });
        self
    }

    /// Adds the outbox of a source that is emptied by query, not read from a log, and what is set aside in it.
    /// `origin` says where its rows come from.
    #[must_use]
    pub fn relay(
        mut self,
        name: &str,
        store: Arc<dyn OutboxStore>,
        shelf: Arc<dyn Shelf>,
        outbox: OutboxRoute,
        origin: Origin,
    ) -> Self {
        self.relays.push(RelaySetup { name: name.to_owned(), store, shelf, outbox, origin });
        self
    }

    /// Sets how outboxes are emptied by query.
    #[must_use]
    pub fn relay_settings(mut self, relay: RelaySettings) -> Self {
        self.relay = relay;
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

    /// There may be no source: others publish what this process reads.
    #[must_use]
    pub fn only_reads(mut self, only_reads: bool) -> Self {
        self.only_reads = only_reads;
        self
    }

    /// Adds a push that somebody else runs, to be reported: how it is doing, and what it has set aside.
    #[must_use]
    pub fn push(mut self, name: &str, watch: Arc<Watch>, shelf: Arc<dyn Shelf>) -> Self {
        self.pushes.push(PushSetup { name: name.to_owned(), watch, shelf });
        self
    }

    /// Checks everything against each other, without a bus: unknown sources and tables, conditions that
    /// do not compile, names a stream cannot have. Errors are of kind `Config`.
    pub fn verify(&self) -> Result<()> {
        self.check()?;
        self.sources.iter().try_for_each(|setup| self.routes(&setup.name, &setup.outbox).map(drop))?;
        self.relays.iter().try_for_each(|setup| self.relay_routes(setup).map(drop))
    }

    /// Checks the streams that a source feeds against its tables as they are now: each stream that cannot
    /// be fed by a table it names, and why. Errors are of kind `Contract`.
    pub fn verify_tables(&self, source: &str, tables: &[Arc<Table>]) -> Result<Vec<Error>> {
        let Some(setup) = self.sources.iter().find(|setup| setup.name == source) else {
            return Ok(Vec::new());
        };
        self.routes(&setup.name, &setup.outbox).map(|(routes, _)| routes.misfits(source, tables))
    }

    /// Checks as [`Builder::verify`] does, and puts the runtime together.
    pub fn build(self) -> Result<Runtime> {
        self.check()?;
        let missing = |what: &str| Error::new(Kind::Internal, format!("the runtime was given no {what}"));
        let bus = self.bus.clone().ok_or_else(|| missing("bus"))?;
        let parked = self.parked.clone().ok_or_else(|| missing("parked store"))?;
        let (mut sources, mut tasks) = (Vec::new(), Vec::new());
        for setup in &self.sources {
            let (releases, todo) = mpsc::unbounded_channel();
            let (name, board) = (Arc::<str>::from(setup.name.as_str()), Arc::new(Board::default()));
            let (routes, specs) = self.routes(&setup.name, &setup.outbox)?;
            sources.push(SourceHandle {
                name: Arc::clone(&name),
                connector: Arc::clone(&setup.connector),
                board: Arc::clone(&board),
                releases,
            });
            tasks.push(SourceTask {
                name,
                connector: Arc::clone(&setup.connector),
                routes: Arc::new(routes),
                specs,
                bus: Arc::clone(&bus),
                parked: Arc::clone(&parked),
                settings: self.settings.clone(),
                board,
                releases: todo,
            });
        }
        let (relays, relay_tasks) = self.build_relays(&bus)?;
        let push = |setup: &PushSetup| PushHandle {
            name: setup.name.clone(),
            watch: Arc::clone(&setup.watch),
            aside: Aside::new(Arc::clone(&setup.shelf)),
        };
        let streams = self.streams.iter().map(|(name, config)| (name.clone(), config.partitions));
        Ok(Runtime {
            relays,
            pushes: self.pushes.iter().map(push).collect(),
            relay_tasks: Mutex::new(relay_tasks),
            bus,
            parked,
            bus_asked: Asked::default(),
            parked_asked: Asked::default(),
            sources,
            streams: streams.collect(),
            outbox_partitions: self.outbox_streams.partitions,
            tasks: Mutex::new(tasks),
            started_at: now(),
        })
    }

    fn build_relays(&self, bus: &Arc<dyn Bus>) -> Result<(Vec<RelayHandle>, Vec<RelayTask>)> {
        let (mut relays, mut tasks) = (Vec::new(), Vec::new());
        for setup in &self.relays {
            let (name, board) = (Arc::<str>::from(setup.name.as_str()), Arc::new(Board::default()));
            let (routes, specs) = self.relay_routes(setup)?;
            let aside = Aside::new(Arc::clone(&setup.shelf));
            relays.push(RelayHandle { name: Arc::clone(&name), board: Arc::clone(&board), aside });
            tasks.push(RelayTask {
                name,
                store: Arc::clone(&setup.store),
                bus: Arc::clone(bus),
                routes: Arc::new(routes),
                specs,
                origin: Arc::new(setup.origin.clone()),
                relay: self.relay.clone(),
                settings: self.settings.clone(),
                board,
            });
        }
        Ok((relays, tasks))
    }

    fn relay_routes(&self, setup: &RelaySetup) -> Result<(Routes, Vec<StreamSpec>)> {
        self.routes(&setup.name, std::slice::from_ref(&setup.outbox))
    }

    /// The streams that a source feeds, or may feed through its outbox.
    fn routes(&self, source: &str, outbox: &[OutboxRoute]) -> Result<(Routes, Vec<StreamSpec>)> {
        let (mut streams, mut specs) = (Vec::new(), Vec::new());
        for (name, config) in &self.streams {
            let fed = config.from.iter().any(|table| table.source == source);
            if fed || !outbox.is_empty() {
                streams.push(Arc::new(StreamRoute::new(name, config, source)?));
                specs.push(config.spec(name));
            }
        }
        let table = |route: &OutboxRoute| OutboxTable {
            table: route.table.clone(),
            columns: route.columns.clone(),
            stream: route.stream.clone(),
        };
        let outboxes = outbox.iter().map(table).collect();
        let undeclared = Arc::new(self.outbox_streams.clone());
        Ok((Routes { streams, outboxes, undeclared, seen: Seen::default() }, specs))
    }

    fn check(&self) -> Result<()> {
        if self.sources.is_empty() && self.relays.is_empty() && !self.only_reads {
            return Err(wrong("no source is configured").hint("add a [source.NAME]"));
        }
        let mut seen = HashSet::new();
        for (name, config) in &self.streams {
            check_stream_name(name)?;
            if !seen.insert(name) {
                return Err(wrong(format!("stream {name} is declared twice")));
            }
            self.check_stream(name, config)?;
        }
        Ok(())
    }

    fn check_stream(&self, name: &str, config: &StreamConfig) -> Result<()> {
        let says = |what: String| wrong(format!("stream {name} {what}"));
        for table in &config.from {
            let known = self.sources.iter().map(|source| source.name.as_str());
            let Some(source) = self.sources.iter().find(|source| source.name == table.source) else {
                let error = says(format!("is fed by {table}, but no source is called {}", table.source));
                return Err(error.hint(names::hint(&table.source, known)));
            };
            let Some(tables) = &source.tables else { continue };
            if !tables.iter().any(|known| table.matches_name(known)) {
                let meant = table.to_string();
                // Guessed in the form that was written: with the schema, or without it.
                let form = |known: &String| match known.split_once('.').filter(|_| table.schema.is_none()) {
                    Some((_, name)) => format!("{}.{name}", source.name),
                    None => format!("{}.{known}", source.name),
                };
                let known: Vec<String> = tables.iter().map(form).collect();
                return Err(says(format!(
                    "is fed by {table}, which source {} does not capture",
                    source.name
                ))
                .hint(names::hint(&meant, known.iter().map(String::as_str))));
            }
        }
        if config.from.is_empty()
            && self.sources.iter().all(|source| source.outbox.is_empty())
            && self.relays.is_empty()
        {
            return Err(says("is fed by nothing".into())
                .hint("name its tables in `from`, or give a source an `outbox`"));
        }
        if !config.from.is_empty() && config.columns.is_none() {
            return Err(says("does not say which columns it exposes".into())
                .hint("set `columns = { exposed = \"column\" }`, or `columns = \"*\"` to expose them all"));
        }
        let exposed = match &config.columns {
            Some(Columns::Named(named)) => named.iter().map(|(exposed, _)| exposed).collect(),
            _ => Vec::new(),
        };
        let mut seen = HashSet::new();
        if let Some(twice) = exposed.into_iter().find(|exposed| !seen.insert(*exposed)) {
            return Err(says(format!("exposes two columns as {twice}")));
        }
        if config.partitions == 0 || config.version == 0 {
            return Err(says("has 0 partitions, or version 0".into()).hint("both begin at 1"));
        }
        if config.key.as_ref().is_some_and(Vec::is_empty)
            || config.order_key.as_ref().is_some_and(Vec::is_empty)
        {
            return Err(says("has an empty key".into()).hint("leave it out to use the table's key"));
        }
        Ok(())
    }
}

fn wrong(what: impl Into<String>) -> Error {
    Error::new(Kind::Config, what)
}
