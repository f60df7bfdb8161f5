//! What the operator may set.

use std::time::Duration;

use headwater_core::{Error, Kind, Result};
use serde::{Deserialize, Deserializer};

use super::url::ConnectOptions;
use crate::settings::{Outbox, SnapshotMode};

/// The longest name that PostgreSQL keeps whole.
const NAME_LIMIT: usize = 63;

/// What is added to the publication's name for the tables that are published for inserts only.
const INSERTS_SUFFIX: &str = "_inserts";

/// `[source.NAME] kind = "postgres"`: the settings of a PostgreSQL source. Durations are written `"10s"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// Where the database is and who connects: `postgres://user:password@host:5432/database?sslmode=...`.
    /// The user needs the attribute REPLICATION.
    #[serde(deserialize_with = "connect_options")]
    pub url: ConnectOptions,
    /// The tables to capture: `"schema.table"`, or `"table"` for one in `public`; `"schema.*"` is every
    /// table that the schema has when the source starts.
    #[serde(default)]
    pub tables: Vec<String>,
    /// The outbox, where there is one: a table whose inserted rows are events.
    #[serde(default)]
    pub outbox: Option<Outbox>,
    /// Whether the outbox is emptied by query (a relay), not read from the log. Without `tables` the log is
    /// then not read at all: the user needs no REPLICATION, the server no `wal_level = logical`.
    #[serde(default)]
    pub relay: bool,
    /// The prefix of the messages (`pg_logical_emit_message(true, 'headwater', ...)`) that are events;
    /// `""` for none.
    #[serde(default = "messages")]
    pub messages: String,
    /// When whole tables are read before their changes are followed.
    #[serde(default)]
    pub snapshot: SnapshotMode,
    /// The publication; `headwater_` and the source's name when not given. It is made when it is
    /// missing; one that somebody else made is never altered.
    #[serde(default)]
    pub publication: Option<String>,
    /// The replication slot; `headwater_` and the source's name when not given. It is made when it is
    /// missing.
    #[serde(default)]
    pub slot: Option<String>,
    /// How often a small message is written to the database's log, so that a database that is idle
    /// beside busy neighbours does not make the server keep their log. Never when not given.
    #[serde(default, deserialize_with = "heartbeat")]
    pub heartbeat: Option<Duration>,
    /// How many connections read tables at a time during a snapshot.
    #[serde(default = "snapshot_workers", deserialize_with = "workers")]
    pub snapshot_workers: usize,
}

impl PostgresConfig {
    /// Whether `table`, as an operator writes it, is one that a snapshot reads.
    pub fn reads(&self, table: &str) -> bool {
        let names = self.tables.iter().chain(self.outbox.iter().map(|outbox| &outbox.table));
        let mut patterns = names.filter_map(|name| TablePattern::parse(name).ok());
        TablePattern::parse(table).is_ok_and(|asked| patterns.any(|pattern| pattern.covers(&asked)))
    }

    /// The settings for one database, all others at their defaults.
    pub fn new(url: ConnectOptions, tables: &[&str]) -> Self {
        Self {
            url,
            tables: tables.iter().map(|&table| table.to_owned()).collect(),
            outbox: None,
            relay: false,
            messages: messages(),
            snapshot: SnapshotMode::Initial,
            publication: None,
            slot: None,
            heartbeat: None,
            snapshot_workers: snapshot_workers(),
        }
    }

    /// The names that the source `source` uses on the server. An error of kind `Config` when one cannot
    /// be a name there.
    pub fn names(&self, source: &str) -> Result<Names> {
        let derived = || format!("headwater_{}", source.to_lowercase().replace('-', "_"));
        let slot = self.slot.clone().unwrap_or_else(derived);
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if slot.is_empty() || slot.len() > NAME_LIMIT || !slot.chars().all(allowed) {
            return Err(Error::new(
                Kind::Config,
                format!("\"{slot}\" cannot be the name of a replication slot"),
            )
            .hint("set `slot` to 1 to 63 lower case letters, digits and underscores"));
        }
        let publication = self.publication.clone().unwrap_or_else(derived);
        if publication.is_empty() || publication.len() + INSERTS_SUFFIX.len() > NAME_LIMIT {
            let limit = NAME_LIMIT - INSERTS_SUFFIX.len();
            return Err(Error::new(
                Kind::Config,
                format!("\"{publication}\" cannot be the name of a publication"),
            )
            .hint(format!("set `publication` to a name of at most {limit} bytes")));
        }
        let inserts = format!("{publication}{INSERTS_SUFFIX}");
        Ok(Names { source: source.to_owned(), publication, inserts, slot })
    }
}

/// What a source is called, and what it calls its own on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The source's name in the config.
    pub source: String,
    /// The publication.
    pub publication: String,
    /// The publication of those tables whose inserts alone can be captured.
    pub inserts: String,
    /// The replication slot.
    pub slot: String,
}

/// A table, or all tables of a schema, as the config names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablePattern {
    /// The schema.
    pub schema: String,
    /// The table; `None` is every table of the schema.
    pub table: Option<String>,
}

impl TablePattern {
    /// Reads `schema.table`, `table` or `schema.*`. Names are taken as they are written, in upper and
    /// lower case; what follows the first dot is the table.
    pub fn parse(text: &str) -> Result<Self> {
        let (schema, table) = text.split_once('.').unwrap_or(("public", text));
        if schema.is_empty() || table.is_empty() || schema.contains('*') || text == "*" {
            return Err(Error::new(Kind::Config, format!("\"{text}\" names no table"))
                .hint("write \"schema.table\", or \"schema.*\" for all tables of a schema"));
        }
        let table = (table != "*").then(|| table.to_owned());
        Ok(Self { schema: schema.to_owned(), table })
    }

    /// Whether another one is a table that this one means.
    fn covers(&self, other: &Self) -> bool {
        other.table.is_some()
            && self.schema == other.schema
            && (self.table.is_none() || self.table == other.table)
    }
}

fn connect_options<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ConnectOptions, D::Error> {
    ConnectOptions::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

fn heartbeat<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let interval = humantime::parse_duration(&text).map_err(serde::de::Error::custom)?;
    if interval < Duration::from_secs(1) {
        return Err(serde::de::Error::custom(format!("{text} is shorter than 1s")));
    }
    Ok(Some(interval))
}

fn workers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    match usize::deserialize(deserializer)? {
        workers @ 1..=64 => Ok(workers),
        other => Err(serde::de::Error::custom(format!("{other} is not between 1 and 64"))),
    }
}

fn messages() -> String {
    "headwater".to_owned()
}

const fn snapshot_workers() -> usize {
    2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<PostgresConfig, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_need_nothing_but_the_url() {
        let config = read(r#"{"url": "postgres://u@h/d"}"#).unwrap();
        assert_eq!(config.url.to_string(), "u@h:5432/d");
        assert_eq!((config.messages.as_str(), config.snapshot), ("headwater", SnapshotMode::Initial));
        let names = config.names("Web-Orders").unwrap();
        assert_eq!(names.slot, "headwater_web_orders");
        assert_eq!(names.publication, "headwater_web_orders");
        assert_eq!(names.inserts, "headwater_web_orders_inserts");
    }

    #[test]
    fn reads_every_setting() {
        let config = read(
            r#"{"url": "postgres://u:p@h/d", "tables": ["a.b"], "outbox": {"table": "o", "id": "key"},
                "messages": "", "snapshot": "never", "publication": "p", "slot": "s", "heartbeat": "1m",
                "snapshot_workers": 4}"#,
        );
        let config = config.unwrap();
        assert_eq!(config.heartbeat, Some(Duration::from_secs(60)));
        assert_eq!(config.outbox.as_ref().unwrap().columns.id, "key");
        assert_eq!(config.snapshot_workers, 4);
        assert!(!format!("{config:?}").contains("p@"), "{config:?}");
    }

    #[test]
    fn wrong_settings_are_told() {
        let wrong =
            |setting: &str| read(&format!(r#"{{"url": "postgres://u:secret@h/d", {setting}}}"#)).unwrap_err();
        for (setting, part) in [
            (r#""tabels": []"#, "unknown field `tabels`"),
            (r#""heartbeat": "10ms""#, "10ms is shorter than 1s"),
            (r#""heartbeat": "soon""#, "number"),
            (r#""snapshot": "sometimes""#, "unknown variant `sometimes`"),
            (r#""snapshot_workers": 0"#, "0 is not between 1 and 64"),
        ] {
            let error = wrong(setting);
            assert!(error.contains(part) && !error.contains("secret"), "{setting}: {error}");
        }
        assert!(read(r#"{"url": "postgres://u:secret@h/d?sslmode=on"}"#).unwrap_err().contains("sslmode=on"));
    }

    #[test]
    fn names_that_the_server_would_not_take_are_told() {
        let named = |setting: &str| {
            let config = read(&format!(r#"{{"url": "postgres://u@h/d"{setting}}}"#)).unwrap();
            config.names("n").unwrap_err().to_string()
        };
        assert!(
            named(r#", "slot": "Orders""#).contains("\"Orders\" cannot be the name of a replication slot")
        );
        let long = "p".repeat(56);
        assert!(named(&format!(r#", "publication": "{long}""#)).contains("at most 55 bytes"));
        let config = read(r#"{"url": "postgres://u@h/d"}"#).unwrap();
        assert_eq!(config.names(&"n".repeat(100)).unwrap_err().kind(), Kind::Config);
    }

    #[test]
    fn patterns() {
        let of = |schema: &str, table: Option<&str>| TablePattern {
            schema: schema.into(),
            table: table.map(Into::into),
        };
        for (text, pattern) in [
            ("public.orders", of("public", Some("orders"))),
            ("orders", of("public", Some("orders"))),
            ("Sales.Order.Lines", of("Sales", Some("Order.Lines"))),
            ("sales.*", of("sales", None)),
        ] {
            assert_eq!(TablePattern::parse(text).unwrap(), pattern);
        }
        for text in ["", "*", "*.*", "a.", ".b"] {
            assert_eq!(TablePattern::parse(text).unwrap_err().kind(), Kind::Config, "{text}");
        }
    }
}
