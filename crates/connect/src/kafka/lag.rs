//! How far a group has come: the events that it has yet to read, and how old the oldest of them is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_core::ports::GroupStatus;
use headwater_core::{Error, Result};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};

use super::context::Listener;
use super::topics::Topic;
use super::{KafkaConfig, errors};
use crate::store::now;

/// How long single records are looked at, at most: how old they are is not worth a longer wait.
const LOOK: Duration = Duration::from_secs(2);

/// The first and the end offset of each partition of a topic.
pub type Ends = Vec<(i64, i64)>;

/// A partition of a topic.
type Place = (String, u32);

/// What a group has yet to read of a partition.
struct Unread {
    place: Place,
    at: i64,
    events: u64,
}

/// How far a group has come in each of these streams; `None` where it never read. Blocks.
pub fn of_group(
    config: &KafkaConfig,
    group: &str,
    streams: &[(Arc<str>, Topic)],
    ends: &[Ends],
) -> Result<Vec<Option<GroupStatus>>> {
    let doing = |error| -> Error { errors::error(error, format!("reading the cursors of group {group}")) };
    let mut settings = config.consumer(group);
    settings.set("enable.partition.eof", "true");
    let consumer: BaseConsumer<Listener> =
        BaseConsumer::from_config_and_context(&settings, Listener::default()).map_err(doing)?;
    let cursors = cursors(&consumer, config, streams).map_err(doing)?;
    let unread: Vec<_> =
        streams.iter().zip(ends).map(|((_, topic), ends)| unread(topic, ends, &cursors)).collect();
    let mut times = BTreeMap::new();
    let deadline = Instant::now() + LOOK;
    for topic in unread.iter().flatten() {
        committed_at(&consumer, topic, deadline, &mut times);
    }
    let status = |mut unread: Vec<Unread>| {
        // Where no event follows, what follows is the end of a transaction.
        unread.retain(|unread| times.get(&unread.place) != Some(&None));
        GroupStatus {
            group: group.to_owned(),
            lag_events: unread.iter().map(|unread| unread.events).sum(),
            lag_seconds: age(&unread, &times),
        }
    };
    Ok(unread.into_iter().map(|unread| unread.map(status)).collect())
}

/// A group's committed offsets.
fn cursors(
    consumer: &BaseConsumer<Listener>,
    config: &KafkaConfig,
    streams: &[(Arc<str>, Topic)],
) -> rdkafka::error::KafkaResult<BTreeMap<Place, i64>> {
    let mut list = TopicPartitionList::new();
    for (_, topic) in streams {
        list.add_partition_range(&topic.name, 0, i32::try_from(topic.partitions).unwrap_or(i32::MAX) - 1);
    }
    let committed = consumer.committed_offsets(list, config.timeout)?;
    let committed = committed.elements().into_iter().filter_map(|element| {
        let Offset::Offset(offset) = element.offset() else { return None };
        Some(((element.topic().to_owned(), u32::try_from(element.partition()).ok()?), offset))
    });
    Ok(committed.collect())
}

/// What a group has yet to read of a topic; `None` if it never read any of it.
fn unread(topic: &Topic, ends: &Ends, cursors: &BTreeMap<Place, i64>) -> Option<Vec<Unread>> {
    let cursor = |partition: u32| cursors.get(&(topic.name.clone(), partition)).copied();
    (0..topic.partitions).find_map(cursor)?;
    let unread = (0..topic.partitions).zip(ends).map(|(partition, (first, end))| {
        let at = cursor(partition).unwrap_or(*first).max(*first);
        Unread { place: (topic.name.clone(), partition), at, events: u64::try_from(end - at).unwrap_or(0) }
    });
    Some(unread.collect())
}

/// When the first unread event of each partition of a topic was committed, in milliseconds since 1970, as far
/// as the brokers say so in time; `None` where there is no unread event.
fn committed_at(
    consumer: &BaseConsumer<Listener>,
    unread: &[Unread],
    deadline: Instant,
    times: &mut BTreeMap<Place, Option<i64>>,
) {
    let mut wanted = TopicPartitionList::new();
    for Unread { place: (topic, partition), at, .. } in unread.iter().filter(|unread| unread.events > 0) {
        // An offset of a broker is never one that cannot be asked for.
        let _ = wanted.add_partition_offset(topic, number(*partition), Offset::Offset(*at));
    }
    if wanted.count() == 0 || consumer.assign(&wanted).is_err() {
        return;
    }
    let Some(Unread { place: (topic, _), .. }) = unread.first() else { return };
    let mut found = BTreeMap::new();
    while found.len() < wanted.count() && Instant::now() < deadline {
        let (partition, time) = match consumer.poll(deadline.saturating_duration_since(Instant::now())) {
            Some(Ok(message)) => (message.partition(), message.timestamp().to_millis().or(Some(i64::MAX))),
            // Nothing but the ends of transactions.
            Some(Err(KafkaError::PartitionEOF(partition))) => (partition, None),
            _ => continue,
        };
        let mut done = TopicPartitionList::new();
        done.add_partition(topic, partition);
        // One that cannot be paused is read on, to no harm.
        let _ = consumer.pause(&done);
        found.entry((topic.clone(), u32::try_from(partition).unwrap_or(u32::MAX))).or_insert(time);
    }
    times.append(&mut found);
}

fn number(partition: u32) -> i32 {
    i32::try_from(partition).unwrap_or(i32::MAX)
}

/// How old the oldest unread event is, in seconds; 0 when there is none, `None` where it is not known.
fn age(unread: &[Unread], times: &BTreeMap<Place, Option<i64>>) -> Option<f64> {
    let behind = unread.iter().filter(|unread| unread.events > 0);
    let times: Option<Vec<i64>> = behind.map(|unread| times.get(&unread.place).copied().flatten()).collect();
    let oldest = times?.into_iter().min();
    Some(oldest.map_or(0.0, |oldest| (now() / 1000 - oldest).max(0) as f64 / 1e3))
}
