//! Kafka: streams are topics.
//!
//! An idempotent producer with `acks=all` that never gives up by itself keeps the order of each
//! partition through every retry. Checkpoints go to a compacted topic of their own once the events
//! before them are acknowledged, so they may trail, never lead. A record that can never be delivered
//! stops the producer for good; the bus makes a new one when a source asks for its checkpoint again.
//! One that is too large for the brokers is rejected then, whether or not the topic's limit is known.

mod client;
mod config;
mod context;
mod errors;
mod lag;
mod learned;
mod ledger;
mod line;
mod positions;
mod record;
mod status;
mod subscription;
mod topics;
mod warm;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use headwater_core::ports::{Bus, BusStatus, Published, Rejection, Subscribe, Subscription};
use headwater_core::{Checkpoint, Error, Event, Kind, Result, StreamSpec};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;

pub use config::{Compression, KafkaConfig};
use line::Line;
use topics::{Topics, blocking};

/// When the brokers have taken nothing for this long, that is worth a word.
const PATIENCE: Duration = Duration::from_secs(5);

/// Streams in Apache Kafka.
pub struct KafkaBus {
    shared: Arc<Shared>,
    /// Bytes that may wait for the brokers, in units of [`UNIT`].
    budget: Arc<Semaphore>,
    units: u32,
    groups: status::Groups,
    _watch: AbortOnDropHandle<()>,
}

struct Shared {
    config: KafkaConfig,
    topics: Topics,
    line: Mutex<Option<Arc<Line>>>,
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
        let shared = Arc::new(Shared { config, topics, line: Mutex::new(None) });
        let watch = AbortOnDropHandle::new(tokio::spawn(watch(Arc::clone(&shared))));
        let budget = Arc::new(Semaphore::new(units as usize));
        Ok(Self { shared, budget, units, groups: status::Groups::default(), _watch: watch })
    }

    /// Tells it of a stream that another process publishes, so that its status covers it. An error of
    /// kind `Refused` when there is no such topic.
    pub async fn know(&self, stream: &Arc<str>) -> Result<()> {
        self.shared.topics.find(stream).await
    }

    /// Which events can never be published as they are.
    fn rejections(&self, events: &[Event]) -> Result<Vec<Rejection>> {
        let mut rejections = Vec::new();
        let mut last: Option<(&str, topics::Topic)> = None;
        for (index, event) in events.iter().enumerate() {
            if last.as_ref().is_none_or(|(stream, _)| *stream != &*event.stream) {
                let topic = self.topic(&event.stream)?;
                last = Some((&event.stream, topic));
            }
            let Some((_, topic)) = &last else { continue };
            if let Some(reason) = record::impossible(event, topic).or_else(|| self.too_large(event, topic)) {
                rejections.push(Rejection { index, reason });
            }
        }
        Ok(rejections)
    }

    fn topic(&self, stream: &str) -> Result<topics::Topic> {
        let unknown =
            || Error::new(Kind::Internal, format!("stream {stream} was not ensured before publishing"));
        let topic = self.shared.topics.get(stream).ok_or_else(unknown)?;
        match &topic.wrong {
            // The source opens again; ensuring the stream says what is wrong.
            Some(wrong) => Err(Error::new(Kind::Unavailable, wrong.clone())),
            None => Ok(topic),
        }
    }

    fn too_large(&self, event: &Event, topic: &topics::Topic) -> Option<String> {
        let (size, name) = (record::size(event), &topic.name);
        let client = self.shared.config.max_message_bytes;
        if size > client as usize {
            return Some(format!(
                "the event has {size} bytes, `max_message_bytes` allows {client}: raise it, and max.message.bytes of \
                 topic {name} where that is lower"
            ));
        }
        let raise = format!(
            "raise its max.message.bytes (kafka-configs.sh --alter --topic {name} --add-config max.message.bytes={})",
            size.next_multiple_of(1 << 20)
        );
        if let Some(limit) = topic.limit.filter(|limit| size > *limit as usize) {
            return Some(format!("the event has {size} bytes, topic {name} allows {limit}: {raise}"));
        }
        let refused = topic.refused.filter(|refused| size >= *refused)?;
        Some(format!(
            "the event has {size} bytes, and the brokers refused one of {refused} as too large for topic {name}: \
             {raise}, and start Headwater again"
        ))
    }

    /// The line to publish on: a new one if there is none, or if a topic takes only smaller batches.
    async fn line(&self) -> Result<Arc<Line>> {
        let wanted = self.shared.topics.batch_bytes();
        let mut current = self.shared.line.lock().await;
        if let Some(line) = &*current
            && (line.is_broken() || line.batch_bytes() <= wanted)
        {
            return Ok(Arc::clone(line));
        }
        // One that is replaced has nothing more on its way, and gets nothing more.
        let _idle = if current.is_some() { Some(self.budget(self.units).await?) } else { None };
        self.shared.topics.ensure_positions().await?;
        let config = self.shared.config.clone();
        let learned = Arc::clone(&self.shared.topics.learned);
        let line = Arc::new(blocking(move || Line::start(&config, wanted, learned)).await?);
        if let Some(old) = current.replace(Arc::clone(&line)) {
            old.retire();
        }
        Ok(line)
    }

    /// Waits for a share of the budget. Once all of it is ours, nothing is on its way.
    async fn budget(&self, units: u32) -> Result<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.budget).acquire_many_owned(units).await;
        permit.map_err(|_| Error::new(Kind::Internal, "the bus was closed"))
    }
}

#[async_trait]
impl Bus for KafkaBus {
    async fn ensure(&self, spec: &StreamSpec) -> Result<u32> {
        self.shared.topics.ensure(spec).await
    }

    async fn publish(&self, mut events: Vec<Event>, checkpoint: Option<Checkpoint>) -> Result<Published> {
        let rejections = self.rejections(&events)?;
        if !rejections.is_empty() {
            return Ok(Published::Rejected { events, rejections });
        }
        let bytes: usize = events.iter().map(|event| event.size() + RECORD_OVERHEAD).sum();
        // A batch beyond the budget goes alone. Each part of one has its share.
        let units = u32::try_from(bytes / UNIT + 2).unwrap_or(u32::MAX).min(self.units);
        loop {
            let line = self.line().await?;
            let mut permit = self.budget(units).await?;
            // It may have been replaced while we waited; now that we have a share it cannot be.
            if line.is_retired() {
                continue;
            }
            let config = &self.shared.config;
            let first = line.warm.take_first(&mut events, |stream| self.shared.topics.partitions_of(stream));
            if !first.is_empty() {
                let share = permit.split(1).ok_or_else(|| Error::new(Kind::Internal, "sharing a share"))?;
                line.publish(config, &first, None, share)?.durable().await?;
                line.warm.known(&first);
            }
            return line.publish(config, &events, checkpoint, permit).map(Published::Accepted);
        }
    }

    async fn checkpoint(&self, source: &str) -> Result<Option<Checkpoint>> {
        self.shared.topics.ensure_positions().await?;
        // What is on its way belongs to it.
        drop(self.budget(self.units).await?);
        self.shared.recover().await;
        // Whoever asks will publish soon; the producer's first words with the brokers take a while.
        self.line().await?;
        let (config, asker) = (self.shared.config.clone(), self.shared.topics.asker());
        let source = source.to_owned();
        blocking(move || positions::read(&config, &asker, &source)).await
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

    /// Takes a broken line out of use, once everyone has heard that it is broken and librdkafka has let
    /// go of its connections.
    async fn recover(&self) {
        let Some(broken) = self.line.lock().await.clone().filter(|line| line.is_broken()) else { return };
        broken.mourned().await;
        {
            let mut current = self.line.lock().await;
            if current.as_ref().is_some_and(|line| Arc::ptr_eq(line, &broken)) {
                *current = None;
            }
        }
        broken.end().await;
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
