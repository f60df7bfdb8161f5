//! What a bus needs to know of a stream.

use std::sync::Arc;
use std::time::Duration;

use crate::{Error, Kind, Result};

/// A stream as a bus holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSpec {
    /// Its name; the topic's name on Kafka.
    pub name: Arc<str>,
    /// How many partitions it is made with; at least 1.
    pub partitions: u32,
    /// How long its events stay.
    pub retention: Retention,
}

/// How long a stream's events stay; nothing set keeps them for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// At least this long.
    pub max_age: Option<Duration>,
    /// At least this many bytes, over all partitions.
    pub max_bytes: Option<u64>,
    /// The newest event of each key stays whatever its age; older ones of that key may go.
    pub compact: bool,
}

/// Names a stream may have: what Kafka, NATS and a file system all take.
pub fn check_stream_name(name: &str) -> Result<()> {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=249).contains(&name.len()) && name.chars().all(ok) && name != "." && name != ".." {
        return Ok(());
    }
    Err(Error::new(Kind::Config, format!("\"{name}\" cannot be the name of a stream"))
        .hint("use 1 to 249 letters, digits, dots, dashes and underscores"))
}
