//! A bus in memory.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use headwater_core::ports::{
    Accepted, Bus, BusStatus, Opened, Published, Rejection, StreamStatus, Subscribe, Subscription, Writer,
};
use headwater_core::{Checkpoint, Error, Event, Kind, Result, StreamSpec};
use tokio::sync::{Notify, oneshot};

/// A bus in memory. What it accepts becomes durable at once, or, after [`MemoryBus::hold`], when the
/// test says so; a crash forgets what is not.
/// Its clones are one.
#[derive(Clone, Default)]
pub struct MemoryBus(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    /// Something accepted became durable, or was forgotten.
    settled: Notify,
}

#[derive(Default)]
struct State {
    partitions: BTreeMap<Arc<str>, u32>,
    durable: Vec<Event>,
    checkpoints: HashMap<String, Checkpoint>,
    accepted: VecDeque<Waiting>,
    holding: bool,
    largest: Option<usize>,
    /// How many writers of each source were opened.
    writers: HashMap<String, u64>,
}

struct Waiting {
    events: Vec<Event>,
    checkpoint: Option<Checkpoint>,
    done: oneshot::Sender<()>,
}

impl MemoryBus {
    /// From now on nothing becomes durable by itself.
    pub fn hold(&self) {
        self.state().holding = true;
    }

    /// Makes up to `batches` accepted batches durable, oldest first; says how many.
    pub fn flush(&self, batches: usize) -> usize {
        let mut state = self.state();
        let count = batches.min(state.accepted.len());
        for waiting in state.accepted.drain(..count).collect::<Vec<_>>() {
            state.keep(waiting);
        }
        self.0.settled.notify_waiters();
        count
    }

    /// Everything accepted becomes durable, and from now on by itself.
    pub fn let_go(&self) {
        self.state().holding = false;
        self.flush(usize::MAX);
    }

    /// Forgets all that is not durable; whoever waits for it gets an error.
    pub fn crash(&self) {
        self.state().accepted.clear();
        self.0.settled.notify_waiters();
    }

    /// Rejects events larger than this.
    pub fn reject_larger_than(&self, bytes: Option<usize>) {
        self.state().largest = bytes;
    }

    /// Gives a stream another number of partitions than it was or will be made with.
    pub fn set_partitions(&self, stream: &str, partitions: u32) {
        self.state().partitions.insert(stream.into(), partitions);
    }

    /// The durable events, in the order they were published.
    pub fn events(&self) -> Vec<Event> {
        self.state().durable.clone()
    }

    /// How many events are durable.
    pub fn len(&self) -> usize {
        self.state().durable.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many batches, and how many bytes of events, are accepted and not durable.
    pub fn waiting(&self) -> (usize, usize) {
        let state = self.state();
        let bytes = state.accepted.iter().flat_map(|waiting| &waiting.events).map(Event::size).sum();
        (state.accepted.len(), bytes)
    }

    /// The durable checkpoint of a source.
    pub fn stored(&self, source: &str) -> Option<Checkpoint> {
        self.state().checkpoints.get(source).cloned()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn keep(&mut self, waiting: Waiting) {
        self.durable.extend(waiting.events);
        if let Some(checkpoint) = waiting.checkpoint {
            self.checkpoints.insert(checkpoint.source.clone(), checkpoint);
        }
        // Nobody may be waiting any more.
        let _ = waiting.done.send(());
    }
}

struct MemoryWriter {
    bus: MemoryBus,
    source: String,
    number: u64,
}

#[async_trait]
impl Writer for MemoryWriter {
    async fn publish(&self, events: Vec<Event>, checkpoint: Option<Checkpoint>) -> Result<Published> {
        let mut state = self.bus.state();
        if state.writers.get(&self.source) != Some(&self.number) {
            let what = format!("another writer of {} was opened", self.source);
            return Err(Error::new(Kind::Busy, what));
        }
        let largest = state.largest.unwrap_or(usize::MAX);
        let rejections: Vec<Rejection> = events
            .iter()
            .enumerate()
            .filter(|(_, event)| event.payload.as_ref().map_or(0, bytes::Bytes::len) > largest)
            .map(|(index, _)| Rejection { index, reason: format!("larger than {largest} bytes") })
            .collect();
        if !rejections.is_empty() {
            return Ok(Published::Rejected { events, rejections });
        }
        let missing = events.iter().find(|event| !state.partitions.contains_key(&event.stream));
        if let Some(event) = missing {
            return Err(Error::new(Kind::Internal, format!("stream {} was never made", event.stream)));
        }
        let (done, kept) = oneshot::channel();
        let waiting = Waiting { events, checkpoint, done };
        if state.holding {
            state.accepted.push_back(waiting);
        } else {
            state.keep(waiting);
        }
        let lost = |_| Error::new(Kind::Unavailable, "the bus crashed before the batch was durable");
        Ok(Published::Accepted(Accepted::new(async move { kept.await.map_err(lost) })))
    }
}

#[async_trait]
impl Bus for MemoryBus {
    async fn ensure(&self, spec: &StreamSpec) -> Result<u32> {
        let has = *self.state().partitions.entry(Arc::clone(&spec.name)).or_insert(spec.partitions);
        if has == spec.partitions {
            return Ok(has);
        }
        let what = format!("stream {} has {has} partitions, not {}", spec.name, spec.partitions);
        Err(Error::new(Kind::Contract, what))
    }

    async fn writer(&self, source: &str) -> Result<Opened> {
        let number = {
            let mut state = self.state();
            let writers = state.writers.entry(source.to_owned()).or_default();
            *writers += 1;
            *writers
        };
        loop {
            let settled = self.0.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            if self.waiting().0 == 0 {
                let writer = MemoryWriter { bus: self.clone(), source: source.to_owned(), number };
                return Ok(Opened { writer: Box::new(writer), checkpoint: self.stored(source) });
            }
            settled.await;
        }
    }

    async fn subscribe(&self, _: Subscribe) -> Result<Box<dyn Subscription>> {
        Err(Error::new(Kind::Internal, "the memory bus has no subscriptions: look at its events"))
    }

    async fn status(&self) -> Result<BusStatus> {
        let state = self.state();
        let stream = |(stream, partitions): (&Arc<str>, &u32)| StreamStatus {
            stream: Arc::clone(stream),
            partitions: *partitions,
            events: state.durable.iter().filter(|event| event.stream == *stream).count() as u64,
            bytes: None,
            newest: None,
            groups: Vec::new(),
        };
        Ok(BusStatus {
            kind: "memory".into(),
            streams: state.partitions.iter().map(stream).collect(),
            checkpoints: state.checkpoints.values().cloned().collect(),
            waiting_since: None,
        })
    }
}
