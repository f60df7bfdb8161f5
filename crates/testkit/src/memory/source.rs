//! A source in memory: a log of changes that is read as a database's is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use headwater_core::ports::{Check, Connector, Durable, Finding, Source, SourceState, SourceStatus};
use headwater_core::{Batch, Change, Checkpoint, Position, Result};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Notify;

/// A log of changes and a connector that reads it; its clones are one. Like a database it begins again
/// at the place that was last confirmed, which may lie before the checkpoint, and it cuts its batches
/// anew each time.
#[derive(Clone)]
pub struct MemorySource(Arc<Shared>);

struct Shared {
    name: String,
    state: Mutex<State>,
    more: Notify,
}

struct State {
    log: Vec<Change>,
    confirmed: Option<Checkpoint>,
    cut: SmallRng,
    smallest_batch: usize,
    largest_batch: usize,
    opened: u64,
    closed: u64,
    read: usize,
    on_confirm: Option<OnConfirm>,
}

/// Looks at what is confirmed; a panic is its complaint.
type OnConfirm = Box<dyn Fn(&Checkpoint) + Send>;

impl MemorySource {
    /// An empty log; batches have at most `largest_batch` changes.
    pub fn new(name: &str, seed: u64, largest_batch: usize) -> Self {
        Self::cutting(name, seed, (1, largest_batch.max(1)))
    }

    /// An empty log that is read in batches of all that there is.
    pub fn of_whole_batches(name: &str) -> Self {
        Self::cutting(name, 0, (usize::MAX, usize::MAX))
    }

    fn cutting(name: &str, seed: u64, (smallest_batch, largest_batch): (usize, usize)) -> Self {
        let state = State {
            log: Vec::new(),
            confirmed: None,
            cut: SmallRng::seed_from_u64(seed),
            smallest_batch,
            largest_batch,
            opened: 0,
            closed: 0,
            read: 0,
            on_confirm: None,
        };
        Self(Arc::new(Shared { name: name.to_owned(), state: Mutex::new(state), more: Notify::new() }))
    }

    /// Adds changes to the log; their positions must rise.
    pub fn commit(&self, changes: impl IntoIterator<Item = Change>) {
        self.state().log.extend(changes);
        self.0.more.notify_waiters();
    }

    /// Looks at each checkpoint as it is confirmed.
    pub fn on_confirm(&self, look: impl Fn(&Checkpoint) + Send + 'static) {
        self.state().on_confirm = Some(Box::new(look));
    }

    /// What was last confirmed.
    pub fn confirmed(&self) -> Option<Checkpoint> {
        self.state().confirmed.clone()
    }

    /// How often it was opened.
    pub fn opened(&self) -> u64 {
        self.state().opened
    }

    /// How often it was closed in good order.
    pub fn closed(&self) -> u64 {
        self.state().closed
    }

    /// How many changes were read, redelivered ones counted again.
    pub fn read(&self) -> usize {
        self.state().read
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Connector for MemorySource {
    async fn open(&self, _: Option<&Checkpoint>) -> Result<Box<dyn Source>> {
        let mut state = self.state();
        state.opened += 1;
        // A database goes by what was confirmed to it; the runtime drops what the checkpoint has.
        let from = state.confirmed.as_ref().map_or(Position::ZERO, |confirmed| confirmed.position);
        let next = state.log.partition_point(|change| change.position <= from);
        Ok(Box::new(Open { source: self.clone(), next }))
    }

    async fn check(&self) -> Result<Check> {
        Ok(Check { findings: vec![Finding::ok("in memory")], tables: None })
    }

    fn status(&self) -> SourceStatus {
        SourceStatus { state: SourceState::Streaming, ..SourceStatus::default() }
    }
}

struct Open {
    source: MemorySource,
    next: usize,
}

impl Open {
    fn ready(&mut self, budget: usize) -> Option<Batch> {
        let mut state = self.source.state();
        let sizes = state.smallest_batch..=state.largest_batch;
        let count = state.cut.random_range(sizes);
        let mut size = 0;
        let changes: Vec<Change> = state
            .log
            .get(self.next..)?
            .iter()
            .take(count)
            .take_while(|change| {
                let fits = size < budget;
                size += change.size();
                fits
            })
            .cloned()
            .collect();
        let position = changes.last()?.position;
        self.next += changes.len();
        state.read += changes.len();
        let checkpoint =
            Checkpoint { source: self.source.0.name.clone(), position, state: serde_json::Value::Null };
        Some(Batch { changes, checkpoint: Some(checkpoint) })
    }
}

#[async_trait]
impl Source for Open {
    async fn next(&mut self, budget: usize) -> Result<Batch> {
        loop {
            let shared = Arc::clone(&self.source.0);
            let more = shared.more.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            if let Some(batch) = self.ready(budget) {
                return Ok(batch);
            }
            more.await;
        }
    }

    async fn confirm(&mut self, checkpoint: &Checkpoint, _: Durable) -> Result<()> {
        let mut state = self.source.state();
        if let Some(look) = &state.on_confirm {
            look(checkpoint);
        }
        state.confirmed = Some(checkpoint.clone());
        Ok(())
    }

    async fn close(&mut self) {
        self.source.state().closed += 1;
    }
}
