//! Named faults, injected by wrapping the ports.
//!
//! A [`Faults`] is the remote control: it says which fault the next call of some kind suffers. The
//! wrappers ([`FaultyBus`], [`FaultyConnector`], [`FaultyParkedStore`]) ask it at every call.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use headwater_core::ports::{
    Accepted, Bus, BusStatus, Check, Connector, Durable, HoldsBack, Opened, Parked, ParkedCount, ParkedStore,
    ParkedUsage, Published, Source, SourceStatus, Subscribe, Subscription, Writer,
};
use headwater_core::{Batch, Checkpoint, Error, Event, EventId, Kind, Result, StreamSpec};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call is refused and does nothing.
    Reject(Kind),
    /// The call is done, but its answer is an error: the caller cannot know.
    FailAfterWrite(Kind),
    /// The call is done, and its answer is held until [`Faults::let_go`].
    HoldResponse,
    /// The call is done, and its answer comes late.
    RespondSlowly(Duration),
    /// The call panics, as a defect would.
    Panic,
}

/// Which call suffers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// [`Bus::ensure`].
    Ensure,
    /// [`Writer::publish`].
    Publish,
    /// [`Accepted::durable`].
    Durable,
    /// [`Bus::writer`].
    Writer,
    /// [`Bus::reach`].
    Reach,
    /// [`Bus::subscribe`].
    Subscribe,
    /// [`Bus::status`].
    Status,
    /// [`Connector::open`].
    Open,
    /// [`Source::next`]: the answer is held or late before the source is asked, so that nothing is lost
    /// when the caller gives up.
    Next,
    /// [`Source::confirm`].
    Confirm,
    /// [`ParkedStore::park`].
    Park,
    /// [`ParkedStore::list`].
    List,
    /// [`ParkedStore::remove`].
    Remove,
}

/// The remote control of faults; its clones are one.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<Plan>>);

#[derive(Default)]
struct Plan {
    next: HashMap<Call, VecDeque<Fault>>,
    random: Option<(SmallRng, f64)>,
    held: Option<watch::Sender<()>>,
    suffered: u64,
}

impl Faults {
    /// The next call of this kind that has no fault planned yet suffers this one.
    pub fn inject(&self, call: Call, fault: Fault) {
        self.plan().next.entry(call).or_default().push_back(fault);
    }

    /// From now on any call is, with this probability, refused or answered with an error though it was
    /// done: always of kind `Unavailable`.
    pub fn at_random(&self, seed: u64, probability: f64) {
        self.plan().random = Some((SmallRng::seed_from_u64(seed), probability));
    }

    /// No faults from now on; held answers are let go.
    pub fn stop(&self) {
        let mut plan = self.plan();
        (plan.random, plan.held) = (None, None);
        plan.next.clear();
    }

    /// Lets held answers go.
    pub fn let_go(&self) {
        self.plan().held = None;
    }

    /// How many calls suffered a fault.
    pub fn suffered(&self) -> u64 {
        self.plan().suffered
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self, call: Call) -> Option<Fault> {
        let mut plan = self.plan();
        let planned = plan.next.get_mut(&call).and_then(VecDeque::pop_front);
        let fault = planned.or_else(|| {
            let (rng, probability) = plan.random.as_mut()?;
            let kinds = [Fault::Reject(Kind::Unavailable), Fault::FailAfterWrite(Kind::Unavailable)];
            rng.random_bool(*probability).then(|| kinds[rng.random_range(0..2)])
        });
        plan.suffered += u64::from(fault.is_some());
        fault
    }

    async fn held(&self) {
        let mut held = self.plan().held.get_or_insert_with(|| watch::channel(()).0).subscribe();
        // The channel closes when the answers are let go.
        while held.changed().await.is_ok() {}
    }

    async fn around<T>(&self, call: Call, work: impl Future<Output = Result<T>>) -> Result<T> {
        let failed = |kind, what: &str| Error::new(kind, format!("injected: {call:?} {what}"));
        match self.draw(call) {
            None => work.await,
            Some(Fault::Reject(kind)) => Err(failed(kind, "rejected")),
            Some(Fault::FailAfterWrite(kind)) => {
                let done = work.await;
                drop(done);
                Err(failed(kind, "failed after it was done"))
            }
            Some(Fault::HoldResponse) => {
                let done = work.await;
                self.held().await;
                done
            }
            Some(Fault::RespondSlowly(by)) => {
                let done = work.await;
                tokio::time::sleep(by).await;
                done
            }
            Some(Fault::Panic) => panic!("injected: {call:?} panics"),
        }
    }
}

/// A bus that suffers faults.
pub struct FaultyBus {
    /// The real one.
    pub inner: Arc<dyn Bus>,
    /// The remote control.
    pub faults: Faults,
}

#[async_trait]
impl Bus for FaultyBus {
    async fn ensure(&self, spec: &StreamSpec) -> Result<u32> {
        self.faults.around(Call::Ensure, self.inner.ensure(spec)).await
    }

    async fn writer(&self, source: &str) -> Result<Opened> {
        let Opened { writer, checkpoint } =
            self.faults.around(Call::Writer, self.inner.writer(source)).await?;
        let writer = FaultyWriter { inner: writer, faults: self.faults.clone() };
        Ok(Opened { writer: Box::new(writer), checkpoint })
    }

    async fn reach(&self) -> Result<()> {
        self.faults.around(Call::Reach, self.inner.reach()).await
    }

    async fn subscribe(&self, subscribe: Subscribe) -> Result<Box<dyn Subscription>> {
        self.faults.around(Call::Subscribe, self.inner.subscribe(subscribe)).await
    }

    async fn status(&self) -> Result<BusStatus> {
        self.faults.around(Call::Status, self.inner.status()).await
    }
}

struct FaultyWriter {
    inner: Box<dyn Writer>,
    faults: Faults,
}

#[async_trait]
impl Writer for FaultyWriter {
    async fn publish(&self, events: Vec<Event>, checkpoint: Option<Checkpoint>) -> Result<Published> {
        match self.faults.around(Call::Publish, self.inner.publish(events, checkpoint)).await? {
            Published::Accepted(accepted) => {
                let faults = self.faults.clone();
                let durable = async move { faults.around(Call::Durable, accepted.durable()).await.map(drop) };
                Ok(Published::Accepted(Accepted::new(durable)))
            }
            rejected => Ok(rejected),
        }
    }
}

/// A connector whose sources suffer faults.
pub struct FaultyConnector {
    /// The real one.
    pub inner: Arc<dyn Connector>,
    /// The remote control.
    pub faults: Faults,
}

#[async_trait]
impl Connector for FaultyConnector {
    async fn open(&self, from: Option<&Checkpoint>) -> Result<Box<dyn Source>> {
        let inner = self.faults.around(Call::Open, self.inner.open(from)).await?;
        Ok(Box::new(FaultySource { inner, faults: self.faults.clone(), asked: None }))
    }

    async fn free(&self) -> Result<()> {
        self.inner.free().await
    }

    async fn check(&self) -> Result<Check> {
        self.inner.check().await
    }

    fn status(&self) -> SourceStatus {
        self.inner.status()
    }
}

struct FaultySource {
    inner: Box<dyn Source>,
    faults: Faults,
    /// The fault of the call under way: one that is given up and made again is one call.
    asked: Option<Option<Fault>>,
}

#[async_trait]
impl Source for FaultySource {
    async fn next(&mut self, budget: usize) -> Result<Batch> {
        let faults = &self.faults;
        let fault = *self.asked.get_or_insert_with(|| faults.draw(Call::Next));
        match fault {
            Some(Fault::HoldResponse) => faults.held().await,
            Some(Fault::RespondSlowly(by)) => tokio::time::sleep(by).await,
            Some(Fault::Reject(kind)) => return Err(Error::new(kind, "injected: Next rejected")),
            Some(Fault::Panic) => panic!("injected: Next panics"),
            Some(Fault::FailAfterWrite(_)) | None => {}
        }
        let batch = self.inner.next(budget).await?;
        self.asked = None;
        match fault {
            Some(Fault::FailAfterWrite(kind)) => {
                Err(Error::new(kind, "injected: Next failed after it was done"))
            }
            _ => Ok(batch),
        }
    }

    async fn confirm(&mut self, checkpoint: &Checkpoint, proof: Durable) -> Result<()> {
        self.faults.around(Call::Confirm, self.inner.confirm(checkpoint, proof)).await
    }

    async fn close(&mut self) {
        self.inner.close().await;
    }
}

/// A parked store that suffers faults.
pub struct FaultyParkedStore {
    /// The real one.
    pub inner: Arc<dyn ParkedStore>,
    /// The remote control.
    pub faults: Faults,
}

#[async_trait]
impl ParkedStore for FaultyParkedStore {
    async fn park(&self, parked: Vec<Parked>) -> Result<()> {
        self.faults.around(Call::Park, self.inner.park(parked)).await
    }

    async fn usage(&self) -> Result<Vec<ParkedUsage>> {
        self.inner.usage().await
    }

    async fn counts(&self) -> Result<Vec<ParkedCount>> {
        self.inner.counts().await
    }

    async fn list(&self, source: &str, stream: &str, holds: &HoldsBack, bytes: usize) -> Result<Vec<Parked>> {
        self.faults.around(Call::List, self.inner.list(source, stream, holds, bytes)).await
    }

    async fn remove(&self, source: &str, stream: &str, ids: &[EventId]) -> Result<()> {
        self.faults.around(Call::Remove, self.inner.remove(source, stream, ids)).await
    }
}
