//! The sections that belong to no adapter: `[http]`, `[log]`, `[parked]`, `[outbox]`.

use std::net::SocketAddr;

use headwater_runtime::StreamConfig;
use headwater_runtime::config::{RetentionConfig, parse_bytes};
use headwater_wire::format::Format;
use serde::{Deserialize, Deserializer, de};

/// `[http]`: health, metrics and status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// The address to listen on, or `"off"`. Everyone who reaches it may read it.
    #[serde(deserialize_with = "listen")]
    pub listen: Option<SocketAddr>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::from(([127, 0, 0, 1], 7070))) }
    }
}

fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == "off" {
        return Ok(None);
    }
    let address = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    let parsed = address.as_deref().unwrap_or(&text).parse();
    let wrong = |_| de::Error::custom("expected an address as \"127.0.0.1:7070\", or \"off\"");
    parsed.map(Some).map_err(wrong)
}

/// `[log]`: what goes to stderr.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `text` or `json`.
    pub format: LogFormat,
    /// The least that is logged.
    pub level: LogLevel,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// What needs a person.
    Error,
    /// What may need one.
    Warn,
    /// What happens.
    #[default]
    Info,
    /// How it happens.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// `[parked]`: what is set aside until a person decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ParkedConfig {
    /// The most bytes of changes it may hold: `"1GiB"`. A source that needs more stops confirming.
    #[serde(deserialize_with = "bytes")]
    pub budget: u64,
}

impl Default for ParkedConfig {
    fn default() -> Self {
        Self { budget: 1 << 30 }
    }
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a number of bytes, or text as 10GiB")]
    enum NumberOrText {
        Number(u64),
        Text(String),
    }
    match NumberOrText::deserialize(deserializer)? {
        NumberOrText::Number(number) => Ok(number),
        NumberOrText::Text(text) => parse_bytes(&text)
            .ok_or_else(|| de::Error::custom("expected a size: write 10GiB, 500MB or a number of bytes")),
    }
}

/// `[outbox]`: the streams that outbox rows make when the first row for them arrives. A row whose stream
/// is declared as `[stream.NAME]` goes by what is declared there.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutboxConfig {
    /// The stream of a row; `{aggregatetype}` stands for the row's.
    pub stream: String,
    /// How many partitions these streams are made with.
    pub partitions: u32,
    /// The version that their events carry.
    pub version: u32,
    /// How their events are written, as in `[stream.NAME]`.
    pub format: Format,
    /// How long their events stay, as in `[stream.NAME]`.
    pub retention: RetentionConfig,
}

impl Default for OutboxConfig {
    fn default() -> Self {
        let like = StreamConfig::default();
        Self {
            stream: "{aggregatetype}".into(),
            partitions: like.partitions,
            version: like.version,
            format: like.format,
            retention: like.retention,
        }
    }
}

impl OutboxConfig {
    /// What these streams are like, as the runtime wants it.
    pub fn streams(&self) -> StreamConfig {
        StreamConfig {
            partitions: self.partitions,
            version: self.version,
            format: self.format.clone(),
            retention: self.retention.clone(),
            ..StreamConfig::default()
        }
    }
}
