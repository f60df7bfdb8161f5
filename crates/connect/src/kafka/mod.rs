//! Kafka: streams are topics.
//!
//! An idempotent producer with `acks=all` that never gives up by itself keeps the order of each
//! partition through every retry. Checkpoints go to a compacted topic of their own once the events
//! before them are acknowledged, so they may trail, never lead. A record that can never be delivered
//! stops the producer for good; the bus makes a new one when a source opens its writer again.
//! One that is too large for the brokers is rejected then, whether or not the topic's limit is known.
//!
//! With `transactions`, each source has a producer of its own instead, under a transactional id: the events
//! and their checkpoint are one transaction, so a reader of what is committed sees both or neither, and
//! opening a source's writer fences the one before it, in whatever process that is.

mod client;
mod config;
mod context;
mod errors;
mod keep;
mod lag;
mod learned;
mod ledger;
mod line;
mod plain;
mod positions;
mod record;
mod refusals;
mod stable;
mod status;
mod subscription;
mod topics;
mod transactions;
mod warm;
mod writers;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use headwater_core::ports::{Bus, BusStatus, Finding, Opened, Subscribe, Subscription, Writer};
use headwater_core::{Error, Event, Kind, Result, StreamSpec};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;

pub use config::{Compression, KafkaConfig};
use line::Line;
use topics::{Topics, blocking};
use transactions::Transacting;
use writers::Writers;

/// When the brokers have taken nothing for this long, that is worth a word.
const PATIENCE: Duration = Duration::from_secs(5);

/// Streams in Apache Kafka.
pub struct KafkaBus {
    shared: Arc<Shared>,
    groups: status::Groups,
    _watch: AbortOnDropHandle<()>,
}

struct Shared {
    config: KafkaConfig,
    topics: Topics,
    line: Mutex<Option<Arc<Line>>>,
    /// Bytes that may wait for the brokers, in units of [`UNIT`].
    budget: Arc<Semaphore>,
    units: u32,
    writers: Writers,
    transacting: Transacting,
}

/// A semaphore counts at most 2^29 permits or so: one for each of these many bytes.
const UNIT: usize = 1024;

/// What librdkafka needs for a record besides its bytes, roughly.
const RECORD_OVERHEAD: usize = 512;

impl KafkaBus {
    /// A bus on the cluster that `config` names, which need not be there yet. Needs a tokio runtime.
    pub async fn open(config: KafkaConfig) -> Result<Self> {
        config.check()?;
        let config_too = config.clone();
        let topics = blocking(move || Topics::new(&config_too)).await?;
        let units = u32::try_from(config.queue_bytes / UNIT).unwrap_or(u32::MAX >> 4).max(2);
        let budget = Arc::new(Semaphore::new(units as usize));
        let (line, writers) = (Mutex::new(None), Writers::default());
        let shared = Arc::new(Shared {
            config,
            topics,
            line,
            budget,
            units,
            writers,
            transacting: Transacting::default(),
        });
        let watch = AbortOnDropHandle::new(tokio::spawn(watch(Arc::clone(&shared))));
        Ok(Self { shared, groups: status::Groups::default(), _watch: watch })
    }

    /// Tells it of a stream that another process publishes, so that its status covers it; says whether there is such
    /// a topic. An error of kind `Refused` when that may not be known.
    pub async fn know(&self, stream: &Arc<str>) -> Result<bool> {
        self.shared.topics.find(stream).await
    }

    /// Says whether what sources need of the cluster is there, and how to mend it, changing nothing.
    pub async fn check(&self) -> Result<Vec<Finding>> {
        self.shared.topics.check_positions().await
    }
}

#[async_trait]
impl Bus for KafkaBus {
    async fn ensure(&self, spec: &StreamSpec) -> Result<u32> {
        self.shared.topics.ensure(spec).await
    }

    async fn writer(&self, source: &str) -> Result<Opened> {
        self.shared.topics.ensure_positions().await?;
        let writer: Box<dyn Writer> = if self.shared.config.transactions {
            Box::new(transactions::open(&self.shared, source).await?)
        } else {
            Box::new(plain::open(&self.shared, source).await?)
        };
        let (config, asker) = (self.shared.config.clone(), self.shared.topics.asker());
        let source = source.to_owned();
        let checkpoint = blocking(move || positions::read(&config, &asker, &source)).await?;
        Ok(Opened { writer, checkpoint })
    }

    async fn reach(&self) -> Result<()> {
        self.shared.topics.partitions(&self.shared.config.positions_topic).await.map(drop)
    }

    async fn subscribe(&self, subscribe: Subscribe) -> Result<Box<dyn Subscription>> {
        for stream in &subscribe.streams {
            if !self.shared.topics.find(stream).await? {
                let name = self.shared.config.topic(stream);
                return Err(Error::new(Kind::Refused, format!("there is no stream {stream} (topic {name})"))
                    .hint("streams are made by `headwater run`; is its name right, and `topic_prefix`?"));
            }
        }
        self.groups.note(&subscribe);
        let config = self.shared.config.clone();
        let subscription = blocking(move || subscription::open(&config, subscribe)).await?;
        Ok(Box::new(subscription))
    }

    async fn status(&self) -> Result<BusStatus> {
        let Some(waited) = self.shared.waiting() else {
            return status::read(&self.shared.config, &self.shared.topics, &self.groups).await;
        };
        // There is nobody to ask.
        let waited = i64::try_from(waited.as_micros()).unwrap_or(0);
        let since = jiff::Timestamp::now().as_microsecond().saturating_sub(waited);
        Ok(BusStatus { kind: "kafka".into(), waiting_since: Some(since), ..BusStatus::default() })
    }
}

impl Shared {
    /// The share of the budget that a batch needs; one beyond the budget goes alone. Each part of one has
    /// its share.
    fn units_of(&self, events: &[Event]) -> u32 {
        let bytes: usize = events.iter().map(|event| event.size() + RECORD_OVERHEAD).sum();
        u32::try_from(bytes / UNIT + 2).unwrap_or(u32::MAX).min(self.units)
    }

    /// Waits for a share of the budget. Once all of it is ours, nothing is on its way.
    async fn budget(&self, units: u32) -> Result<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.budget).acquire_many_owned(units).await;
        permit.map_err(|_| Error::new(Kind::Internal, "the bus was closed"))
    }

    /// For how long the brokers have not taken what waits for them, when that is too long.
    fn waiting(&self) -> Option<Duration> {
        // While the line is made or drained somebody holds it; that is no sign of trouble.
        let plain = self.line.try_lock().ok().and_then(|line| line.as_ref()?.oldest());
        let oldest = plain.into_iter().chain(self.transacting.oldest()).min()?;
        Some(oldest.elapsed()).filter(|waited| *waited > PATIENCE)
    }
}

/// Looks at the topics now and then, and says when the brokers take nothing.
async fn watch(shared: Arc<Shared>) {
    let mut looked = tokio::time::Instant::now();
    let mut silent = false;
    loop {
        let pause = shared.config.refresh_interval.min(Duration::from_secs(1));
        tokio::time::sleep(pause).await;
        let waits = shared.waiting();
        match waits {
            Some(waited) if !silent => {
                tracing::warn!(seconds = waited.as_secs(), "waiting for the Kafka brokers; nothing is lost");
            }
            None if silent => tracing::info!("the Kafka brokers take events again"),
            _ => {}
        }
        silent = waits.is_some();
        if looked.elapsed() >= shared.config.refresh_interval {
            shared.topics.refresh().await;
            looked = tokio::time::Instant::now();
        }
    }
}
