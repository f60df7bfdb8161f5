//! The topics of streams: making them, their limits, and whether they stay as they are.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use headwater_core::{Error, Kind, Result, Retention, StreamSpec};
use rdkafka::admin::{AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode as Code;

use super::client::{Asker, Client};
use super::learned::Learned;
use super::{KafkaConfig, errors};

/// A record batch of librdkafka's default size passes the default limit of a topic.
const BATCH_BYTES: u32 = 1_000_000;

/// What is known of topics.
pub struct Topics {
    pub(super) config: KafkaConfig,
    client: Client,
    known: RwLock<HashMap<Arc<str>, Topic>>,
    /// What the brokers refused.
    pub learned: Arc<Learned>,
}

/// A stream's topic, as it was when the stream was ensured.
#[derive(Debug, Clone, Default)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its partitions.
    pub partitions: u32,
    /// The most bytes of a record batch (`max.message.bytes`); `None` when we may not know.
    pub limit: Option<u32>,
    /// Whether it is compacted: then it takes no record without a key.
    pub compacted: bool,
    /// The brokers refuse records of this size as too large, whatever the limit says.
    pub refused: Option<usize>,
    /// The brokers refuse records without a key, whether or not it is known to be compacted.
    pub needs_key: bool,
    /// What is wrong with it since.
    pub wrong: Option<String>,
}

/// What the cluster says of a topic.
enum Seen {
    /// There is none of that name.
    Absent,
    /// A partition of it has no leader just now.
    Leaderless,
    /// It has that many partitions, and each has a leader.
    Led(u32),
}

impl Topics {
    pub fn new(config: &KafkaConfig) -> Result<Self> {
        let (client, learned) = (Client::start(config)?, Arc::default());
        Ok(Self { config: config.clone(), client, known: RwLock::default(), learned })
    }

    /// What is known of a stream's topic.
    pub fn get(&self, stream: &str) -> Option<Topic> {
        let topic = self.read().get(stream).cloned()?;
        let (refused, needs_key) = (self.learned.limit(&topic.name), self.learned.needs_key(&topic.name));
        Some(Topic { refused, needs_key, ..topic })
    }

    /// How many partitions a stream's topic has; 0 where that is not known.
    pub fn partitions_of(&self, stream: &str) -> u32 {
        self.read().get(stream).map_or(0, |topic| topic.partitions)
    }

    /// All that is known.
    pub fn all(&self) -> Vec<(Arc<str>, Topic)> {
        self.read().iter().map(|(stream, topic)| (Arc::clone(stream), topic.clone())).collect()
    }

    /// The most bytes that a record batch may have, whatever its topic.
    pub fn batch_bytes(&self) -> u32 {
        let known = self.read().values().filter_map(|topic| topic.limit).fold(BATCH_BYTES, u32::min);
        self.learned.batch().map_or(known, |learned| known.min(learned))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<Arc<str>, Topic>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<Arc<str>, Topic>> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure of a stream's topic, and remembers it.
    pub async fn ensure(&self, spec: &StreamSpec) -> Result<u32> {
        headwater_core::check_stream_name(&spec.name)?;
        let name = self.config.topic(&spec.name);
        if name == self.config.positions_topic {
            let what =
                format!("stream {} cannot be topic {name}: it keeps how far sources have come", spec.name);
            return Err(Error::new(Kind::Config, what)
                .hint("give the stream another name, or name another topic with `positions_topic`"));
        }
        let settings = settings(&spec.retention);
        let partitions = self.make(&name, spec.partitions, &settings).await?;
        if partitions != spec.partitions {
            return Err(contract(&name, partitions, spec.partitions));
        }
        let described = self.describe(&name).await?;
        let limit = described.get("max.message.bytes").and_then(|bytes| bytes.parse().ok());
        let policy = described.get("cleanup.policy");
        let compacted = policy.map_or(spec.retention.compact, |policy| policy.contains("compact"));
        if self.get(&spec.name).is_none() {
            self.compare(&name, &settings, &described);
        }
        let topic = Topic { name, partitions, limit, compacted, ..Topic::default() };
        let mut known = self.write();
        if known.get(&spec.name).is_some_and(|before| before.limit != limit) {
            self.learned.forget(&topic.name);
        }
        known.insert(Arc::clone(&spec.name), topic);
        Ok(partitions)
    }

    /// Says where a topic that was there keeps events for another time than its stream says.
    fn compare(&self, name: &str, wanted: &[(&str, String)], described: &HashMap<String, String>) {
        let differing = differing(wanted, described);
        if !differing.is_empty() {
            let has = |(key, _): &&(&str, String)| format!("{key}={}", described[*key]);
            let has: Vec<String> = differing.iter().map(has).collect();
            tracing::warn!(
                "topic {name} has {}: it lets go of other events than its stream's `retention` says. Change that, or \
                 run: {}",
                has.join(" "),
                self.alter_command(name, &differing)
            );
        }
    }

    /// The command that changes a topic's settings.
    pub(super) fn alter_command(&self, name: &str, settings: &[&(&str, String)]) -> String {
        let pair = |(key, value): &&(&str, String)| format!("{key}={value}");
        let pairs: Vec<String> = settings.iter().map(pair).collect();
        let (brokers, pairs) = (self.config.brokers.join(","), pairs.join(","));
        format!("kafka-configs.sh --bootstrap-server {brokers} --alter --topic {name} --add-config {pairs}")
    }

    /// Remembers a stream that is only read, if it is there; says whether it is.
    pub async fn find(&self, stream: &Arc<str>) -> Result<bool> {
        let name = self.config.topic(stream);
        let found = self.partitions(&name).await.map_err(|error| match error.kind() {
            Kind::Refused if error.hint_text().is_none() => {
                error.hint(format!("grant this user the rights to describe and read topic {name}"))
            }
            _ => error,
        });
        let Some(partitions) = found? else { return Ok(false) };
        self.write().entry(Arc::clone(stream)).or_insert(Topic { name, partitions, ..Topic::default() });
        Ok(true)
    }

    /// Makes a topic if there is none, and returns its partitions.
    pub(super) async fn make(&self, name: &str, partitions: u32, settings: &[(&str, String)]) -> Result<u32> {
        let command = || self.create_command(name, partitions, settings);
        let seen = self.partitions(name).await.map_err(|error| match error.kind() {
            Kind::Refused if error.hint_text().is_none() => error.hint(format!(
                "grant this user the rights to describe, read and write topic {name}; if it does not exist, let \
                 someone who may make it: {}",
                command()
            )),
            _ => error,
        });
        if let Some(partitions) = seen? {
            return Ok(partitions);
        }
        if self.create(name, partitions, settings, &self.options()).await? {
            tracing::info!(topic = name, partitions, "made the topic");
        }
        self.appears(name).await
    }

    /// Makes a topic; says whether it did not exist.
    pub(super) async fn create(
        &self,
        name: &str,
        partitions: u32,
        settings: &[(&str, String)],
        options: &AdminOptions,
    ) -> Result<bool> {
        let count = i32::try_from(partitions).unwrap_or(i32::MAX);
        let replication = TopicReplication::Fixed(self.config.replication.map_or(-1, i32::from));
        let mut topic = NewTopic::new(name, count, replication);
        for (key, value) in settings {
            topic = topic.set(key, value);
        }
        let doing = || format!("making topic {name}");
        let made = self.client.admin.create_topics([&topic], options).await;
        match made.map_err(|error| errors::error(error, doing()))?.into_iter().next() {
            Some(Err((_, Code::TopicAlreadyExists))) => Ok(false),
            Some(Err((_, code))) => Err(Error::new(errors::kind_of_code(code), doing())
                .because(rdkafka::error::KafkaError::AdminOp(code))
                .hint(format!(
                    "let someone who may make it: {}",
                    self.create_command(name, partitions, settings)
                ))),
            Some(Ok(_)) | None => Ok(true),
        }
    }

    /// The command that makes a topic, for someone who may.
    fn create_command(&self, name: &str, partitions: u32, settings: &[(&str, String)]) -> String {
        let brokers = self.config.brokers.join(",");
        let mut command = format!(
            "kafka-topics.sh --bootstrap-server {brokers} --create --topic {name} --partitions {partitions}"
        );
        if let Some(replication) = self.config.replication {
            command += &format!(" --replication-factor {replication}");
        }
        for (key, value) in settings {
            command += &format!(" --config {key}={value}");
        }
        command
    }

    /// Waits until a topic that was just made has leaders for all its partitions.
    async fn appears(&self, name: &str) -> Result<u32> {
        let deadline = Instant::now() + self.config.timeout;
        loop {
            if let Seen::Led(partitions) = self.look_for(name).await? {
                return Ok(partitions);
            }
            if Instant::now() > deadline {
                return Err(Error::new(
                    Kind::Unavailable,
                    format!("topic {name} was made and does not appear"),
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How many partitions a topic has; `None` if there is no such topic. An error of kind `Unavailable`
    /// when a partition of it has no leader.
    pub async fn partitions(&self, name: &str) -> Result<Option<u32>> {
        match self.look_for(name).await? {
            Seen::Absent => Ok(None),
            Seen::Led(partitions) => Ok(Some(partitions)),
            Seen::Leaderless => {
                Err(Error::new(Kind::Unavailable, format!("a partition of topic {name} has no leader"))
                    .hint("are all brokers of the cluster running?"))
            }
        }
    }

    async fn look_for(&self, name: &str) -> Result<Seen> {
        let (asker, timeout, name) = (self.asker(), self.config.timeout, name.to_owned());
        let look = move || {
            let listener = asker.context();
            let doing = || format!("looking for topic {name}");
            let metadata = asker.fetch_metadata(Some(&name), timeout);
            let metadata =
                metadata.map_err(|error| errors::unanswered(error, listener.failure(), doing()))?;
            listener.forget();
            let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == name) else {
                return Ok(Seen::Absent);
            };
            match topic.error().map(Code::from) {
                None | Some(Code::LeaderNotAvailable) => {}
                Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => return Ok(Seen::Absent),
                Some(code) => {
                    let error = rdkafka::error::KafkaError::MetadataFetch(code);
                    return Err(errors::error(error, doing()));
                }
            }
            let led = topic.partitions().iter().all(|partition| partition.leader() >= 0);
            Ok(match u32::try_from(topic.partitions().len()) {
                Ok(count) if count > 0 && led => Seen::Led(count),
                _ => Seen::Leaderless,
            })
        };
        blocking(look).await
    }

    /// The settings of a topic; none when we may not read them.
    pub(super) async fn describe(&self, name: &str) -> Result<HashMap<String, String>> {
        let described =
            self.client.admin.describe_configs([&ResourceSpecifier::Topic(name)], &self.options()).await;
        let described =
            described.map_err(|error| errors::error(error, format!("reading the settings of {name}")))?;
        match described.into_iter().next() {
            Some(Ok(resource)) => {
                let entries = resource.entries.into_iter();
                Ok(entries.filter_map(|entry| Some((entry.name, entry.value?))).collect())
            }
            Some(Err(code)) => {
                tracing::warn!(topic = name, %code, "cannot read the topic's settings (the right DescribeConfigs is missing); its limits are not known");
                Ok(HashMap::new())
            }
            None => Ok(HashMap::new()),
        }
    }

    pub(super) fn options(&self) -> AdminOptions {
        AdminOptions::new()
            .request_timeout(Some(self.config.timeout))
            .operation_timeout(Some(self.config.timeout))
    }

    /// Looks whether the topics have as many partitions as they had; marks those that do not.
    pub async fn refresh(&self) {
        for (stream, topic) in self.all() {
            let wrong = match self.look_for(&topic.name).await {
                Ok(Seen::Led(partitions)) if partitions != topic.partitions => {
                    contract(&topic.name, partitions, topic.partitions).to_string()
                }
                Ok(_) => continue,
                // The brokers are away: nothing new is known of the others either.
                Err(_) => return,
            };
            tracing::error!(%stream, "{wrong}");
            if let Some(topic) = self.write().get_mut(&stream) {
                topic.wrong = Some(wrong);
            }
        }
    }

    /// What answers questions about offsets and groups.
    pub fn asker(&self) -> Asker {
        Arc::clone(&self.client.asker)
    }
}

/// What to set on a new topic, so that events stay at least as long as the stream says. What is compacted
/// keeps the newest of each key whatever its age: so nothing is deleted there, only compacted later.
fn settings(retention: &Retention) -> Vec<(&'static str, String)> {
    let age = retention.max_age.map(|age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
    if retention.compact {
        let lag = age.map(|age| ("min.compaction.lag.ms", age.to_string()));
        return [("cleanup.policy", "compact".to_owned())].into_iter().chain(lag).collect();
    }
    let bytes = retention.max_bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    vec![
        ("cleanup.policy", "delete".to_owned()),
        ("retention.ms", age.unwrap_or(-1).to_string()),
        // Of each partition: if one of them gets it all, it is what the stream is to keep.
        ("retention.bytes", bytes.unwrap_or(-1).to_string()),
    ]
}

/// The settings that a topic has otherwise; those that we may not know are taken to be right.
fn differing<'a>(
    wanted: &'a [(&'a str, String)],
    described: &HashMap<String, String>,
) -> Vec<&'a (&'a str, String)> {
    let policy = described.get("cleanup.policy").map(String::as_str);
    let differs = |(key, value): &&(&str, String)| {
        // How long things are kept says nothing where nothing is deleted.
        let counts = !key.starts_with("retention.") || policy != Some("compact");
        counts && described.get(*key).is_some_and(|has| has != value)
    };
    wanted.iter().filter(differs).collect()
}

fn contract(topic: &str, has: u32, wanted: u32) -> Error {
    let what = format!("topic {topic} has {has} partitions, the stream is to have {wanted}");
    Error::new(Kind::Contract, what).hint(format!(
        "keys would change their partition and lose their order: set `partitions = {has}` if nothing was published \
         yet or its consumers can do without the order, or name a new stream"
    ))
}

/// Runs what blocks on a thread that may.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let outcome = tokio::task::spawn_blocking(work).await;
    outcome.unwrap_or_else(|error| Err(Error::new(Kind::Internal, "asking Kafka").because(error)))
}

/// The same of what may block for as long as the brokers are away: a runtime that ends does not wait for it.
pub async fn detached<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let run = move || drop(tell.send(work()));
    let lost = |error: Box<dyn std::error::Error + Send + Sync>| {
        Error::new(Kind::Internal, "asking Kafka").because(error)
    };
    let thread = std::thread::Builder::new().name("kafka-asks".to_owned()).spawn(run);
    thread.map_err(|error| lost(error.into()))?;
    told.await.map_err(|error| lost(error.into()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_topic_has_otherwise_is_found() {
        let differing = |retention: &Retention, has: &[(&str, &str)]| {
            let has = has.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            differing(&settings(retention), &has).iter().map(|(key, _)| *key).collect::<Vec<_>>().join(" ")
        };
        let week = ("retention.ms", "604800000");
        let forever = Retention::default();
        assert_eq!(differing(&forever, &[("cleanup.policy", "delete"), week]), "retention.ms");
        assert_eq!(differing(&forever, &[("cleanup.policy", "delete"), ("retention.ms", "-1")]), "");
        assert_eq!(differing(&forever, &[]), "");
        let compact = Retention { compact: true, ..forever };
        assert_eq!(differing(&compact, &[("cleanup.policy", "compact"), week]), "");
        assert_eq!(differing(&compact, &[("cleanup.policy", "delete,compact"), week]), "cleanup.policy");
        let both = Retention { compact: true, max_age: Some(Duration::from_hours(168)), max_bytes: None };
        let lag = ("min.compaction.lag.ms", "604800000");
        assert_eq!(differing(&both, &[("cleanup.policy", "compact"), lag, week]), "");
        assert_eq!(
            differing(&both, &[("cleanup.policy", "compact"), ("min.compaction.lag.ms", "0")]),
            "min.compaction.lag.ms"
        );
    }

    #[test]
    fn retention_becomes_settings_of_a_topic() {
        let show = |retention| {
            let pairs = settings(&retention).into_iter();
            pairs.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
        };
        let forever = Retention::default();
        assert_eq!(show(forever), "cleanup.policy=delete retention.ms=-1 retention.bytes=-1");
        let some =
            Retention { max_age: Some(Duration::from_secs(60)), max_bytes: Some(1001), compact: false };
        assert_eq!(show(some), "cleanup.policy=delete retention.ms=60000 retention.bytes=1001");
        let newest = Retention { compact: true, ..some };
        assert_eq!(show(newest), "cleanup.policy=compact min.compaction.lag.ms=60000");
        assert_eq!(show(Retention { compact: true, ..forever }), "cleanup.policy=compact");
    }
}
