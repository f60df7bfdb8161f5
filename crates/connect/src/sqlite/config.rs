//! What the operator may set.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::plan::bare;
use crate::settings::{Outbox, SnapshotMode};

/// `[source.NAME] kind = "sqlite"`: the settings of a SQLite source. Durations are written `"5ms"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqliteConfig {
    /// The database's file; `url = "sqlite:///path"` says the same.
    #[serde(alias = "url", deserialize_with = "path")]
    pub path: PathBuf,
    /// The tables to capture, by name; `"*"` is every table there is now or later.
    #[serde(default)]
    pub tables: Vec<String>,
    /// The outbox, where there is one.
    #[serde(default)]
    pub outbox: Option<Outbox>,
    /// Whether the outbox is emptied by query (a relay), not by triggers.
    #[serde(default)]
    pub relay: bool,
    /// When whole tables are read before their changes are followed.
    #[serde(default)]
    pub snapshot: SnapshotMode,
    /// Whether the source may install its triggers by itself when it starts. Without, only
    /// `headwater init` does; triggers that are there are always kept in step with their tables.
    #[serde(default = "yes")]
    pub install: bool,
    /// How often the database is asked for changes while there are some.
    #[serde(default = "poll_min", deserialize_with = "duration")]
    pub poll_min: Duration,
    /// How often the database is asked for changes when there were none for a while.
    #[serde(default = "poll_max", deserialize_with = "duration")]
    pub poll_max: Duration,
}

impl SqliteConfig {
    /// Whether `table`, as an operator writes it, is one that a snapshot reads. `*` is any table: which there
    /// are only the database knows.
    pub fn reads(&self, table: &str) -> bool {
        let same = |name: &String| bare(name).eq_ignore_ascii_case(bare(table));
        self.tables.iter().any(|name| name == "*" || same(name))
    }

    /// The settings for one database, all others at their defaults.
    pub fn new(path: impl Into<PathBuf>, tables: &[&str]) -> Self {
        Self {
            path: path.into(),
            tables: tables.iter().map(|&table| table.to_owned()).collect(),
            outbox: None,
            relay: false,
            snapshot: SnapshotMode::Initial,
            install: true,
            poll_min: poll_min(),
            poll_max: poll_max(),
        }
    }
}

/// The file that a `sqlite:` URL names, or the path as it is.
pub fn file_of(text: &str) -> PathBuf {
    let rest = text.strip_prefix("sqlite:").map(|rest| rest.strip_prefix("//").unwrap_or(rest));
    rest.unwrap_or(text).into()
}

fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let text = String::deserialize(deserializer)?;
    let path = file_of(&text);
    if path.as_os_str().is_empty() || text.contains(":memory:") {
        return Err(serde::de::Error::custom(format!("\"{text}\" names no database file")));
    }
    Ok(path)
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let duration = humantime::parse_duration(&text).map_err(serde::de::Error::custom)?;
    let sensible = Duration::from_millis(1)..=Duration::from_secs(60);
    if sensible.contains(&duration) {
        return Ok(duration);
    }
    Err(serde::de::Error::custom(format!("{text} is not between 1ms and 60s")))
}

const fn yes() -> bool {
    true
}

const fn poll_min() -> Duration {
    Duration::from_millis(1)
}

const fn poll_max() -> Duration {
    Duration::from_millis(20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_files() {
        for (url, path) in [
            ("sqlite:///var/shop.db", "/var/shop.db"),
            ("sqlite://shop.db", "shop.db"),
            ("sqlite:shop.db", "shop.db"),
            ("./shop.db", "./shop.db"),
        ] {
            assert_eq!(file_of(url), PathBuf::from(path));
        }
    }

    #[test]
    fn defaults_and_refusals() {
        let read = |json: &str| serde_json::from_str::<SqliteConfig>(json);
        let config = read(r#"{"url": "sqlite:///a.db", "tables": ["orders"]}"#).unwrap();
        assert_eq!(config, SqliteConfig::new("/a.db", &["orders"]));
        assert!(read(r#"{"path": "a.db", "pol_min": "1ms"}"#).is_err());
        assert!(read(r#"{"path": "a.db", "poll_min": "0ms"}"#).is_err());
        assert!(read(r#"{"path": "sqlite::memory:"}"#).is_err());
    }
}
