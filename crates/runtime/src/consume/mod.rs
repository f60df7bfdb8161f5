//! Consuming streams with effect exactly once: events by key to workers, their effects in transactions of
//! the inbox's database, retries in place, keys set aside when retries do not help.
//!
//! - `reader`: from the subscription to the workers, and cursors back to the bus; `seat`: how far a partition
//!   has come; `room`: how much may be on its way.
//! - `lane`: one worker and its keys; `waiting`: one of them that waits; `hold`: what failed together; `again`: who
//!   tries again; `attempt`: one transaction; `answer`: the database has to answer in time; `pace`: of how many events;
//!   `suspects`: which of them may break their connections; `watch`: how it is doing.
//! - `backlog`: what was set aside and may go on; `upkeep`: old inbox rows go.
//!
//! Everything that must hold when two members have one partition for a moment, or when one dies, is decided
//! in the database: by inbox rows, which exist once, and by what is set aside, which is asked for in the
//! transaction that takes an event. What is in memory here only says what to try next.

mod again;
mod answer;
mod attempt;
mod backlog;
mod hold;
mod lane;
mod pace;
mod reader;
mod received;
mod room;
mod seat;
mod settings;
mod suspects;
mod upkeep;
mod waiting;
mod watch;

use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use headwater_core::ports::{Backlog, Bus, Start};
use headwater_core::{Error, Event, Record, Result};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::status::Phase;
use again::Seekers;
use answer::Answering;
use received::Then;
pub use received::{Failure, Received};
pub use settings::{ConsumeSettings, OrderBy};
use suspects::Suspects;
pub use watch::Watch;

/// Handles events within a transaction.
pub trait Handle<T>: Send + Sync + 'static {
    /// What is held while events are handled.
    type Permit: Send;

    /// Waits until events may be handled. At a stop that is given up: they come again, and it was no try of theirs.
    fn admit(&self) -> impl Future<Output = Self::Permit> + Send;

    /// What else is held while events are handled that failed before, or were set aside. If there is none now, they are
    /// to wait, and others come first.
    fn again(&self) -> Option<Self::Permit>;

    /// Makes the effect of some events, in this order, and leaves the transaction open. After an error all of it
    /// is rolled back and the events come again: the one that [`Failure::at`] names alone, or else each.
    fn handle(
        &self,
        transaction: &mut T,
        events: &[&Received],
    ) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// A consumer, ready to run.
pub struct Consume<I, H> {
    /// Its name: that of its group on the bus, and of its rows in the inbox.
    pub name: String,
    /// What it reads.
    pub streams: Vec<Arc<str>>,
    /// Where it begins in a partition that neither the inbox nor the group knows.
    pub start: Start,
    /// Where the streams are.
    pub bus: Arc<dyn Bus>,
    /// Where it remembers.
    pub inbox: I,
    /// What it does.
    pub handle: H,
    /// How.
    pub settings: ConsumeSettings,
    /// Where it says how it is doing.
    pub watch: Arc<Watch>,
}

impl<I, H> Consume<I, H>
where
    I: Backlog,
    H: Handle<I::Transaction>,
{
    /// Runs until `stop`: then what is begun is finished, cursors are written, and the group is left. A database
    /// or a bus that is away is waited for; any other error of theirs ends it. Dropping the future ends it at once.
    pub async fn run(self, stop: CancellationToken) -> Result<()> {
        self.settings.check()?;
        let halt = stop.child_token();
        // Whoever drops this future ends the workers, too.
        let _ends = halt.clone().drop_guard();
        let settings = self.settings.clamped();
        let inbox = Answering::new(self.inbox, settings.handler_timeout);
        let shared = Arc::new(Shared {
            name: self.name.into(),
            inbox,
            turns: Semaphore::new(settings.concurrency.min(Semaphore::MAX_PERMITS)),
            suspects: Suspects::default(),
            handle: self.handle,
            settings,
            halt: halt.clone(),
            failed: Mutex::new(None),
            watch: Arc::clone(&self.watch),
            troubled: Arc::default(),
            seekers: Seekers::default(),
            over: OnceLock::new(),
        });
        self.watch.phase(Phase::Streaming);
        let mut beside = JoinSet::new();
        beside.spawn(backlog::run(Arc::clone(&shared)));
        beside.spawn(upkeep::run(Arc::clone(&shared)));
        reader::run(Arc::clone(&shared), self.bus, self.streams, self.start).await;
        halt.cancel();
        let finish = async { while beside.join_next().await.is_some() {} };
        // What is cut off is rolled back.
        tokio::select! {
            () = finish => {}
            () = shared.cut_off() => {}
        }
        beside.shutdown().await;
        self.watch.phase(Phase::Stopped);
        let failed = shared.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        failed.map_or(Ok(()), |error| {
            self.watch.stuck(&error.to_string());
            self.watch.phase(Phase::Retrying);
            Err(error)
        })
    }
}

/// What all tasks of a consumer share.
struct Shared<I, H> {
    name: Arc<str>,
    inbox: I,
    handle: H,
    settings: ConsumeSettings,
    /// As many as transactions with events may be open at once, whether those arrive or were set aside.
    turns: Semaphore,
    suspects: Suspects,
    /// Ends every task: because it was asked for, or because one has failed.
    halt: CancellationToken,
    failed: Mutex<Option<Error>>,
    watch: Arc<Watch>,
    /// The keys that wait to be tried again.
    troubled: waiting::Troubled,
    seekers: Seekers,
    /// Until when what is begun may finish, once it is over.
    over: OnceLock<Instant>,
}

impl<I, H> Shared<I, H> {
    /// An error that no retry can mend ends the consumer.
    fn fail(&self, error: Error) {
        // One that is begun again says the same once.
        if self.watch.says(&error.to_string()) {
            tracing::debug!(consumer = %self.name, %error, "consumer failed again");
        } else {
            tracing::error!(consumer = %self.name, %error, "consumer failed");
        }
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.halt.cancel();
    }

    /// An event no longer fails, as it is parked. Where no key waits in memory to be tried again, none fails any more as far
    /// as is known; one that waits in the database says at its next try that it does.
    fn fewer_fail(&self) {
        if Arc::strong_count(&self.troubled) <= 1 {
            self.watch.none_fail();
        }
    }

    /// Waits until one more transaction with events may be open; `None` where it is over.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        tokio::select! {
            biased;
            () = self.halt.cancelled() => None,
            // It is never closed.
            turn = self.turns.acquire() => turn.ok(),
        }
    }

    /// Waits until it is over and what is begun has had its time.
    async fn cut_off(&self) {
        self.halt.cancelled().await;
        let until = self.over.get_or_init(|| Instant::now() + self.settings.drain_timeout);
        tokio::time::sleep_until(*until).await;
    }

    /// Waits, or says that it is over.
    async fn wait(&self, duration: Duration) -> bool {
        // A timer takes a millisecond at least.
        if duration.is_zero() {
            return !self.halt.is_cancelled();
        }
        tokio::select! {
            () = self.halt.cancelled() => false,
            () = tokio::time::sleep(duration) => true,
        }
    }
}

/// What keeps its order: a key of a stream, or an event alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Order {
    Key(Arc<str>, Bytes),
    Alone(Arc<str>, u32, u64),
}

/// An event on its way to a handler.
struct Item {
    received: Received,
    key: Option<Bytes>,
    seat: Arc<seat::Seat>,
    _room: room::Taken,
}

impl Item {
    fn order(&self) -> Order {
        let Record { offset, event } = &self.received.record;
        match &self.key {
            Some(key) => Order::Key(Arc::clone(&event.stream), key.clone()),
            None => Order::Alone(Arc::clone(&event.stream), event.partition.unwrap_or(0), *offset),
        }
    }
}

/// The order key of an event.
fn order_key(order_by: Option<&OrderBy>, event: &Event) -> Option<Bytes> {
    order_by.map_or_else(|| event.key.clone(), |order_by| order_by(event))
}
