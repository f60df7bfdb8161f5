//! The topic of positions: how far each source has come, the newest record of each key.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use headwater_core::{Checkpoint, Error, Kind, Result, ResultExt};
use rdkafka::Message;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::{Offset, TopicPartitionList};

use super::client::Asker;
use super::context::Listener;
use super::{KafkaConfig, errors, stable};

/// How many of the last offsets are looked at first for a source's newest checkpoint. What is open writes all the
/// time, so that it mostly is among them; and the topic may have gigabytes.
const LAST: i64 = 256;

/// By how much more is looked at when it is not.
const FURTHER: i64 = 16;

/// The pause before a question is asked again.
const PAUSE: Duration = Duration::from_millis(20);

/// The newest checkpoint of a source. Reads the topic back from its end; blocks.
pub fn read(config: &KafkaConfig, asker: &Asker, source: &str) -> Result<Option<Checkpoint>> {
    wait_until_stable(config, asker)?;
    let (first, end) = ends(config, asker)?;
    let mut many = LAST;
    let value = loop {
        let from = end.saturating_sub(many).max(first);
        let found = newest(config, from, end)?.remove(source);
        if found.is_some() || from == first {
            break found.flatten();
        }
        many = many.saturating_mul(FURTHER);
    };
    let what = || {
        format!("the checkpoint of {source} in topic {} is not one of Headwater's", config.positions_topic)
    };
    let parse = |value: Vec<u8>| serde_json::from_slice(&value).doing(Kind::Decode, what);
    let hint = "does another program write there? Name a topic of Headwater's own with `positions_topic`";
    value.map(parse).transpose().map_err(|error| error.hint(hint))
}

/// The newest checkpoints of all sources; blocks. What else somebody wrote into the topic is no source's.
pub fn read_all(config: &KafkaConfig, asker: &Asker) -> Result<Vec<Checkpoint>> {
    let (first, end) = ends(config, asker)?;
    let values = newest(config, first, end)?.into_values().flatten();
    Ok(values.filter_map(|value| serde_json::from_slice(&value).ok()).collect())
}

/// Waits until all that is in the topic now can be read, of every source.
fn wait_until_stable(config: &KafkaConfig, asker: &Asker) -> Result<()> {
    let (topic, doing) = (&config.positions_topic, || doing(config));
    // The brokers end a transaction of a process that is gone after its timeout.
    let patience = config.transaction_timeout() + config.timeout;
    let stable = || asker.fetch_watermarks(topic, 0, config.timeout);
    let end = patiently(config, || stable::end(config, topic, 0, patience, stable));
    if end.map_err(|error| errors::error(error, doing()))?.is_some() {
        return Ok(());
    }
    let hint = format!(
        "a transaction in topic {topic} stands open: kafka-transactions.sh find-hanging shows and ends it"
    );
    Err(Error::new(Kind::Unavailable, doing()).hint(hint))
}

/// Asks again, for as long as the brokers may take to answer: one that has just begun leads no partition yet.
fn patiently<T>(config: &KafkaConfig, ask: impl Fn() -> KafkaResult<T>) -> KafkaResult<T> {
    let unled = |error: &KafkaError| {
        let code = error.rdkafka_error_code();
        matches!(code, Some(Code::NotLeaderForPartition | Code::LeaderNotAvailable))
    };
    let deadline = Instant::now() + config.timeout;
    loop {
        match ask() {
            Err(error) if unled(&error) && Instant::now() < deadline => std::thread::sleep(PAUSE),
            answer => return answer,
        }
    }
}

fn doing(config: &KafkaConfig) -> String {
    format!("reading checkpoints from topic {}", config.positions_topic)
}

/// The first offset of the topic, and its end.
fn ends(config: &KafkaConfig, asker: &Asker) -> Result<(i64, i64)> {
    let ends = patiently(config, || asker.fetch_watermarks(&config.positions_topic, 0, config.timeout));
    ends.map_err(|error| errors::error(error, doing(config)))
}

/// The newest value of each key from an offset on; `None` for one that was deleted.
fn newest(config: &KafkaConfig, from: i64, end: i64) -> Result<BTreeMap<String, Option<Vec<u8>>>> {
    let (topic, doing) = (&config.positions_topic, || doing(config));
    // A consumer that is told to begin at the beginning looks for it only after half a second.
    if from == end {
        return Ok(BTreeMap::new());
    }
    let mut settings = config.consumer("headwater-positions");
    settings.set("enable.partition.eof", "true");
    // The end of the topic is told by a fetch that finds nothing: it need not wait for more.
    settings.set("fetch.wait.max.ms", "1");
    let consumer: BaseConsumer<Listener> =
        BaseConsumer::from_config_and_context(&settings, Listener::default())
            .map_err(|error| errors::error(error, doing()))?;
    let mut place = TopicPartitionList::new();
    let begin = place.add_partition_offset(topic, 0, Offset::Offset(from));
    begin.and_then(|()| consumer.assign(&place)).map_err(|error| errors::error(error, doing()))?;
    let mut newest = BTreeMap::new();
    let (mut deadline, mut trouble) = (Instant::now() + config.timeout, None);
    loop {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                (deadline, trouble) = (Instant::now() + config.timeout, None);
                let source = String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned();
                newest.insert(source, message.payload().map(<[u8]>::to_vec));
            }
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(newest),
            Some(Err(error)) => trouble = Some(error),
            None => {}
        }
        // librdkafka goes on by itself, and says most errors once; what lasts ends at the deadline.
        if Instant::now() > deadline {
            return Err(match trouble {
                Some(error) => errors::unread(error, topic, doing()),
                None => Error::new(Kind::Unavailable, doing()).hint("the brokers do not answer"),
            });
        }
    }
}
