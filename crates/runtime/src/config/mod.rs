//! What a stream and the runtime can be told: the config as written, each key with its default.

mod from;
mod units;

use std::time::Duration;

use headwater_core::{Retention, StreamSpec};
use headwater_wire::format::{Format, OutboxColumns};
use serde::{Deserialize, Deserializer};

pub use from::{Columns, TableRef};
pub use units::{parse_bytes, parse_duration};

/// `[stream.NAME]`: a declared stream and its contract.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamConfig {
    /// The tables that feed it: `"SOURCE.schema.table"`, or a list of them. `"SOURCE.table"` means the
    /// schema `main` (SQLite) or `public`. Empty for a stream that only outbox rows feed. The keys of a
    /// stream with several tables begin with the table's name.
    #[serde(deserialize_with = "from::one_or_many")]
    pub from: Vec<TableRef>,
    /// The contract: which columns consumers see, and by which names. `{ exposed = "column" }`, a list
    /// of columns, or `"*"` for all of them, also those that are added later. Needed with `from`.
    pub columns: Option<Columns>,
    /// The contract's version; every event carries it.
    pub version: u32,
    /// A condition in CEL over `before` and `after` (by the table's column names) and `op`. A row that
    /// enters it is a create, one that leaves it a delete; a change outside of it is no event.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// The columns (by the table's names) that identify an entity; default: the table's key.
    #[serde(deserialize_with = "from::names")]
    pub key: Option<Vec<String>>,
    /// The columns that decide partition, order and parking; default: the key.
    #[serde(deserialize_with = "from::names")]
    pub order_key: Option<Vec<String>>,
    /// How many partitions it is made with. It cannot be changed later without breaking the order of keys.
    pub partitions: u32,
    /// How its events are written: `"headwater"`, `"debezium"`, or a table with `kind` and options.
    pub format: Format,
    /// How long its events stay; default: for ever.
    pub retention: RetentionConfig,
    /// Whether a tombstone follows a delete; default: yes for `debezium`, and for compacted streams.
    pub tombstones: Option<bool>,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            from: Vec::new(),
            columns: None,
            version: 1,
            condition: None,
            key: None,
            order_key: None,
            partitions: 8,
            format: Format::default(),
            retention: RetentionConfig::default(),
            tombstones: None,
        }
    }
}

impl StreamConfig {
    /// What the bus must know of it.
    pub fn spec(&self, name: &str) -> StreamSpec {
        let retention = Retention {
            max_age: self.retention.time,
            max_bytes: self.retention.bytes,
            compact: self.retention.compact,
        };
        StreamSpec { name: name.into(), partitions: self.partitions, retention }
    }
}

/// How long a stream's events stay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// At least this long: `"7d"`, `"12h"`, `"30min"`.
    #[serde(deserialize_with = "units::duration")]
    pub time: Option<Duration>,
    /// At least this many bytes over all partitions: `"10GiB"`, `"500MB"`, or a number of bytes.
    #[serde(deserialize_with = "units::bytes")]
    pub bytes: Option<u64>,
    /// Keeps the newest event of each key whatever its age.
    pub compact: bool,
}

/// How the rows of a source's outbox table become events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRoute {
    /// The outbox table.
    pub table: TableRef,
    /// What its columns are called.
    pub columns: OutboxColumns,
    /// The stream's name, with `{aggregatetype}` standing for the row's.
    pub stream: String,
}

/// `[runtime]`: budgets and waits of the pipeline.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The most bytes of a source that may be on their way to the bus; reading pauses above it.
    #[serde(deserialize_with = "required_bytes")]
    pub in_flight_bytes: u64,
    /// About how many bytes are read from a source at once.
    #[serde(deserialize_with = "required_bytes")]
    pub batch_bytes: u64,
    /// How long a stop waits for what is on its way.
    #[serde(deserialize_with = "required_duration")]
    pub drain_timeout: Duration,
    /// The longest wait between two attempts.
    #[serde(deserialize_with = "required_duration")]
    pub retry_max: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            in_flight_bytes: 32 << 20,
            batch_bytes: 1 << 20,
            drain_timeout: Duration::from_secs(10),
            retry_max: Duration::from_secs(30),
        }
    }
}

fn required_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    units::bytes(deserializer)?.ok_or_else(|| serde::de::Error::custom("expected a number of bytes"))
}

pub(crate) fn required_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    units::duration(deserializer)?.ok_or_else(|| serde::de::Error::custom("expected a duration"))
}
