//! Kafka: streams are topics.
//!
//! An idempotent producer with `acks=all` that never gives up by itself keeps the order of each
//! partition through every retry. Checkpoints go to a compacted topic of their own once the events
//! before them are acknowledged, so they may trail, never lead. A record that can never be delivered
//! stops the producer for good; the bus makes a new one when a source opens its writer again.
//! One that is too large for the brokers is rejected then, whether or not the topic's limit is known.

mod client;
mod config;
mod context;
mod errors;
mod lag;
mod learned;
mod ledger;
mod line;
mod plain;
mod positions;
mod record;
mod refusals;
mod status;
mod subscription;
mod topics;
mod warm;
mod writers;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use headwater_core::ports::{Bus, BusStatus, Opened, Subscribe, Subscription};
use headwater_core::{Result, StreamSpec};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::task::AbortOnDropHandle;

pub use config::{Compression, KafkaConfig};
use line::Line;
use topics::{Topics, blocking};
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
}

/// A semaphore counts at most 2^29 permits or so: one for each of these many bytes.
const UNIT: usize = 1024;

impl KafkaBus {
    /// A bus on the cluster that `config` names, which need not be there yet. Needs a tokio runtime.
    pub async fn open(config: KafkaConfig) -> Result<Self> {
        config.check()?;
        let config_too = config.clone();
        let topics = blocking(move || Topics::new(&config_too)).await?;
        let units = u32::try_from(config.queue_bytes / UNIT).unwrap_or(u32::MAX >> 4).max(2);
        let budget = Arc::new(Semaphore::new(units as usize));
        let (line, writers) = (Mutex::new(None), Writers::default());
        let shared = Arc::new(Shared { config, topics, line, budget, units, writers });
        let watch = AbortOnDropHandle::new(tokio::spawn(watch(Arc::clone(&shared))));
        Ok(Self { shared, groups: status::Groups::default(), _watch: watch })
    }

    /// Tells it of a stream that another process publishes, so that its status covers it. An error of
    /// kind `Refused` when there is no such topic.
    pub async fn know(&self, stream: &Arc<str>) -> Result<()> {
        self.shared.topics.find(stream).await
    }
}

#[async_trait]
impl Bus for KafkaBus {
    async fn ensure(&self, spec: &StreamSpec) -> Result<u32> {
        self.shared.topics.ensure(spec).await
    }

    async fn writer(&self, source: &str) -> Result<Opened> {
        self.shared.topics.ensure_positions().await?;
        let writer = plain::open(&self.shared, source).await?;
        let (config, asker) = (self.shared.config.clone(), self.shared.topics.asker());
        let source = source.to_owned();
        let checkpoint = blocking(move || positions::read(&config, &asker, &source)).await?;
        Ok(Opened { writer: Box::new(writer), checkpoint })
    }

    async fn subscribe(&self, subscribe: Subscribe) -> Result<Box<dyn Subscription>> {
        for stream in &subscribe.streams {
            self.shared.topics.find(stream).await?;
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
    /// For how long the brokers have not taken what waits for them, when that is too long.
    fn waiting(&self) -> Option<Duration> {
        // While the line is made or drained somebody holds it; that is no sign of trouble.
        let oldest = self.line.try_lock().ok()?.as_ref()?.oldest()?;
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
