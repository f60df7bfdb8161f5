//! Publishing in transactions: each source has a producer of its own, under a transactional id.
//!
//! A thread takes what was handed over, all that is there at once, publishes it with the newest checkpoint
//! in one transaction, and commits. While a commit is under way, and for `commit_interval` after it began, the
//! next transaction gathers: each costs the brokers several records of their own, however small it is. What fails
//! ends the writer: nothing that was handed over later can pass it, and the source begins again from its
//! checkpoint, with a new writer. That one's `init_transactions` fences every earlier writer of the source,
//! in whatever process it is, and ends what it left open.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use headwater_core::ports::{Accepted, Published, Writer};
use headwater_core::{Checkpoint, Error, Event, Kind, Result};
use rdkafka::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, NoCustomPartitioner, Producer, ProducerContext, ThreadedProducer};
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};

use super::learned::Learned;
use super::topics::blocking;
use super::writers::Place;
use super::{Shared, context, errors, record};

/// The pause before a question is asked again that may be answered later, or a full queue is tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// How long a producer may take to be connected before it is asked to begin all the same.
const CONNECTING: Duration = Duration::from_secs(2);

/// How long one wait for records on their way takes.
const STEP: Duration = Duration::from_millis(1);

/// How much longer than a transaction may stay open its end is asked for.
const MARGIN: Duration = Duration::from_secs(5);

/// So many events do not wait for more: they are worth a transaction.
const MANY: usize = 500;

/// The sources that publish from this process, each with its newest writer.
#[derive(Debug, Default)]
pub struct Transacting(Mutex<HashMap<String, Weak<State>>>);

impl Transacting {
    /// Since when the oldest batch waits for the brokers.
    pub fn oldest(&self) -> Option<Instant> {
        let mut states = lock(&self.0);
        states.retain(|_, state| state.strong_count() > 0);
        states
            .values()
            .filter_map(Weak::upgrade)
            .filter_map(|state| lock(&state.since).front().copied())
            .min()
    }

    /// Puts a writer in the place of the source's last one, which is returned while it has work.
    fn replace(&self, source: &str, state: &Arc<State>) -> Option<Arc<State>> {
        lock(&self.0).insert(source.to_owned(), Arc::downgrade(state))?.upgrade()
    }
}

/// What a writer's thread tells.
#[derive(Debug, Default)]
struct State {
    /// When each batch was handed over that is not durable yet, in order.
    since: Mutex<VecDeque<Instant>>,
    /// Told when there may be none left.
    settled: Notify,
    /// Why nothing more is published.
    broken: Mutex<Option<(Kind, String)>>,
}

/// A batch that was handed over.
struct Order {
    events: Vec<Event>,
    checkpoint: Option<Checkpoint>,
    promise: oneshot::Sender<Result<()>>,
    /// Its share of the budget.
    _permit: OwnedSemaphorePermit,
}

/// Publishes for one source, in transactions.
pub struct TransactionalWriter {
    shared: Arc<Shared>,
    place: Place,
    batch_bytes: u32,
    state: Arc<State>,
    orders: mpsc::Sender<Order>,
}

/// Opens a source's writer: fences those before it, and ends their transactions.
pub async fn open(shared: &Arc<Shared>, source: &str) -> Result<TransactionalWriter> {
    let place = shared.writers.open(source);
    let batch_bytes = shared.topics.batch_bytes();
    let (orders, todo) = mpsc::channel();
    let state = Arc::new(State::default());
    if let Some(last) = shared.transacting.replace(source, &state) {
        // What was handed over in this process becomes durable or fails first.
        last.settled().await;
    }
    let thread = {
        let (shared, state, source) = (Arc::clone(shared), Arc::clone(&state), source.to_owned());
        blocking(move || Thread::begin(shared, source, batch_bytes, state)).await?
    };
    let name = "kafka-transactions".to_owned();
    std::thread::Builder::new().name(name).spawn(move || thread.run(todo)).map_err(|error| {
        Error::new(Kind::Internal, "starting the thread of a source's transactions").because(error)
    })?;
    Ok(TransactionalWriter { shared: Arc::clone(shared), place, batch_bytes, state, orders })
}

#[async_trait]
impl Writer for TransactionalWriter {
    async fn publish(&self, events: Vec<Event>, checkpoint: Option<Checkpoint>) -> Result<Published> {
        let shared = &self.shared;
        let rejections = shared.rejections(&events)?;
        if !rejections.is_empty() {
            return Ok(Published::Rejected { events, rejections });
        }
        if shared.topics.batch_bytes() < self.batch_bytes {
            return Err(Error::new(Kind::Unavailable, "a topic takes only smaller batches than before")
                .hint("nothing is lost: the source begins again with smaller ones"));
        }
        let permit = shared.budget(shared.units_of(&events)).await?;
        shared.writers.check(&self.place)?;
        let (promise, kept) = oneshot::channel();
        let order = Order { events, checkpoint, promise, _permit: permit };
        self.state.hand_over(&self.orders, order)?;
        let state = Arc::clone(&self.state);
        Ok(Published::Accepted(Accepted::new(
            async move { kept.await.unwrap_or_else(|_| Err(state.error())) },
        )))
    }
}

impl State {
    /// Waits until all that was handed over is durable or has failed.
    async fn settled(&self) {
        loop {
            let told = self.settled.notified();
            if lock(&self.since).is_empty() {
                return;
            }
            told.await;
        }
    }

    /// Hands a batch to the thread; in the order in which it counts them.
    fn hand_over(&self, orders: &mpsc::Sender<Order>, order: Order) -> Result<()> {
        let mut since = lock(&self.since);
        orders.send(order).map_err(|_| self.error())?;
        since.push_back(Instant::now());
        Ok(())
    }

    /// So many batches, the oldest, are durable or have failed.
    fn settle(&self, batches: usize) {
        let mut since = lock(&self.since);
        let batches = batches.min(since.len());
        since.drain(..batches);
        drop(since);
        self.settled.notify_waiters();
    }

    /// Why nothing more is published.
    fn error(&self) -> Error {
        let broken = lock(&self.broken).clone();
        let (kind, why) = broken.unwrap_or((Kind::Unavailable, "the bus was closed".to_owned()));
        Error::new(kind, why)
    }
}

/// The thread of one writer.
struct Thread {
    producer: ThreadedProducer<Reports>,
    shared: Arc<Shared>,
    source: String,
    state: Arc<State>,
}

impl Thread {
    /// Makes the producer and fences the source's earlier ones. Blocks.
    fn begin(shared: Arc<Shared>, source: String, batch_bytes: u32, state: Arc<State>) -> Result<Self> {
        let config = &shared.config;
        let reports =
            Reports { learned: Arc::clone(&shared.topics.learned), batch_bytes, failed: Mutex::default() };
        let settings = config.transactional_producer(&source, batch_bytes);
        let producer = ThreadedProducer::from_config_and_context(&settings, reports)
            .map_err(|error| errors::error(error, "making a Kafka producer"))?;
        // Once it is connected. Whoever asks for the coordinator before that asks again half a second later. Why there
        // is no connection is said by what follows.
        drop(producer.client().fetch_metadata(Some(&config.positions_topic), CONNECTING.min(config.timeout)));
        let deadline = Instant::now() + config.timeout;
        while let Err(error) = producer.init_transactions(config.timeout) {
            if !is_retriable(&error) || Instant::now() >= deadline {
                return Err(errors::not_begun(error, config, &source));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(Self { producer, shared, source, state })
    }

    /// Publishes what is handed over until nobody can hand over more, or something fails.
    fn run(self, orders: mpsc::Receiver<Order>) {
        let mut next = Instant::now();
        while let Ok(first) = orders.recv() {
            let batch = gathered(first, &orders, next);
            next = Instant::now() + self.shared.config.commit_interval();
            match self.transact(&batch) {
                Ok(()) => {
                    self.state.settle(batch.len());
                    batch.into_iter().for_each(|order| drop(order.promise.send(Ok(()))));
                }
                Err(error) => return self.end(error, batch, orders),
            }
        }
    }

    /// Breaks every promise: what was handed over after what failed must not pass it.
    fn end(self, error: Error, batch: Vec<Order>, orders: mpsc::Receiver<Order>) {
        tracing::warn!(source = self.source, %error, "a transaction failed; the source begins again");
        *lock(&self.state.broken) = Some((error.kind(), format!("a transaction failed: {error}")));
        let mut first = Some(error);
        for order in batch {
            drop(order.promise.send(Err(first.take().unwrap_or_else(|| self.state.error()))));
        }
        // Who hands over has the lock: before this, and is told here, or after it, and finds nobody.
        let mut since = lock(&self.state.since);
        for order in orders.try_iter() {
            drop(order.promise.send(Err(self.state.error())));
        }
        drop(orders);
        since.clear();
        drop(since);
        self.state.settled.notify_waiters();
    }

    /// One transaction.
    fn transact(&self, batch: &[Order]) -> Result<()> {
        let deadline = Instant::now() + self.shared.config.transaction_timeout() + MARGIN;
        self.producer.begin_transaction().map_err(|error| self.failed(error))?;
        let done = self.produce(batch).and_then(|()| self.commit(deadline));
        if done.is_err() {
            self.abort(deadline);
        }
        // What was reported of a record says more than what the transaction says of it.
        done.map_err(|error| lock(&self.producer.context().failed).take().unwrap_or(error))
    }

    fn produce(&self, batch: &[Order]) -> Result<()> {
        let config = &self.shared.config;
        let now = jiff::Timestamp::now().as_millisecond();
        for event in batch.iter().flat_map(|order| &order.events) {
            self.send(record::produced(&config.topic(&event.stream), event, now, ()))?;
        }
        let Some(checkpoint) = batch.iter().filter_map(|order| order.checkpoint.as_ref()).next_back() else {
            return Ok(());
        };
        let value = serde_json::to_vec(checkpoint)
            .map_err(|error| Error::new(Kind::Internal, "writing a checkpoint").because(error))?;
        let mut position: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&config.positions_topic);
        (position.partition, position.key, position.payload) =
            (Some(0), Some(checkpoint.source.as_bytes()), Some(&value[..]));
        self.send(position)
    }

    /// Hands a record to librdkafka, which copies it; waits while its queue is full.
    fn send(&self, mut record: BaseRecord<'_, [u8], [u8]>) -> Result<()> {
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((error, back)) if error.rdkafka_error_code() == Some(Code::QueueFull) => {
                    std::thread::sleep(PAUSE);
                    record = back;
                }
                Err((error, _)) => return Err(self.failed(error)),
            }
        }
    }

    /// Commits, or says that nobody knows whether it did: the next writer learns it from the brokers.
    fn commit(&self, deadline: Instant) -> Result<()> {
        // The wrapper's own wait for records on their way sleeps a tenth of a second at a time, and its poll spins.
        while self.producer.in_flight_count() > 0 {
            std::thread::sleep(STEP);
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.producer.commit_transaction(left.min(self.shared.config.timeout)) {
                Ok(()) => return Ok(()),
                Err(error) if !is_retriable(&error) => return Err(self.failed(error)),
                Err(error) if left.is_zero() => return Err(errors::undecided(error, &self.source)),
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Ends what was begun, so that readers need not wait for it to time out.
    fn abort(&self, deadline: Instant) {
        let deadline = deadline.min(Instant::now() + self.shared.config.timeout);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.producer.abort_transaction(left) {
                Err(error) if is_retriable(&error) && !left.is_zero() => std::thread::sleep(PAUSE),
                // If not, the next writer's init_transactions ends it, or the brokers do after its time.
                _ => return,
            }
        }
    }

    fn failed(&self, error: KafkaError) -> Error {
        match error.rdkafka_error_code() {
            Some(code) if errors::is_fence(code) => errors::fenced(&self.source).because(error),
            _ => errors::not_committed(error, &self.source),
        }
    }
}

/// What goes in one transaction with `first`: all that is there, and unless that is much, all that comes until
/// `next`. The budget bounds how much there can be.
fn gathered(first: Order, orders: &mpsc::Receiver<Order>, next: Instant) -> Vec<Order> {
    let mut events = first.events.len();
    let mut batch = vec![first];
    loop {
        let wait =
            if events < MANY { next.saturating_duration_since(Instant::now()) } else { Duration::ZERO };
        let more = if wait.is_zero() { orders.try_recv().ok() } else { orders.recv_timeout(wait).ok() };
        match more {
            Some(order) => {
                events += order.events.len();
                batch.push(order);
            }
            None => return batch,
        }
    }
}

/// Whether the same may be asked again. A commit that is under way allows nothing else, however often it is asked.
fn is_retriable(error: &KafkaError) -> bool {
    let KafkaError::Transaction(error) = error else { return false };
    error.is_retriable() && !error.is_fatal() && error.code() != Code::Conflict
}

/// Receives the delivery reports.
struct Reports {
    learned: Arc<Learned>,
    batch_bytes: u32,
    /// Why the first record of a transaction was not taken that was not.
    failed: Mutex<Option<Error>>,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        context::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(target: "librdkafka", %error, "{reason}");
    }
}

impl ProducerContext<NoCustomPartitioner> for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let Err((error, message)) = result else { return };
        self.learned.undelivered(error, message, self.batch_bytes);
        let code = error.rdkafka_error_code();
        // What is purged because something else failed, or because another writer was opened, says nothing.
        if code.is_some_and(|code| {
            errors::is_fence(code) || matches!(code, Code::PurgeQueue | Code::PurgeInflight)
        }) {
            return;
        }
        lock(&self.failed).get_or_insert_with(|| errors::undelivered(error.clone(), message.topic()));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
