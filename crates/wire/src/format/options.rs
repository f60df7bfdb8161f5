//! Which format, with its options, as a config writes it.

use std::fmt;
use std::sync::Arc;

use headwater_core::{Result, Table};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::debezium::{DebeziumEncoder, DebeziumOptions, DebeziumOutbox};
use super::headwater::{HeadwaterEncoder, HeadwaterOutbox};
use super::{Contract, Encoder, OutboxEncoder};

/// How a stream's events are written. In a config: `"headwater"`, `"debezium"`, or a table with `kind`
/// and the format's options.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Format {
    /// Headwater's own JSON.
    #[default]
    Headwater,
    /// What Debezium's JSON converter writes without schemas.
    Debezium(DebeziumOptions),
}

impl Format {
    /// Prepares to write the events of a stream that come from `table`. A column of the contract that
    /// the table lacks is an error of kind `Contract`.
    pub fn encoder(&self, contract: &Contract, table: &Arc<Table>) -> Result<Box<dyn Encoder>> {
        Ok(match self {
            Self::Headwater => Box::new(HeadwaterEncoder::new(contract, table)?),
            Self::Debezium(options) => Box::new(DebeziumEncoder::new(options, contract, table)?),
        })
    }

    /// Prepares to write the events that outbox rows become. `version` is that of their contract.
    pub fn outbox_encoder(&self, version: u32) -> Box<dyn OutboxEncoder> {
        match self {
            Self::Headwater => Box::new(HeadwaterOutbox::new(version)),
            Self::Debezium(options) => Box::new(DebeziumOutbox::new(options)),
        }
    }

    /// Whether a delete is followed by a tombstone unless the config says otherwise.
    pub fn tombstones_on_delete(&self) -> bool {
        match self {
            Self::Headwater => false,
            Self::Debezium(options) => options.tombstones_on_delete,
        }
    }
}

impl<'de> Deserialize<'de> for Format {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FormatVisitor)
    }
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Tagged {
    Headwater {},
    Debezium(DebeziumOptions),
}

struct FormatVisitor;

impl<'de> Visitor<'de> for FormatVisitor {
    type Value = Format;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"headwater\", \"debezium\", or { kind = \"debezium\", ... }")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Format, E> {
        match text {
            "headwater" => Ok(Format::Headwater),
            "debezium" => Ok(Format::Debezium(DebeziumOptions::default())),
            _ => Err(E::unknown_variant(text, &["headwater", "debezium"])),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Format, A::Error> {
        Ok(match Tagged::deserialize(MapAccessDeserializer::new(map))? {
            Tagged::Headwater {} => Format::Headwater,
            Tagged::Debezium(options) => Format::Debezium(options),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BinaryMode, DecimalMode};
    use super::*;

    fn parse(json: &str) -> Result<Format, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn a_name_or_a_table_with_options() {
        assert_eq!(parse("\"headwater\"").unwrap(), Format::Headwater);
        assert_eq!(parse("{\"kind\":\"headwater\"}").unwrap(), Format::Headwater);
        assert_eq!(parse("\"debezium\"").unwrap(), Format::Debezium(DebeziumOptions::default()));
        let json = r#"{"kind":"debezium","decimal_handling_mode":"string","binary_handling_mode":"base64-url-safe"}"#;
        let Format::Debezium(options) = parse(json).unwrap() else { panic!("not debezium") };
        assert_eq!(options.decimal_handling_mode, DecimalMode::String);
        assert_eq!(options.binary_handling_mode, BinaryMode::Base64UrlSafe);
    }

    #[test]
    fn what_is_unknown_is_named() {
        let error = |json| parse(json).unwrap_err().to_string();
        assert!(error("\"avro\"").contains("unknown variant `avro`"), "{}", error("\"avro\""));
        let json = "{\"kind\":\"debezium\",\"decimal\":\"string\"}";
        assert!(error(json).contains("unknown field `decimal`"), "{}", error(json));
        let json = "{\"kind\":\"headwater\",\"decimal\":\"string\"}";
        assert!(error(json).contains("unknown field `decimal`"), "{}", error(json));
    }
}
