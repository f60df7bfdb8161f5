//! What the cluster holds of our streams, and how far groups have come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use headwater_core::ports::{BusStatus, GroupStatus, StreamStatus, Subscribe};
use headwater_core::{Error, Result};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::groups::{GroupInfo, GroupMemberInfo};
use rdkafka::{Offset, TopicPartitionList};

use super::client::Asker;
use super::context::Listener;
use super::topics::{Topic, Topics, blocking};
use super::{KafkaConfig, errors, positions};

/// Asking for a group's cursors takes a client of its own: no more groups are asked.
const MAX_GROUPS: usize = 20;

/// The groups that subscribed through this bus: known also while nobody reads.
#[derive(Default)]
pub struct Groups(Mutex<BTreeSet<String>>);

impl Groups {
    /// Remembers a subscription's group.
    pub fn note(&self, subscribe: &Subscribe) {
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        groups.extend(subscribe.group.clone());
    }

    fn names(&self) -> BTreeSet<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The first and the end offset of each partition of a topic.
type Ends = Vec<(i64, i64)>;

/// Asks the cluster.
pub async fn read(config: &KafkaConfig, topics: &Topics, groups: &Groups) -> Result<BusStatus> {
    let (config, asker) = (config.clone(), topics.asker());
    let (streams, mut names) = (topics.all(), groups.names());
    let kept = topics.partitions(&config.positions_topic).await?.is_some();
    let ask = move || {
        names.extend(readers(&asker, &config, &streams)?);
        let mut ends = Vec::new();
        for (_, topic) in &streams {
            ends.push(watermarks(&asker, &config, topic)?);
        }
        let mut status = BusStatus { kind: "kafka".into(), ..BusStatus::default() };
        for ((stream, topic), ends) in streams.iter().zip(&ends) {
            status.streams.push(StreamStatus {
                stream: Arc::clone(stream),
                partitions: topic.partitions,
                events: ends.iter().map(|(first, end)| u64::try_from(end - first).unwrap_or(0)).sum(),
                bytes: None,
                newest: None,
                groups: Vec::new(),
            });
        }
        for group in names.into_iter().take(MAX_GROUPS) {
            let cursors = cursors(&config, &group, &streams)?;
            for (at, (_, topic)) in streams.iter().enumerate() {
                let lag = lag(&ends[at], topic, &cursors);
                let group =
                    lag.map(|lag_events| GroupStatus { group: group.clone(), lag_events, lag_seconds: None });
                status.streams[at].groups.extend(group);
            }
        }
        status.streams.sort_by(|a, b| a.stream.cmp(&b.stream));
        if kept {
            status.checkpoints = positions::read_all(&config, &asker)?;
        }
        Ok(status)
    };
    blocking(ask).await
}

/// The groups with members that read our topics now; the cluster may have thousands of others.
fn readers(asker: &Asker, config: &KafkaConfig, streams: &[(Arc<str>, Topic)]) -> Result<Vec<String>> {
    let list = asker.fetch_group_list(None, config.timeout);
    let list = list.map_err(|error| errors::error(error, "listing consumer groups"))?;
    let reads = |group: &&GroupInfo| {
        let mut subscriptions = group.members().iter().filter_map(GroupMemberInfo::metadata);
        group.protocol_type() == "consumer"
            && subscriptions.any(|names| streams.iter().any(|(_, topic)| has(names, &topic.name)))
    };
    Ok(list.groups().iter().filter(reads).map(|group| group.name().to_owned()).collect())
}

/// Whether a member's subscription, as Kafka's consumers write it, names a topic: a version, then topics,
/// each after its length in two bytes.
fn has(subscription: &[u8], topic: &str) -> bool {
    let Ok(length) = u16::try_from(topic.len()) else { return false };
    let name = [&length.to_be_bytes()[..], topic.as_bytes()].concat();
    memchr::memmem::find(subscription, &name).is_some()
}

fn watermarks(asker: &Asker, config: &KafkaConfig, topic: &Topic) -> Result<Ends> {
    let ask = |partition: u32| {
        let partition = i32::try_from(partition).unwrap_or(i32::MAX);
        asker.fetch_watermarks(&topic.name, partition, config.timeout)
    };
    let doing = |error| errors::error(error, format!("reading the offsets of topic {}", topic.name));
    (0..topic.partitions).map(ask).collect::<std::result::Result<_, _>>().map_err(doing)
}

/// A group's committed offsets, by topic and partition.
type Cursors = BTreeMap<(String, u32), i64>;

fn cursors(config: &KafkaConfig, group: &str, streams: &[(Arc<str>, Topic)]) -> Result<Cursors> {
    let doing = |error| -> Error { errors::error(error, format!("reading the cursors of group {group}")) };
    let consumer: BaseConsumer<Listener> =
        BaseConsumer::from_config_and_context(&config.consumer(group), Listener::default()).map_err(doing)?;
    let mut list = TopicPartitionList::new();
    for (_, topic) in streams {
        list.add_partition_range(&topic.name, 0, i32::try_from(topic.partitions).unwrap_or(i32::MAX) - 1);
    }
    let committed = consumer.committed_offsets(list, config.timeout).map_err(doing)?;
    let committed = committed.elements().into_iter().filter_map(|element| {
        let Offset::Offset(offset) = element.offset() else { return None };
        Some(((element.topic().to_owned(), u32::try_from(element.partition()).ok()?), offset))
    });
    Ok(committed.collect())
}

/// How many events a group has yet to read of a topic; `None` if it never read any of it.
fn lag(ends: &Ends, topic: &Topic, cursors: &Cursors) -> Option<u64> {
    let cursor = |partition: u32| cursors.get(&(topic.name.clone(), partition)).copied();
    (0..topic.partitions).find_map(cursor)?;
    let lags = (0..topic.partitions).zip(ends).map(|(partition, (first, end))| {
        let at = cursor(partition).unwrap_or(*first).max(*first);
        u64::try_from(end - at).unwrap_or(0)
    });
    Some(lags.sum())
}
