//! What the cluster holds of our streams, and how far groups have come.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use headwater_core::Result;
use headwater_core::ports::{BusStatus, StreamStatus, Subscribe};
use rdkafka::consumer::Consumer;
use rdkafka::groups::{GroupInfo, GroupMemberInfo};

use super::client::Asker;
use super::lag::{self, Ends};
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
            let lags = lag::of_group(&config, &group, &streams, &ends)?;
            for (stream, lag) in status.streams.iter_mut().zip(lags) {
                stream.groups.extend(lag);
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
