//! Reading topics: a thread that polls librdkafka, and a bounded queue of what it read.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use headwater_core::ports::{Cursor, Delivery, SeekTo, Start, Subscribe, Subscription};
use headwater_core::{Error, Kind, Record, Result};
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Message, Offset, TopicPartitionList};
use tokio::sync::Notify;

use super::topics::{blocking, detached};
use super::{KafkaConfig, context, errors, record, stable};

/// How many bytes of events may wait for the reader.
const QUEUE_BYTES: usize = 4 << 20;

/// How many events are handed out together at most.
const BATCH: usize = 1000;

/// How long one poll may wait, and so a seek for its turn.
const POLL: Duration = Duration::from_millis(50);

/// How long the queue may be full before its partitions are paused, so that polling can go on: who does
/// not poll is thrown out of its group. (Not at once: librdkafka forgets what it has fetched of them.)
const FULL: Duration = Duration::from_secs(1);

/// How long it is tried to find out where to begin to read, and the pause between two tries.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

/// How long the end of a partition is waited for while a transaction is open there.
const OPEN: Duration = Duration::from_secs(5);

/// A stream's partition.
type Seat = (Arc<str>, u32);

/// What the polling thread and the reader share.
struct Shared {
    config: KafkaConfig,
    /// The streams by the names of their topics.
    streams: BTreeMap<String, Arc<str>>,
    group: bool,
    start: Start,
    queue: Mutex<Queue>,
    arrived: Notify,
    stop: AtomicBool,
    /// Held while polling: a seek must not pass what was polled before it.
    polling: Mutex<()>,
    seeking: AtomicBool,
    /// Partitions came that are not paused while the others are.
    changed: AtomicBool,
}

#[derive(Default)]
struct Queue {
    deliveries: VecDeque<Delivery>,
    bytes: usize,
    /// The epochs of the partitions that are ours.
    held: BTreeMap<Seat, u64>,
    failed: Option<Error>,
    /// Why partitions that became ours could not be begun: nothing comes of them until the group shares
    /// anew.
    stuck: Option<(Kind, String)>,
}

/// What librdkafka calls back.
struct Callbacks(Arc<Shared>);

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        context::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(target: "librdkafka", %error, "{reason}");
    }
}

impl ConsumerContext for Callbacks {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            // The group waits for this. Heartbeats go on meanwhile, and there is nothing else to poll for.
            let assigned = insist(&self.0.stop, PATIENCE, || self.0.assigned(consumer, list, cooperative));
            self.0.begun(assigned);
            return;
        }
        self.0.revoked(list);
        let outcome = if cooperative { consumer.incremental_unassign(list) } else { consumer.unassign() };
        if let Err(error) = outcome {
            self.0.fail(errors::error(error, "giving partitions back"));
        }
    }
}

/// Opens a subscription; blocks.
pub fn open(config: &KafkaConfig, subscribe: Subscribe) -> Result<KafkaSubscription> {
    let by_topic = |stream: &Arc<str>| (config.topic(stream), Arc::clone(stream));
    let shared = Arc::new(Shared {
        config: config.clone(),
        streams: subscribe.streams.iter().map(by_topic).collect(),
        group: subscribe.group.is_some(),
        start: subscribe.start,
        queue: Mutex::default(),
        arrived: Notify::new(),
        stop: AtomicBool::new(false),
        polling: Mutex::default(),
        seeking: AtomicBool::new(false),
        changed: AtomicBool::new(false),
    });
    // librdkafka wants the name of a group even where nothing is committed.
    let group = subscribe.group.as_deref().unwrap_or("headwater-reader");
    let doing = || format!("subscribing to {}", subscribe.streams.join(", "));
    let consumer =
        BaseConsumer::from_config_and_context(&config.consumer(group), Callbacks(Arc::clone(&shared)));
    let consumer = Arc::new(consumer.map_err(|error| errors::error(error, doing()))?);
    if shared.group {
        let topics: Vec<&str> = shared.streams.keys().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(|error| errors::error(error, doing()))?;
    } else {
        let list = shared.partitions(&consumer)?;
        shared.assigned(&consumer, &list, false)?;
    }
    let (polled, polling) = (Arc::clone(&consumer), Arc::clone(&shared));
    let thread = std::thread::Builder::new().name("kafka-reader".into()).spawn(move || polling.poll(polled));
    thread.map_err(|error| Error::new(Kind::Internal, doing()).because(error))?;
    Ok(KafkaSubscription { shared, consumer })
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: Error) {
        self.lock().failed = Some(error);
        self.arrived.notify_one();
    }

    /// Notes whether partitions that became ours were begun.
    fn begun(&self, outcome: Result<()>) {
        self.lock().stuck = outcome.err().map(|error| (error.kind(), error.to_string()));
        self.arrived.notify_one();
    }

    /// All partitions of the streams.
    fn partitions(&self, consumer: &BaseConsumer<Callbacks>) -> Result<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for name in self.streams.keys() {
            let metadata = consumer.fetch_metadata(Some(name), self.config.timeout);
            let metadata =
                metadata.map_err(|error| errors::error(error, format!("looking for topic {name}")))?;
            for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
                list.add_partition(name, partition.id());
            }
        }
        Ok(list)
    }

    /// Partitions became ours: finds where to begin in each, and begins there.
    fn assigned(
        &self,
        consumer: &BaseConsumer<Callbacks>,
        list: &TopicPartitionList,
        cooperative: bool,
    ) -> Result<()> {
        let doing = |error| errors::error(error, "finding where to begin to read");
        let timeout = self.config.timeout;
        let known = if self.group {
            consumer.committed_offsets(list.clone(), timeout).map_err(doing)?
        } else {
            list.clone()
        };
        let mut begins = TopicPartitionList::new();
        let mut fresh = TopicPartitionList::new();
        for element in known.elements() {
            let (topic, partition) = (element.topic(), element.partition());
            let begin = match element.offset() {
                Offset::Offset(offset) => offset,
                _ => {
                    let begin = self.begin(consumer, topic, partition, self.start).map_err(doing)?;
                    fresh.add_partition_offset(topic, partition, Offset::Offset(begin)).map_err(doing)?;
                    begin
                }
            };
            begins.add_partition_offset(topic, partition, Offset::Offset(begin)).map_err(doing)?;
        }
        // A group that begins at the end must find its place again, even if nothing comes meanwhile.
        if self.group && fresh.count() > 0 && self.start != Start::Beginning {
            consumer.commit(&fresh, CommitMode::Sync).map_err(doing)?;
        }
        let outcome =
            if cooperative { consumer.incremental_assign(&begins) } else { consumer.assign(&begins) };
        outcome.map_err(doing)?;
        self.hold(&begins);
        self.changed.store(true, Ordering::Release);
        Ok(())
    }

    /// The offset at which to begin, or to go on after a seek.
    fn begin(
        &self,
        consumer: &BaseConsumer<Callbacks>,
        topic: &str,
        partition: i32,
        start: Start,
    ) -> std::result::Result<i64, KafkaError> {
        let timeout = self.config.timeout;
        let ends = || consumer.fetch_watermarks(topic, partition, timeout);
        match start {
            Start::Beginning => ends().map(|(first, _)| first),
            // Where a transaction stays open, rather what was there before than nothing.
            Start::End => match stable::end(&self.config, topic, partition, OPEN, ends)? {
                Some(end) => Ok(end),
                None => ends().map(|(_, stable)| stable),
            },
            Start::Time(time) => {
                let mut times = TopicPartitionList::new();
                // Of times Kafka keeps the milliseconds: what may be later within this one counts.
                times.add_partition_offset(topic, partition, Offset::Offset(time.div_euclid(1000)))?;
                let found = consumer.offsets_for_times(times, timeout)?;
                match found.elements().first().map(|element| element.offset()) {
                    Some(Offset::Offset(offset)) => Ok(offset),
                    _ => ends().map(|(_, end)| end),
                }
            }
        }
    }

    /// Notes partitions as ours. Their epoch is the time: it rises with every change of hands, as far as
    /// the machines' clocks agree; what fences a commit for certain is the group's own generation.
    fn hold(&self, begins: &TopicPartitionList) {
        let epoch = u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(0);
        let mut queue = self.lock();
        for element in begins.elements() {
            let Some(seat) = self.seat(element.topic(), element.partition()) else { continue };
            let offset = element.offset().to_raw().and_then(|offset| u64::try_from(offset).ok()).unwrap_or(0);
            queue.held.insert(seat.clone(), epoch);
            let (stream, partition) = seat;
            queue.deliveries.push_back(Delivery::Assigned(Cursor { stream, partition, epoch, offset }));
        }
        self.arrived.notify_one();
    }

    /// Partitions are no longer ours: what was read of them and not handed out is forgotten.
    fn revoked(&self, list: &TopicPartitionList) {
        let mut queue = self.lock();
        for element in list.elements() {
            let Some(seat) = self.seat(element.topic(), element.partition()) else { continue };
            queue.forget(&seat);
            if let Some(epoch) = queue.held.remove(&seat) {
                let (stream, partition) = seat;
                queue.deliveries.push_back(Delivery::Revoked { stream, partition, epoch });
            }
        }
        self.arrived.notify_one();
    }

    fn seat(&self, topic: &str, partition: i32) -> Option<Seat> {
        Some((Arc::clone(self.streams.get(topic)?), u32::try_from(partition).ok()?))
    }

    /// The polling thread: reads while there is room, and serves rebalances.
    fn poll(&self, consumer: Arc<BaseConsumer<Callbacks>>) {
        let (mut had_room, mut paused) = (Instant::now(), false);
        while !self.stop.load(Ordering::Acquire) {
            let full = self.lock().bytes >= QUEUE_BYTES;
            if self.seeking.load(Ordering::Acquire) || full && had_room.elapsed() < FULL {
                // Until there is room again, or the seek is over.
                std::thread::park_timeout(Duration::from_millis(2));
                continue;
            }
            let _polling = self.polling.lock().unwrap_or_else(PoisonError::into_inner);
            if full {
                if self.changed.swap(false, Ordering::AcqRel) || !paused {
                    self.polled_for(consumer.assignment().and_then(|held| consumer.pause(&held)));
                }
                paused = true;
            } else {
                if paused {
                    self.polled_for(consumer.assignment().and_then(|held| consumer.resume(&held)));
                }
                (had_room, paused) = (Instant::now(), false);
            }
            match consumer.poll(POLL) {
                Some(Ok(message)) => self.push(&message),
                Some(Err(error)) => self.polled(error),
                None => {}
            }
        }
        // The last handle leaves the group, which takes a moment: here, where nobody waits.
        while Arc::strong_count(&consumer) > 1 {
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    fn polled_for(&self, outcome: std::result::Result<(), KafkaError>) {
        if let Err(error) = outcome {
            self.polled(error);
        }
    }

    fn polled(&self, error: KafkaError) {
        match error.rdkafka_error_code() {
            _ if matches!(error, KafkaError::PartitionEOF(_)) => {}
            // librdkafka goes on by itself when the brokers are back.
            Some(
                Code::AllBrokersDown | Code::BrokerTransportFailure | Code::OperationTimedOut | Code::Resolve,
            ) => {
                tracing::debug!(%error, "reading waits for the Kafka brokers");
            }
            _ => {
                let topics = self.streams.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                self.fail(errors::unread(error, &topics, "reading from Kafka".to_owned()));
            }
        }
    }

    fn push(&self, message: &BorrowedMessage<'_>) {
        let Some(seat) = self.seat(message.topic(), message.partition()) else { return };
        let record = record::event(message, &seat.0);
        let mut queue = self.lock();
        queue.push(seat, record);
        self.arrived.notify_one();
    }
}

impl Queue {
    /// Adds a record to the last batch if it is of the same partition, else as a batch of its own.
    fn push(&mut self, seat: Seat, record: Record) {
        let Some(now) = self.held.get(&seat).copied() else { return };
        self.bytes += record.event.size();
        if let Some(Delivery::Batch { stream, partition, epoch, records }) = self.deliveries.back_mut()
            && (&*stream, *partition, *epoch) == (&seat.0, seat.1, now)
            && records.len() < BATCH
        {
            return records.push(record);
        }
        let (stream, partition) = seat;
        self.deliveries.push_back(Delivery::Batch { stream, partition, epoch: now, records: vec![record] });
    }

    /// Why nothing may ever come.
    fn stuck(&self) -> Option<Error> {
        self.stuck.as_ref().map(|(kind, why)| Error::new(*kind, why.clone()))
    }

    /// Drops the batches of a partition that were not handed out.
    fn forget(&mut self, seat: &Seat) {
        let mut freed = 0;
        self.deliveries.retain(|delivery| match delivery {
            Delivery::Batch { stream, partition, records, .. }
                if (stream, *partition) == (&seat.0, seat.1) =>
            {
                freed += size(records);
                false
            }
            _ => true,
        });
        self.bytes = self.bytes.saturating_sub(freed);
    }
}

/// Asks again while the brokers are away, but not for ever.
fn insist(stop: &AtomicBool, patience: Duration, mut ask: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match ask() {
            Err(error) if error.kind() == Kind::Unavailable => {
                if stop.load(Ordering::Acquire) || Instant::now() > deadline {
                    return Err(error);
                }
                tracing::warn!(%error, "trying again");
                std::thread::park_timeout(PAUSE);
            }
            outcome => return outcome,
        }
    }
}

fn size(records: &[Record]) -> usize {
    records.iter().map(|record| record.event.size()).sum()
}

/// An open reader of topics.
pub struct KafkaSubscription {
    shared: Arc<Shared>,
    consumer: Arc<BaseConsumer<Callbacks>>,
}

impl KafkaSubscription {
    fn epoch(&self, stream: &str, partition: u32) -> Option<u64> {
        self.shared.lock().held.get(&(Arc::from(stream), partition)).copied()
    }
}

#[async_trait]
impl Subscription for KafkaSubscription {
    async fn next(&mut self) -> Result<Delivery> {
        loop {
            {
                let mut queue = self.shared.lock();
                if let Some(delivery) = queue.deliveries.pop_front() {
                    if let Delivery::Batch { records, .. } = &delivery {
                        queue.bytes = queue.bytes.saturating_sub(size(records));
                    }
                    return Ok(delivery);
                }
                if let Some(error) = queue.failed.take().or_else(|| queue.stuck()) {
                    return Err(error);
                }
            }
            self.shared.arrived.notified().await;
        }
    }

    async fn commit(&mut self, cursor: &Cursor) -> Result<()> {
        let what = format!("{} partition {}", cursor.stream, cursor.partition);
        if self.epoch(&cursor.stream, cursor.partition) != Some(cursor.epoch) {
            return Err(Error::new(Kind::Busy, format!("{what} is no longer this reader's")));
        }
        if !self.shared.group {
            return Ok(());
        }
        let (topic, partition) = (self.shared.config.topic(&cursor.stream), partition(cursor.partition)?);
        let (consumer, offset) =
            (Arc::clone(&self.consumer), i64::try_from(cursor.offset).unwrap_or(i64::MAX));
        detached(move || {
            let mut list = TopicPartitionList::new();
            let added = list.add_partition_offset(&topic, partition, Offset::Offset(offset));
            let committed = added.and_then(|()| consumer.commit(&list, CommitMode::Sync));
            committed.map_err(|error| errors::error(error, format!("committing the cursor of {what}")))
        })
        .await
    }

    async fn seek(&mut self, stream: &str, partition_number: u32, to: SeekTo) -> Result<()> {
        let what = format!("{stream} partition {partition_number}");
        if self.epoch(stream, partition_number).is_none() {
            return Err(Error::new(Kind::Busy, format!("{what} is not this reader's")));
        }
        let (topic, partition) = (self.shared.config.topic(stream), partition(partition_number)?);
        let seat = (Arc::from(stream), partition_number);
        let (shared, consumer) = (Arc::clone(&self.shared), Arc::clone(&self.consumer));
        blocking(move || {
            shared.seeking.store(true, Ordering::Release);
            let _polling = shared.polling.lock().unwrap_or_else(PoisonError::into_inner);
            let place = match to {
                SeekTo::Offset(offset) => Ok(i64::try_from(offset).unwrap_or(i64::MAX)),
                SeekTo::Beginning => shared.begin(&consumer, &topic, partition, Start::Beginning),
                SeekTo::End => shared.begin(&consumer, &topic, partition, Start::End),
                SeekTo::Time(time) => shared.begin(&consumer, &topic, partition, Start::Time(time)),
            };
            let sought = place.and_then(|place| {
                let offset = Offset::Offset(place);
                consumer.seek(&topic, partition, offset, shared.config.timeout)
            });
            shared.lock().forget(&seat);
            shared.seeking.store(false, Ordering::Release);
            sought.map_err(|error| errors::error(error, format!("seeking in {what}")))
        })
        .await
    }
}

impl Drop for KafkaSubscription {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

fn partition(number: u32) -> Result<i32> {
    i32::try_from(number)
        .map_err(|error| Error::new(Kind::Config, "the number of a partition").because(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away() -> Result<()> {
        Err(Error::new(Kind::Unavailable, "away"))
    }

    #[tokio::test]
    async fn whoever_asks_again_hears_again_why_nothing_comes() {
        let (streams, group) = (vec![Arc::from("s")], Some("g".to_owned()));
        let subscribe = Subscribe { streams, group, start: Start::End };
        let mut subscription = open(&KafkaConfig::new(["127.0.0.1:1"]), subscribe).unwrap();
        subscription.shared.begun(away());
        for _ in 0..2 {
            assert_eq!(subscription.next().await.unwrap_err().kind(), Kind::Unavailable);
        }
        subscription.shared.begun(Ok(()));
        assert!(subscription.shared.lock().stuck().is_none(), "the group has shared anew");
    }

    #[test]
    fn a_place_to_begin_is_asked_for_until_there_is_an_answer() {
        let (stop, mut asked) = (AtomicBool::new(false), 0);
        let second = || {
            asked += 1;
            if asked < 2 { away() } else { Ok(()) }
        };
        insist(&stop, PATIENCE, second).unwrap();
        assert_eq!(asked, 2);
        let refused = insist(&stop, PATIENCE, || Err(Error::new(Kind::Refused, "no")));
        assert_eq!(refused.unwrap_err().kind(), Kind::Refused);
        assert_eq!(insist(&stop, Duration::ZERO, away).unwrap_err().kind(), Kind::Unavailable);
        stop.store(true, Ordering::Release);
        assert!(insist(&stop, PATIENCE, away).is_err(), "it was closed");
    }
}
