//! The topic of positions: how far each source has come, the newest record of each key.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use headwater_core::{Checkpoint, Error, Kind, Result, ResultExt};
use rdkafka::Message;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::client::Asker;
use super::context::Listener;
use super::{KafkaConfig, errors, stable};

/// The newest checkpoint of a source. Reads the topic to its end; blocks.
pub fn read(config: &KafkaConfig, asker: &Asker, source: &str) -> Result<Option<Checkpoint>> {
    wait_until_stable(config, asker)?;
    let value = newest(config, asker)?.remove(source);
    let what = || {
        format!("the checkpoint of {source} in topic {} is not one of Headwater's", config.positions_topic)
    };
    let parse = |value: Vec<u8>| serde_json::from_slice(&value).doing(Kind::Decode, what);
    let hint = "does another program write there? Name a topic of Headwater's own with `positions_topic`";
    value.map(parse).transpose().map_err(|error| error.hint(hint))
}

/// The newest checkpoints of all sources; blocks. What else somebody wrote into the topic is no source's.
pub fn read_all(config: &KafkaConfig, asker: &Asker) -> Result<Vec<Checkpoint>> {
    let values = newest(config, asker)?.into_values();
    Ok(values.filter_map(|value| serde_json::from_slice(&value).ok()).collect())
}

/// Waits until all that is in the topic now can be read, of every source.
fn wait_until_stable(config: &KafkaConfig, asker: &Asker) -> Result<()> {
    let topic = &config.positions_topic;
    let doing = || format!("reading checkpoints from topic {topic}");
    // The brokers end a transaction of a process that is gone after its timeout.
    let patience = config.transaction_timeout() + config.timeout;
    let stable = || asker.fetch_watermarks(topic, 0, config.timeout);
    let end = stable::end(config, topic, 0, patience, stable);
    if end.map_err(|error| errors::error(error, doing()))?.is_some() {
        return Ok(());
    }
    let hint = format!(
        "a transaction in topic {topic} stands open: kafka-transactions.sh find-hanging shows and ends it"
    );
    Err(Error::new(Kind::Unavailable, doing()).hint(hint))
}

/// The newest value of each key.
fn newest(config: &KafkaConfig, asker: &Asker) -> Result<BTreeMap<String, Vec<u8>>> {
    let topic = &config.positions_topic;
    let doing = || format!("reading checkpoints from topic {topic}");
    // A consumer that is told to begin at the beginning looks for it only after half a second.
    let ends = asker.fetch_watermarks(topic, 0, config.timeout);
    let (first, end) = ends.map_err(|error| errors::error(error, doing()))?;
    if first == end {
        return Ok(BTreeMap::new());
    }
    let mut settings = config.consumer("headwater-positions");
    settings.set("enable.partition.eof", "true");
    // The end of the topic is told by a fetch that finds nothing: it need not wait for more.
    settings.set("fetch.wait.max.ms", "1");
    let consumer: BaseConsumer<Listener> =
        BaseConsumer::from_config_and_context(&settings, Listener::default())
            .map_err(|error| errors::error(error, doing()))?;
    let mut from = TopicPartitionList::new();
    let begin = from.add_partition_offset(topic, 0, Offset::Offset(first));
    begin.and_then(|()| consumer.assign(&from)).map_err(|error| errors::error(error, doing()))?;
    let mut newest = BTreeMap::new();
    let mut deadline = Instant::now() + config.timeout;
    loop {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                deadline = Instant::now() + config.timeout;
                let source = String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned();
                match message.payload() {
                    Some(value) => drop(newest.insert(source, value.to_vec())),
                    None => drop(newest.remove(&source)),
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(newest),
            // librdkafka goes on by itself; what lasts ends at the deadline.
            Some(Err(error)) if Instant::now() > deadline => return Err(errors::error(error, doing())),
            Some(Err(_)) => {}
            None if Instant::now() > deadline => {
                return Err(Error::new(Kind::Unavailable, doing()).hint("the brokers do not answer"));
            }
            None => {}
        }
    }
}
