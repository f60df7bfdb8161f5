//! The options of the `debezium` format, named as Debezium's own with `_` for `.`.

use serde::Deserialize;

use super::outbox::{Placement, placements};

/// The options of the `debezium` format; each default is Debezium's.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DebeziumOptions {
    /// `topic.prefix`: the `name` in `source`. `None`: the source's name in the config.
    pub topic_prefix: Option<String>,
    /// `decimal.handling.mode`.
    pub decimal_handling_mode: DecimalMode,
    /// `time.precision.mode`.
    pub time_precision_mode: TimeMode,
    /// `binary.handling.mode`.
    pub binary_handling_mode: BinaryMode,
    /// `hstore.handling.mode`.
    pub hstore_handling_mode: HstoreMode,
    /// `interval.handling.mode`.
    pub interval_handling_mode: IntervalMode,
    /// `unavailable.value.placeholder`: stands for a large value that an update did not touch.
    pub unavailable_value_placeholder: String,
    /// `tombstones.on.delete`.
    pub tombstones_on_delete: bool,
    /// `table.fields.additional.placement` of the outbox event router, written as there:
    /// `"type:header:eventType,aggregatetype:envelope"`.
    #[serde(deserialize_with = "placements")]
    pub table_fields_additional_placement: Vec<Placement>,
}

impl Default for DebeziumOptions {
    fn default() -> Self {
        Self {
            topic_prefix: None,
            decimal_handling_mode: DecimalMode::default(),
            time_precision_mode: TimeMode::default(),
            binary_handling_mode: BinaryMode::default(),
            hstore_handling_mode: HstoreMode::default(),
            interval_handling_mode: IntervalMode::default(),
            unavailable_value_placeholder: "__debezium_unavailable_value".into(),
            tombstones_on_delete: true,
            table_fields_additional_placement: Vec::new(),
        }
    }
}

/// How decimals are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecimalMode {
    /// As base64 of the unscaled number's big-endian two's complement.
    #[default]
    Precise,
    /// As a string of digits.
    String,
    /// As a JSON number; digits may be lost.
    Double,
}

/// How dates and times are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeMode {
    /// Milliseconds or microseconds, by the column's precision.
    #[default]
    Adaptive,
    /// As `adaptive`, but times of day always in microseconds.
    AdaptiveTimeMicroseconds,
    /// Milliseconds.
    Connect,
    /// ISO 8601 strings.
    Isostring,
    /// Microseconds.
    Microseconds,
    /// Nanoseconds.
    Nanoseconds,
}

/// How bytes are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BinaryMode {
    /// As bytes, which in JSON is base64.
    #[default]
    Bytes,
    /// As base64.
    Base64,
    /// As base64 with `-` and `_`.
    Base64UrlSafe,
    /// As lower-case hex.
    Hex,
}

/// How an hstore is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HstoreMode {
    /// As a string of JSON.
    #[default]
    Json,
    /// As an object.
    Map,
}

/// How an interval is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntervalMode {
    /// As microseconds, a month being 30.4375 days.
    #[default]
    Numeric,
    /// As ISO 8601.
    String,
}
