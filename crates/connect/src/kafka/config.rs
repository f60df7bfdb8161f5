//! What the operator may set.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use headwater_core::{Error, Kind, Result};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use serde::{Deserialize, Deserializer};

/// `[bus] kind = "kafka"`: the settings of the Kafka bus. Durations are written `"1ms"`, `"30s"`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaConfig {
    /// Where the client finds the cluster at first: `host:port` of some of its brokers.
    pub brokers: Vec<String>,
    /// How many copies of a new topic the cluster keeps; the brokers' own default if not given.
    #[serde(default)]
    pub replication: Option<u16>,
    /// How record batches are compressed.
    #[serde(default)]
    pub compression: Compression,
    /// How long an event may wait for others to share its request.
    #[serde(default = "linger", deserialize_with = "duration")]
    pub linger: Duration,
    /// Put before the name of a stream to make the name of its topic.
    #[serde(default)]
    pub topic_prefix: String,
    /// The compacted topic of one partition that keeps how far each source has come.
    #[serde(default = "positions_topic")]
    pub positions_topic: String,
    /// The largest event that is published, in bytes with key and headers; the topic's own
    /// `max.message.bytes` holds besides.
    #[serde(default = "max_message_bytes")]
    pub max_message_bytes: u32,
    /// How many bytes of published events may wait for the brokers; `publish` waits beyond.
    #[serde(default = "queue_bytes")]
    pub queue_bytes: usize,
    /// How long the brokers may take to answer a question (not: to take events, which may be for ever).
    #[serde(default = "timeout", deserialize_with = "duration")]
    pub timeout: Duration,
    /// Whether events and the checkpoint of their source are published in transactions: then a reader of what
    /// is committed sees every event once, whatever was killed.
    #[serde(default)]
    pub transactions: bool,
    /// What the transactional ids of this deployment begin with: `headwater` if not given. A source's name
    /// follows. Two deployments with the same would take each other for their own predecessor.
    #[serde(default)]
    pub transactional_id: Option<String>,
    /// How long after one transaction began the next begins: what arrives meanwhile shares it, unless that is
    /// much. 50 milliseconds if not given.
    #[serde(default, deserialize_with = "optional_duration")]
    pub commit_interval: Option<Duration>,
    /// How long a transaction may stay open before the brokers end it; one minute if not given.
    #[serde(default, deserialize_with = "optional_duration")]
    pub transaction_timeout: Option<Duration>,
    /// How often the topics are looked at again: whether they still have as many partitions.
    #[serde(default = "refresh_interval", deserialize_with = "duration")]
    pub refresh_interval: Duration,
    /// Any other property of librdkafka, e.g. `"security.protocol"`, `"sasl.mechanism"`,
    /// `"sasl.username"`, `"sasl.password"`, `"ssl.ca.location"`. Those that Headwater's promises
    /// depend on are refused.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// How record batches are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Not at all.
    None,
    /// Little work, and events of JSON become a third.
    #[default]
    Lz4,
    /// More work, smaller.
    Zstd,
    /// For clusters that have standardised on it.
    Snappy,
    /// For clusters that have standardised on it.
    Gzip,
}

impl Compression {
    fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Snappy => "snappy",
            Self::Gzip => "gzip",
        }
    }
}

fn linger() -> Duration {
    Duration::from_millis(1)
}

fn positions_topic() -> String {
    "headwater-positions".into()
}

fn max_message_bytes() -> u32 {
    16 << 20
}

fn queue_bytes() -> usize {
    32 << 20
}

fn timeout() -> Duration {
    Duration::from_secs(15)
}

fn refresh_interval() -> Duration {
    Duration::from_secs(30)
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(serde::de::Error::custom)
}

fn optional_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

/// A transaction costs the brokers the same whether it has one event or a thousand.
const COMMIT_INTERVAL: Duration = Duration::from_millis(50);

/// Long enough for a broker that is started anew; until then readers may have to wait for a transaction of
/// a process that is gone for good.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Properties that Headwater sets itself, or that would break what it promises, and what to say.
const RESERVED: &[(&str, &str)] = &[
    ("bootstrap.servers", "set `brokers`"),
    ("metadata.broker.list", "set `brokers`"),
    ("compression.codec", "set `compression`"),
    ("compression.type", "set `compression`"),
    ("linger.ms", "set `linger`"),
    ("queue.buffering.max.ms", "set `linger`"),
    ("message.max.bytes", "set `max_message_bytes`"),
    ("queue.buffering.max.kbytes", "set `queue_bytes`"),
    ("queue.buffering.max.messages", "set `queue_bytes`"),
    ("batch.size", "it follows from the topics' max.message.bytes"),
    ("acks", "events count as durable only when all in-sync replicas have them"),
    ("request.required.acks", "events count as durable only when all in-sync replicas have them"),
    ("enable.idempotence", "without it a retry could overtake a later event"),
    ("enable.gapless.guarantee", "without it a later event could overtake one that failed"),
    ("max.in.flight", "more requests in flight could change the order"),
    ("max.in.flight.requests.per.connection", "more requests in flight could change the order"),
    ("retries", "Headwater never gives up by itself"),
    ("message.send.max.retries", "Headwater never gives up by itself"),
    ("message.timeout.ms", "Headwater never gives up by itself"),
    ("delivery.timeout.ms", "Headwater never gives up by itself"),
    ("partitioner", "keys land where Java producers put them"),
    ("transactional.id", "set `transactions`, and `transactional_id` for what it begins with"),
    ("transaction.timeout.ms", "set `transaction_timeout`"),
    ("allow.auto.create.topics", "a topic made by accident would have the wrong partitions"),
    ("group.id", "it is the name of the subscription's group"),
    ("enable.auto.commit", "a cursor moves when what is before it was done"),
    ("enable.auto.offset.store", "a cursor moves when what is before it was done"),
    ("auto.offset.reset", "where a group begins is said with the subscription"),
    ("isolation.level", "only committed events are read"),
    ("enable.partition.eof", "Headwater sets it where it looks for an end"),
];

impl KafkaConfig {
    /// The settings for these brokers, everything else at its default.
    pub fn new(brokers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            brokers: brokers.into_iter().map(Into::into).collect(),
            replication: None,
            compression: Compression::default(),
            linger: linger(),
            topic_prefix: String::new(),
            positions_topic: positions_topic(),
            max_message_bytes: max_message_bytes(),
            queue_bytes: queue_bytes(),
            timeout: timeout(),
            transactions: false,
            transactional_id: None,
            commit_interval: None,
            transaction_timeout: None,
            refresh_interval: refresh_interval(),
            options: BTreeMap::new(),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::new(Kind::Config, what));
        if self.brokers.iter().all(|broker| broker.trim().is_empty()) {
            return wrong("`brokers` names no broker: give `host:port` of one or more".into());
        }
        for name in self.options.keys() {
            if let Some((_, why)) = RESERVED.iter().find(|(reserved, _)| reserved == name) {
                return wrong(format!("the option \"{name}\" cannot be set: {why}"));
            }
        }
        headwater_core::check_stream_name(&self.positions_topic)?;
        if !(1_000..=1_000_000_000).contains(&self.max_message_bytes) {
            return wrong(format!(
                "`max_message_bytes` is {}: use 1000 to 1000000000",
                self.max_message_bytes
            ));
        }
        self.check_transactions()
    }

    fn check_transactions(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::new(Kind::Config, what));
        let given = [
            ("transactional_id", self.transactional_id.is_some()),
            ("commit_interval", self.commit_interval.is_some()),
            ("transaction_timeout", self.transaction_timeout.is_some()),
        ];
        if let Some((name, _)) = given.iter().find(|(_, given)| *given && !self.transactions) {
            return wrong(&format!(
                "`{name}` says something of transactions only: set `transactions = true`"
            ));
        }
        let id = self.transactional_id.as_deref().unwrap_or("headwater");
        if id.is_empty() || id.len() > 200 || id.contains(char::is_control) {
            return wrong("`transactional_id` is to be 1 to 200 bytes without control characters");
        }
        let timeout = self.transaction_timeout();
        if timeout < Duration::from_secs(1).max(self.linger * 2) || timeout > Duration::from_hours(24) {
            return wrong("`transaction_timeout` is to be 1s to 24h, and longer than twice `linger`");
        }
        if self.commit_interval() > Duration::from_secs(10) {
            return wrong("`commit_interval` is to be 10s at most: events wait for as long");
        }
        Ok(())
    }

    /// How long after one transaction began the next begins.
    pub(super) fn commit_interval(&self) -> Duration {
        self.commit_interval.unwrap_or(COMMIT_INTERVAL)
    }

    /// How long a transaction may stay open.
    pub(super) fn transaction_timeout(&self) -> Duration {
        self.transaction_timeout.unwrap_or(TRANSACTION_TIMEOUT)
    }

    /// The transactional id of a source.
    pub(super) fn transactional_id(&self, source: &str) -> String {
        format!("{}-{source}", self.transactional_id.as_deref().unwrap_or("headwater"))
    }

    /// What all clients have in common.
    pub(super) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set_log_level(RDKafkaLogLevel::Warning);
        config.set("bootstrap.servers", self.brokers.join(","));
        config.set("client.id", "headwater");
        config.set("allow.auto.create.topics", "false");
        // Whatever OpenSSL was built to expect, the system's certificates are the ones to trust.
        if self
            .options
            .get("security.protocol")
            .is_some_and(|protocol| protocol.to_lowercase().contains("ssl"))
        {
            config.set("ssl.ca.location", "probe");
        }
        // A broker that comes back is found within a second, not ten.
        config.set("reconnect.backoff.max.ms", "1000");
        for (name, value) in &self.options {
            config.set(name, value);
        }
        config
    }

    /// The producer that all sources share without transactions.
    pub(super) fn producer(&self, batch_bytes: u32) -> ClientConfig {
        let mut config = self.any_producer(batch_bytes);
        config.set("enable.gapless.guarantee", "true");
        config.set("message.timeout.ms", "0");
        config
    }

    /// The producer of one source, with transactions. What is not taken in the time of a transaction ends it.
    pub(super) fn transactional_producer(&self, source: &str, batch_bytes: u32) -> ClientConfig {
        let mut config = self.any_producer(batch_bytes);
        let timeout = self.transaction_timeout().as_millis().to_string();
        config.set("transactional.id", self.transactional_id(source));
        config.set("transaction.timeout.ms", &timeout);
        config.set("message.timeout.ms", &timeout);
        config
    }

    /// A producer; a record batch holds at most `batch_bytes`, unless it is a single event.
    fn any_producer(&self, batch_bytes: u32) -> ClientConfig {
        let mut config = self.client();
        config.set("enable.idempotence", "true");
        config.set("acks", "all");
        config.set("partitioner", "murmur2_random");
        config.set("compression.codec", self.compression.as_str());
        config.set("linger.ms", format!("{}", self.linger.as_secs_f64() * 1000.0));
        config.set("batch.size", batch_bytes.to_string());
        // The limit that is checked before: with room for how librdkafka counts.
        config.set(
            "message.max.bytes",
            (self.max_message_bytes.saturating_add(4096)).min(1_000_000_000).to_string(),
        );
        // The budget is ours: librdkafka counts no headers and none of its own.
        config.set("queue.buffering.max.messages", "10000000");
        config.set("queue.buffering.max.kbytes", "2147483647");
        config
    }

    /// A consumer of `group`, which commits nothing by itself.
    pub(super) fn consumer(&self, group: &str) -> ClientConfig {
        let mut config = self.client();
        let defaults = [
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("session.timeout.ms", "10000"),
            ("heartbeat.interval.ms", "1000"),
            ("queued.max.messages.kbytes", "8192"),
            ("fetch.max.bytes", "8388608"),
            ("fetch.wait.max.ms", "500"),
        ];
        for (name, value) in defaults.into_iter().filter(|(name, _)| !self.options.contains_key(*name)) {
            config.set(name, value);
        }
        config.set("group.id", group);
        config.set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false");
        config.set("auto.offset.reset", "earliest");
        config.set("isolation.level", "read_committed");
        config
    }

    /// The topic of a stream.
    pub(super) fn topic(&self, stream: &str) -> String {
        format!("{}{stream}", self.topic_prefix)
    }
}

/// Options may hold passwords and keys: only their names are shown.
impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("positions_topic", &self.positions_topic)
            .field("options", &self.options.keys())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_with_defaults_and_passes_options_on() {
        let text = r#"
            brokers = ["a:9092", "b:9092"]
            linger = "5ms"
            options = { "security.protocol" = "SASL_SSL", "sasl.password" = "hush" }
        "#;
        let config: KafkaConfig = toml::from_str(text).unwrap();
        config.check().unwrap();
        let client = config.producer(1000);
        assert_eq!(client.get("bootstrap.servers"), Some("a:9092,b:9092"));
        assert_eq!(client.get("security.protocol"), Some("SASL_SSL"));
        assert_eq!(client.get("linger.ms"), Some("5"));
        assert!(!format!("{config:?}").contains("hush"));
        assert!(toml::from_str::<KafkaConfig>("brokers = []\nbrocers = 1").is_err());
    }

    #[test]
    fn what_would_break_a_promise_is_refused() {
        for (name, _) in RESERVED {
            let mut config = KafkaConfig::new(["a:9092"]);
            config.options.insert((*name).into(), "1".into());
            assert!(config.check().unwrap_err().to_string().contains(name));
        }
        assert!(KafkaConfig::new([""]).check().is_err());
    }

    #[test]
    fn what_makes_no_sense_of_transactions_is_refused() {
        let config = |text: &str| toml::from_str::<KafkaConfig>(&format!("brokers = [\"a:9092\"]\n{text}"));
        let wrong = [
            "transactional_id = \"shop\"",
            "transaction_timeout = \"10s\"",
            "commit_interval = \"10ms\"",
            "transactions = true\ncommit_interval = \"11s\"",
            "transactions = true\ntransactional_id = \"\"",
            "transactions = true\ntransaction_timeout = \"10ms\"",
            "transactions = true\nlinger = \"50s\"",
        ];
        for text in wrong {
            let error = config(text).unwrap().check().unwrap_err().to_string();
            assert!(error.contains("transaction") || error.contains("`commit_interval`"), "{error}");
        }
        assert!(config("transactions = \"yes\"").is_err());
        let right = config("transactions = true\ntransactional_id = \"shop\"").unwrap();
        right.check().unwrap();
        assert_eq!(right.transactional_id("orders/3"), "shop-orders/3");
    }

    /// librdkafka knows every property that is set here.
    #[test]
    fn librdkafka_takes_all_of_it() {
        let config = KafkaConfig::new(["a:9092"]);
        config.producer(1000).create_native_config().unwrap();
        config.transactional_producer("source", 1000).create_native_config().unwrap();
        config.consumer("group").create_native_config().unwrap();
    }
}
