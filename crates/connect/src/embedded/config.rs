//! What the operator may set.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// `[bus] kind = "embedded"`: the settings of the embedded bus. Durations are written `"1h"`, `"30s"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmbeddedConfig {
    /// A new segment file is begun when the events of the current one reach this many bytes.
    pub segment_bytes: u64,
    /// A new segment file is begun when the current one is this old and a stream in it has a retention.
    #[serde(deserialize_with = "duration")]
    pub segment_age: Duration,
    /// How often retention looks for what may go.
    #[serde(deserialize_with = "duration")]
    pub retain_interval: Duration,
    /// How long a compacted stream remembers that a key was deleted.
    #[serde(deserialize_with = "duration")]
    pub tombstone_retention: Duration,
    /// A member of a group that was not heard of for this long loses its partitions.
    #[serde(deserialize_with = "duration")]
    pub lease: Duration,
    /// How often at most another process looks for new events when there were none for a while.
    #[serde(deserialize_with = "duration")]
    pub poll_interval: Duration,
    /// How many bytes of published events may wait for the disk; `publish` waits beyond.
    pub queue_bytes: usize,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 256 << 20,
            segment_age: Duration::from_hours(1),
            retain_interval: Duration::from_secs(30),
            tombstone_retention: Duration::from_hours(24),
            lease: Duration::from_secs(10),
            poll_interval: Duration::from_millis(40),
            queue_bytes: 64 << 20,
        }
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(serde::de::Error::custom)
}
