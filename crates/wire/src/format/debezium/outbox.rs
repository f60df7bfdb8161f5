//! What Debezium's outbox event router makes of an outbox row.

use std::sync::Arc;

use bytes::Bytes;
use headwater_core::{Header, Result};
use serde::{Deserialize, Deserializer, de};

use super::super::outbox::Payload;
use super::super::{Headers, OutboxEncoder, OutboxRow, OutboxView, json};
use super::DebeziumOptions;

/// A field of the row that is written beside the payload (`table.fields.additional.placement`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Which field.
    pub field: PlacedField,
    /// In the payload's envelope instead of a header.
    pub in_envelope: bool,
    /// Its name there.
    pub alias: String,
}

/// A field of an outbox row that can be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlacedField {
    /// The event's id.
    Id,
    /// What sort of thing it is about.
    AggregateType,
    /// Which one.
    AggregateId,
    /// What happened.
    Type,
}

/// Reads `type:header:eventType,aggregatetype:envelope`, as Debezium writes it.
pub(super) fn placements<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Placement>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.split(',')
        .filter(|part| !part.trim().is_empty())
        .map(|part| placement(part).map_err(de::Error::custom))
        .collect()
}

fn placement(text: &str) -> Result<Placement, String> {
    let mut parts = text.trim().splitn(3, ':');
    let name = parts.next().unwrap_or_default();
    let field = match name {
        "id" => PlacedField::Id,
        "aggregatetype" => PlacedField::AggregateType,
        "aggregateid" => PlacedField::AggregateId,
        "type" => PlacedField::Type,
        _ => {
            return Err(format!(
                "\"{name}\" cannot be placed: expected id, aggregatetype, aggregateid or type"
            ));
        }
    };
    let in_envelope = match parts.next() {
        Some("header") => false,
        Some("envelope") => true,
        _ => {
            return Err(format!(
                "\"{text}\" places nothing: expected FIELD:header or FIELD:envelope, and :ALIAS"
            ));
        }
    };
    Ok(Placement { field, in_envelope, alias: parts.next().unwrap_or(name).to_owned() })
}

impl PlacedField {
    fn of<'a>(self, row: &'a OutboxRow<'_>) -> Option<&'a str> {
        match self {
            Self::Id => Some(&row.id),
            Self::AggregateType => Some(&row.aggregate_type),
            Self::AggregateId => row.aggregate_id.as_deref(),
            Self::Type => Some(&row.kind),
        }
    }
}

/// Writes what Debezium's outbox event router writes.
pub(in super::super) struct DebeziumOutbox {
    in_envelope: Vec<Placement>,
    headers: Vec<(Arc<str>, PlacedField)>,
    id: Arc<str>,
}

impl DebeziumOutbox {
    pub(in super::super) fn new(options: &DebeziumOptions) -> Self {
        let (in_envelope, headers): (Vec<_>, Vec<_>) =
            options.table_fields_additional_placement.iter().cloned().partition(|placed| placed.in_envelope);
        let headers = headers.into_iter().map(|placed| (Arc::from(placed.alias), placed.field)).collect();
        Self { in_envelope, headers, id: Arc::from("id") }
    }
}

impl OutboxEncoder for DebeziumOutbox {
    fn key(&mut self, row: &OutboxRow<'_>, out: &mut Vec<u8>) -> Result<bool> {
        Ok(row.write_key(out))
    }

    fn payload(&mut self, event: &OutboxView<'_>, out: &mut Vec<u8>) -> Result<bool> {
        let row = event.row;
        if self.in_envelope.is_empty() {
            let payload = row.payload.as_ref().map(Payload::as_bytes);
            out.extend_from_slice(payload.unwrap_or_default());
            return Ok(payload.is_some());
        }
        out.extend_from_slice(b"{\"payload\":");
        match &row.payload {
            None => out.extend_from_slice(b"null"),
            Some(Payload::Json(text)) => out.extend_from_slice(text.as_bytes()),
            Some(Payload::Text(text)) => json::str(out, text),
            Some(Payload::Bytes(bytes)) => json::base64(out, bytes),
        }
        for placed in &self.in_envelope {
            out.extend_from_slice(&json::field(&placed.alias));
            match placed.field.of(row) {
                Some(text) => json::str(out, text),
                None => out.extend_from_slice(b"null"),
            }
        }
        out.push(b'}');
        Ok(true)
    }

    fn headers(&mut self, event: &OutboxView<'_>, headers: &mut Headers) -> Result<()> {
        let value = |text: &str| Some(Bytes::copy_from_slice(text.as_bytes()));
        headers.push(Header { name: Arc::clone(&self.id), value: value(&event.row.id) });
        for (name, field) in &self.headers {
            headers.push(Header { name: Arc::clone(name), value: field.of(event.row).and_then(value) });
        }
        event.row.add_headers(headers);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placements_are_read_as_debezium_writes_them() {
        let placed =
            |field, in_envelope, alias: &str| Placement { field, in_envelope, alias: alias.to_owned() };
        assert_eq!(placement("type:header:eventType"), Ok(placed(PlacedField::Type, false, "eventType")));
        assert_eq!(
            placement(" aggregatetype:envelope"),
            Ok(placed(PlacedField::AggregateType, true, "aggregatetype"))
        );
        for bad in ["type", "type:partition", "color:header", ""] {
            assert!(placement(bad).is_err(), "{bad}");
        }
    }
}
