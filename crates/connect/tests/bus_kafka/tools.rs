//! What these tests share.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use headwater_connect::kafka::{KafkaBus, KafkaConfig};
use headwater_core::ports::{Accepted, Bus, Delivery, Published, Start, Subscribe, Writer};
use headwater_core::{Checkpoint, Event, EventId, Position, Record, Result, Retention, StreamSpec};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use tokio::sync::Mutex;

/// Waits, but not for ever.
pub async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("nothing happened for a minute")
}

/// Asks again until the answer is there.
pub async fn until<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    within(async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

pub fn unique(name: &str) -> Arc<str> {
    format!("{name}-{:016x}", rand::random::<u64>()).into()
}

pub fn spec(stream: &Arc<str>, partitions: u32) -> StreamSpec {
    StreamSpec { name: Arc::clone(stream), partitions, retention: Retention::default() }
}

/// A bus and the writer of one source there at a time.
pub struct Client {
    bus: KafkaBus,
    writer: Mutex<Option<Arc<dyn Writer>>>,
}

impl std::ops::Deref for Client {
    type Target = KafkaBus;

    fn deref(&self) -> &KafkaBus {
        &self.bus
    }
}

impl Client {
    /// Opens a source's writer, which publishes from then on, and says where the source begins anew.
    pub async fn checkpoint(&self, source: &str) -> Result<Option<Checkpoint>> {
        let opened = self.bus.writer(source).await?;
        *self.writer.lock().await = Some(opened.writer.into());
        Ok(opened.checkpoint)
    }

    /// Publishes with the writer that was opened last, or one of a source of its own.
    pub async fn publish(&self, events: Vec<Event>, at: Option<Checkpoint>) -> Result<Published> {
        if self.writer.lock().await.is_none() {
            let own = || unique("source").to_string();
            self.checkpoint(&at.as_ref().map_or_else(own, |at| at.source.clone())).await?;
        }
        let writer = self.writer.lock().await.clone().unwrap();
        writer.publish(events, at).await
    }
}

pub async fn open(config: &KafkaConfig) -> Client {
    Client { bus: KafkaBus::open(config.clone()).await.unwrap(), writer: Mutex::default() }
}

/// Event number `n`, of as many bytes.
pub fn event(stream: &Arc<str>, partition: Option<u32>, n: u64, bytes: usize) -> Event {
    let time = 1_700_000_000_000_000;
    Event {
        id: EventId::derive(time, &[stream.as_bytes(), &n.to_be_bytes()]),
        stream: Arc::clone(stream),
        partition,
        kind: "create".into(),
        key: Some(Bytes::from(format!("key-{n}"))),
        payload: Some(Bytes::from(n.to_string() + &" ".repeat(bytes.saturating_sub(n.to_string().len())))),
        headers: Default::default(),
        time,
        position: Position::of(1, [n]),
    }
}

/// Event number `n`, of as many bytes, which no compression makes much smaller.
pub fn large(stream: &Arc<str>, n: u64, bytes: usize) -> Event {
    let noise: String = (0..bytes).map(|_| char::from(rand::random_range(b'!'..b'~'))).collect();
    Event { payload: Some(noise.into()), ..event(stream, Some(0), n, 1) }
}

/// Sets what a topic takes, as the cluster's owner.
pub async fn limit(brokers: &str, topic: &str, bytes: &str) {
    set(brokers, topic, "max.message.bytes", bytes).await;
}

/// Gives a topic a setting, as the cluster's owner.
pub async fn set(brokers: &str, topic: &str, name: &str, value: &str) {
    let (admin, options) = admin(brokers);
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(name, value);
    for result in admin.alter_configs([&change], &options).await.unwrap() {
        result.unwrap();
    }
}

/// What number an event has.
pub fn number(record: &Record) -> u64 {
    std::str::from_utf8(record.event.payload.as_ref().unwrap()).unwrap().trim_end().parse().unwrap()
}

pub fn checkpoint(source: &Arc<str>, n: u64) -> Checkpoint {
    Checkpoint { source: source.to_string(), position: Position::of(1, [n]), state: n.into() }
}

/// Hands a batch over, which must not be rejected.
pub async fn accept(bus: &Client, events: Vec<Event>, at: Option<Checkpoint>) -> Result<Accepted> {
    match within(bus.publish(events, at)).await? {
        Published::Accepted(accepted) => Ok(accepted),
        Published::Rejected { rejections, .. } => panic!("rejected: {rejections:?}"),
    }
}

/// Publishes a batch and waits until it is durable.
pub async fn publish(bus: &Client, events: Vec<Event>, at: Option<Checkpoint>) -> Result<()> {
    within(accept(bus, events, at).await?.durable()).await.map(drop)
}

/// Reads `count` events from the beginning.
pub async fn read(bus: &KafkaBus, stream: &Arc<str>, count: usize) -> Vec<Record> {
    let subscribe = Subscribe { streams: vec![Arc::clone(stream)], group: None, start: Start::Beginning };
    let mut subscription = within(bus.subscribe(subscribe)).await.unwrap();
    let mut read = Vec::new();
    while read.len() < count {
        if let Delivery::Batch { records, .. } = within(subscription.next()).await.unwrap() {
            read.extend(records);
        }
    }
    assert_eq!(read.len(), count, "more than was published");
    read
}

/// Reads from the beginning until `count` different events were there: each where it came first.
pub async fn first_deliveries(bus: &KafkaBus, stream: &Arc<str>, count: usize) -> Vec<Record> {
    let subscribe = Subscribe { streams: vec![Arc::clone(stream)], group: None, start: Start::Beginning };
    let mut subscription = within(bus.subscribe(subscribe)).await.unwrap();
    let (mut seen, mut first) = (HashSet::new(), Vec::new());
    while first.len() < count {
        if let Delivery::Batch { records, .. } = within(subscription.next()).await.unwrap() {
            first.extend(records.into_iter().filter(|record| seen.insert(record.event.id)));
        }
    }
    first
}

/// A client that administers the cluster, as its owner would.
pub fn admin(brokers: &str) -> (AdminClient<DefaultClientContext>, AdminOptions) {
    let admin = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    (admin, AdminOptions::new().operation_timeout(Some(Duration::from_secs(30))))
}
