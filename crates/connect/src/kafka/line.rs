//! One producer and what it has yet to deliver. After a failure a new line takes its place.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use headwater_core::ports::Accepted;
use headwater_core::{Checkpoint, Error, Event, Kind, Result};
use rdkafka::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{
    BaseProducer, BaseRecord, NoCustomPartitioner, Producer, ProducerContext, PurgeConfig,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::learned::Learned;
use super::ledger::{Batch, Ledger, Write};
use super::warm::Warm;
use super::{KafkaConfig, context, errors, record};

/// How long what was accepted may still take when the bus is closed.
const PARTING: Duration = Duration::from_secs(5);

/// A producer, in order, until the first record that cannot be delivered.
pub struct Line {
    /// Batches are produced one after the other, whoever publishes; `None` once it was let go.
    producer: Mutex<Option<Arc<BaseProducer<Reports>>>>,
    reports: Arc<Shared>,
    /// The promises that somebody still holds.
    promises: TaskTracker,
    ended: CancellationToken,
    retired: AtomicBool,
    /// Where the brokers know it.
    pub warm: Warm,
}

/// What the thread of delivery reports and the publishers share.
struct Shared {
    ledger: Ledger,
    learned: Arc<Learned>,
    /// The most bytes of a record batch.
    batch_bytes: u32,
    positions_topic: String,
    stop: AtomicBool,
    producer: OnceLock<Weak<BaseProducer<Reports>>>,
}

/// Receives the delivery reports.
struct Reports(Arc<Shared>);

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        context::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(target: "librdkafka", %error, "{reason}");
    }
}

impl ProducerContext<NoCustomPartitioner> for Reports {
    type DeliveryOpaque = Arc<Batch>;

    fn delivery(&self, result: &DeliveryResult<'_>, batch: Arc<Batch>) {
        match result {
            Ok(_) => self.0.count(&batch),
            Err((error, message)) => {
                self.0.learned.undelivered(error, message, self.0.batch_bytes);
                self.0.fail(&batch, errors::undelivered(error.clone(), message.topic()));
            }
        }
    }
}

impl Shared {
    fn count(&self, batch: &Batch) {
        if let Some(write) = self.ledger.count(batch) {
            self.write(write);
        }
    }

    fn fail(&self, batch: &Batch, error: Error) {
        self.ledger.fail(batch, error);
        // What is still queued must not go out any more.
        self.stop.store(true, Ordering::Release);
    }

    /// Produces checkpoints; their reports come back by [`Shared::count`].
    fn write(&self, write: Write) {
        let Some(producer) = self.producer.get().and_then(Weak::upgrade) else { return };
        for checkpoint in &write.checkpoints {
            let Ok(value) = serde_json::to_vec(checkpoint) else { continue };
            let record = BaseRecord::with_opaque_to(&self.positions_topic, Arc::clone(&write.batch))
                .partition(0)
                .key(&checkpoint.source)
                .payload(&value);
            if let Err((error, _)) = producer.send(record) {
                let error = errors::error(error, format!("storing the checkpoint of {}", checkpoint.source));
                return self.fail(&write.batch, error);
            }
        }
        self.count(&write.batch);
    }
}

impl Line {
    /// A producer whose record batches hold at most `batch_bytes`. Makes threads: not for async code.
    pub fn start(config: &KafkaConfig, batch_bytes: u32, learned: Arc<Learned>) -> Result<Self> {
        let reports = Arc::new(Shared {
            ledger: Ledger::default(),
            learned,
            batch_bytes,
            positions_topic: config.positions_topic.clone(),
            stop: AtomicBool::new(false),
            producer: OnceLock::new(),
        });
        let producer = BaseProducer::from_config_and_context(
            &config.producer(batch_bytes),
            Reports(Arc::clone(&reports)),
        );
        let producer = Arc::new(producer.map_err(|error| errors::error(error, "making a Kafka producer"))?);
        reports.producer.get_or_init(|| Arc::downgrade(&producer));
        let ended = CancellationToken::new();
        let thread = {
            let (producer, reports, ended) = (Arc::clone(&producer), Arc::clone(&reports), ended.clone());
            move || {
                while !reports.stop.load(Ordering::Acquire) {
                    producer.poll(Duration::from_millis(100));
                }
                if reports.ledger.is_broken() {
                    producer.purge(PurgeConfig::default().queue().inflight());
                }
                let deadline = Instant::now() + PARTING;
                while reports.ledger.oldest().is_some() && Instant::now() < deadline {
                    producer.poll(Duration::from_millis(10));
                }
                // It may be dropped by a thread that may block: this one.
                while Arc::strong_count(&producer) > 1 {
                    producer.poll(Duration::from_millis(10));
                }
                drop(producer);
                ended.cancel();
            }
        };
        std::thread::Builder::new().name("kafka-reports".into()).spawn(thread).map_err(|error| {
            Error::new(Kind::Internal, "starting the thread of delivery reports").because(error)
        })?;
        let producer = Mutex::new(Some(producer));
        Ok(Self {
            producer,
            reports,
            promises: TaskTracker::new(),
            ended,
            retired: AtomicBool::new(false),
            warm: Warm::default(),
        })
    }

    /// Hands a batch to librdkafka, which copies it; `permit` stands for its bytes.
    pub fn publish(
        &self,
        config: &KafkaConfig,
        events: &[Event],
        checkpoint: Option<Checkpoint>,
        permit: OwnedSemaphorePermit,
    ) -> Result<Accepted> {
        let producer = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        let (batch, kept) = self.reports.ledger.begin(events.len(), checkpoint, permit)?;
        let kept = self.promises.track_future(async move {
            let gone = |_| Err(Error::new(Kind::Unavailable, "the bus was closed"));
            kept.await.unwrap_or_else(gone)
        });
        let now = jiff::Timestamp::now().as_millisecond();
        let mut topic = String::new();
        let mut stream = "";
        for event in events {
            if stream != &*event.stream {
                (stream, topic) = (&event.stream, config.topic(&event.stream));
            }
            let record = record::produced(&topic, event, now, Arc::clone(&batch));
            let Some(producer) = &*producer else { break };
            if let Err((error, _)) = producer.send(record) {
                // Whoever holds the promise hears of it.
                self.reports.fail(&batch, errors::error(error, format!("publishing to topic {topic}")));
                break;
            }
        }
        self.reports.count(&batch);
        Ok(Accepted::new(kept))
    }

    /// The most bytes of a record batch.
    pub fn batch_bytes(&self) -> u32 {
        self.reports.batch_bytes
    }

    /// Whether a record could not be delivered, so that a new line is needed.
    pub fn is_broken(&self) -> bool {
        self.reports.ledger.is_broken()
    }

    /// Another line took its place.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// Whether another line took its place.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Since when the oldest batch waits for the brokers.
    pub fn oldest(&self) -> Option<Instant> {
        self.reports.ledger.oldest()
    }

    /// Waits until everyone who holds a promise of this broken line has heard of it or given it up:
    /// nobody can publish later events on the next line without knowing that earlier ones are missing.
    pub async fn mourned(&self) {
        self.promises.close();
        self.promises.wait().await;
    }

    /// Lets go of a broken line's producer, and waits until librdkafka has closed its connections.
    pub async fn end(&self) {
        self.producer.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.ended.cancelled().await;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.reports.stop.store(true, Ordering::Release);
    }
}
