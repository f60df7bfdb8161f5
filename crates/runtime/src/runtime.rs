//! A whole runtime: every source's task, and what it says of itself.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::join_all;
use headwater_core::ports::{
    Bus, BusStatus, Connector, HoldsBack, ParkedCount, ParkedStore, Shelf, ShelfCount, SourceState,
};
use headwater_core::{Error, Kind, Micros, Result};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::asked::Asked;
use crate::builder::Builder;
use crate::consume::Watch;
use crate::pipeline::{Board, Release, SourceTask};
use crate::relay::RelayTask;
use crate::status::{Phase, PushReport, RelayReport, RuntimeStatus, SourceReport, StreamReport, memory};

/// Everything that one process runs: sources, streams, and the bus between them.
pub struct Runtime {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) parked: Arc<dyn ParkedStore>,
    pub(crate) bus_asked: Asked<BusStatus>,
    pub(crate) parked_asked: Asked<Vec<ParkedCount>>,
    pub(crate) sources: Vec<SourceHandle>,
    pub(crate) relays: Vec<RelayHandle>,
    pub(crate) pushes: Vec<PushHandle>,
    /// Every declared stream, with its partitions.
    pub(crate) streams: BTreeMap<String, u32>,
    /// The partitions of streams that outbox rows make.
    pub(crate) outbox_partitions: u32,
    pub(crate) tasks: Mutex<Vec<SourceTask>>,
    pub(crate) relay_tasks: Mutex<Vec<RelayTask>>,
    pub(crate) started_at: Micros,
}

/// What the runtime keeps of a source while its task runs.
pub(crate) struct SourceHandle {
    pub(crate) name: Arc<str>,
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) board: Arc<Board>,
    pub(crate) releases: mpsc::UnboundedSender<Release>,
}

/// What the runtime keeps of a relay while its task runs.
pub(crate) struct RelayHandle {
    pub(crate) name: Arc<str>,
    pub(crate) board: Arc<Board>,
    pub(crate) aside: Aside,
}

/// What the runtime says of a push, which others run.
pub(crate) struct PushHandle {
    pub(crate) name: String,
    pub(crate) watch: Arc<Watch>,
    pub(crate) aside: Aside,
}

/// Where events are set aside, asked at most once a second.
pub(crate) struct Aside {
    pub(crate) shelf: Arc<dyn Shelf>,
    pub(crate) asked: Asked<ShelfCount>,
}

impl Aside {
    pub(crate) fn new(shelf: Arc<dyn Shelf>) -> Self {
        Self { shelf, asked: Asked::default() }
    }

    async fn count(&self, owner: &str) -> Option<ShelfCount> {
        let (shelf, owner) = (Arc::clone(&self.shelf), owner.to_owned());
        self.asked.ask(async move { shelf.count(&owner).await }).await.ok()
    }
}

impl Runtime {
    /// Begins to put one together.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Runs every source and relay until `stop` is cancelled (then: drains and confirms) or every one has
    /// failed. `Ok` when everything that was read is confirmed and none failed; otherwise the first one's
    /// error. Runs once.
    pub async fn run(&self, stop: CancellationToken) -> Result<()> {
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let (mut running, mut boards) = (JoinSet::new(), HashMap::new());
        for task in tasks {
            let board = Arc::clone(&task.board);
            boards.insert(running.spawn(task.run(stop.clone())).id(), board);
        }
        let relays = std::mem::take(&mut *self.relay_tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in relays {
            let board = Arc::clone(&task.board);
            boards.insert(running.spawn(task.run(stop.clone())).id(), board);
        }
        let mut first = None;
        while let Some(ended) = running.join_next().await {
            // It panicked: what it would have written down is written down for it.
            let lost = |error: JoinError| {
                let board = boards.get(&error.id());
                let lost = Error::new(Kind::Internal, "a source's task ended").because(error);
                tracing::error!(error = %lost, "source failed");
                board.into_iter().for_each(|board| board.ended(Some(&lost)));
                lost
            };
            if let Err(error) = ended.map_err(lost).flatten() {
                first.get_or_insert(error);
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Tries again what is parked of a stream and holds back the same, in order. Returns how many went on;
    /// an error of kind `Contract` says why the first that is left cannot.
    pub async fn release(&self, stream: &str, holds: &HoldsBack) -> Result<u64> {
        let mut released = 0;
        let usage = self.parked.usage().await?;
        let ours = usage.iter().filter(|usage| *usage.stream == *stream && usage.holds == *holds);
        for usage in ours {
            let source = self.sources.iter().find(|source| source.name == usage.source);
            let (answer, outcome) = oneshot::channel();
            let release = Release { stream: stream.into(), holds: holds.clone(), answer };
            let away = || {
                Error::new(Kind::Unavailable, format!("source {} is not running", usage.source))
                    .hint("what is parked is released through its source's own pipeline")
            };
            source.ok_or_else(away)?.releases.send(release).map_err(|_| away())?;
            released += outcome.await.map_err(|_| away())??;
        }
        Ok(released)
    }

    /// Why it is not ready, a sentence for each source; empty when every source is reading. Asks nobody.
    pub fn not_ready(&self) -> Vec<String> {
        let sources = self.sources.iter().filter_map(|source| source.report(None).not_ready());
        sources.chain(self.relays.iter().filter_map(|relay| relay.report().not_ready())).collect()
    }

    /// What it is doing now. Asks the bus and the parked store too, each at most once a second, and waits
    /// for neither longer than two.
    pub async fn status(&self) -> RuntimeStatus {
        let bus = Arc::clone(&self.bus);
        let question = async move { bus.status().await };
        let (status, bus) = tokio::join!(self.own_status(), self.bus_asked.ask(question));
        let (bus, bus_error) = match bus {
            Ok(bus) => (Some(bus), None),
            Err(error) => (None, Some(error)),
        };
        RuntimeStatus { bus, bus_error, ..status }
    }

    /// What it is doing now, without what the bus holds: cheap enough for whoever asks often.
    pub async fn own_status(&self) -> RuntimeStatus {
        let parked = Arc::clone(&self.parked);
        let parked = self.parked_asked.ask(async move { parked.counts().await });
        let parked = parked.await.ok();
        let count = |of: &dyn Fn(&ParkedCount) -> bool| -> Option<u64> {
            Some(parked.as_ref()?.iter().filter(|parked| of(parked)).map(|parked| parked.count).sum())
        };
        let mut streams: BTreeMap<String, StreamReport> = BTreeMap::new();
        for (name, partitions) in &self.streams {
            streams.insert(name.clone(), StreamReport { partitions: *partitions, ..named(name) });
        }
        let boards = self.sources.iter().map(|source| &source.board);
        for board in boards.chain(self.relays.iter().map(|relay| &relay.board)) {
            let board = board.lock();
            for (name, events) in &board.streams {
                let made = || StreamReport { partitions: self.outbox_partitions, ..named(name) };
                streams.entry(name.to_string()).or_insert_with(made).events += events;
            }
            for (name, reason) in &board.held {
                streams.entry(name.to_string()).or_insert_with(|| named(name)).stopped = Some(reason.clone());
            }
        }
        for report in streams.values_mut() {
            report.parked = count(&|parked| *parked.stream == *report.name);
        }
        let relays = self.relays.iter().map(async |relay| {
            let aside = relay.aside.count(&relay.name).await;
            RelayReport { aside, ..relay.report() }
        });
        let pushes = self.pushes.iter().map(async |push| {
            let aside = push.aside.count(&push.name).await;
            PushReport { aside, ..push.watch.report(&push.name) }
        });
        let (relays, pushes) = tokio::join!(join_all(relays), join_all(pushes));
        let source = |source: &SourceHandle| source.report(count(&|parked| parked.source == source.name));
        RuntimeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            memory_bytes: memory(),
            sources: self.sources.iter().map(source).collect(),
            relays,
            pushes,
            streams: streams.into_values().collect(),
            bus: None,
            bus_error: None,
        }
    }
}

fn named(name: &str) -> StreamReport {
    StreamReport { name: name.to_owned(), ..StreamReport::default() }
}

impl RelayHandle {
    fn report(&self) -> RelayReport {
        let board = self.board.lock();
        RelayReport {
            name: self.name.to_string(),
            phase: board.phase,
            error: board.error.clone(),
            retrying_since: board.retrying_since,
            attempts: board.attempts,
            lanes: board.lanes,
            lag_seconds: board.lag_seconds(board.phase == Phase::Streaming),
            events: board.events,
            bytes: board.bytes,
            events_per_second: board.rate.per_second(),
            aside: None,
        }
    }
}

impl SourceHandle {
    fn report(&self, parked: Option<u64>) -> SourceReport {
        let (own, board) = (self.connector.status(), self.board.lock());
        let open = board.phase == Phase::Streaming;
        let phase = match (board.phase, own.state) {
            (Phase::Streaming, SourceState::Snapshot) => Phase::Snapshot,
            (Phase::Streaming, SourceState::Connecting) => Phase::Connecting,
            (phase, _) => phase,
        };
        SourceReport {
            name: self.name.to_string(),
            phase,
            error: board.error.clone(),
            retrying_since: board.retrying_since,
            attempts: board.attempts,
            position: own.position,
            lag_bytes: own.lag_bytes,
            lag_seconds: board.lag_seconds(open),
            snapshot: own.snapshot,
            events: board.events,
            bytes: board.bytes,
            events_per_second: board.rate.per_second(),
            in_flight_bytes: board.in_flight,
            parked,
        }
    }
}
