//! Outbox rows: which columns an outbox table has, and what a row of it says.

mod headers;
mod reader;

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use headwater_core::{Header, Micros, Table};
use serde::Deserialize;

use super::Headers;

pub use reader::OutboxReader;

/// The columns of an outbox table. The defaults are those of the widespread layout that Debezium's
/// outbox event router made common.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutboxColumns {
    /// The event's id: best a UUID.
    pub id: String,
    /// What sort of thing the event is about; decides the stream.
    pub aggregatetype: String,
    /// Which one: the event's key.
    pub aggregateid: String,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the event says.
    pub payload: String,
    /// Headers: a JSON object, or an hstore. `None`: the column `headers`, if the table has one.
    pub headers: Option<String>,
    /// When it happened: a timestamp, or a number of milliseconds since 1970. `None`: the column
    /// `timestamp`, if the table has one.
    pub timestamp: Option<String>,
    /// The version of the event's schema: a number. `None`: the version of the stream.
    pub version: Option<String>,
}

impl OutboxColumns {
    /// The columns of the outbox that `headwater init` makes.
    pub fn own() -> Self {
        Self {
            aggregatetype: "stream".into(),
            aggregateid: "key".into(),
            timestamp: Some("created_at".into()),
            version: Some("version".into()),
            ..Self::default()
        }
    }

    /// These columns; where nobody named any and the table has those of Headwater's own outbox, these.
    pub fn of(&self, table: &Table) -> Self {
        let has = |name: &str| table.column(name).is_some();
        let own = !has(&self.aggregatetype) && has("stream") && *self == Self::default();
        if own { Self::own() } else { self.clone() }
    }

    /// The column of headers, whether the table has it or not.
    pub fn headers(&self) -> &str {
        self.headers.as_deref().unwrap_or("headers")
    }

    /// The column of times, whether the table has it or not.
    pub fn timestamp(&self) -> &str {
        self.timestamp.as_deref().unwrap_or("timestamp")
    }
}

impl Default for OutboxColumns {
    fn default() -> Self {
        Self {
            id: "id".into(),
            aggregatetype: "aggregatetype".into(),
            aggregateid: "aggregateid".into(),
            kind: "type".into(),
            payload: "payload".into(),
            headers: None,
            timestamp: None,
            version: None,
        }
    }
}

/// What an outbox row says, borrowed from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow<'a> {
    /// The event's id, as text. Where it is a UUID it is the event's id.
    pub id: Cow<'a, str>,
    /// What sort of thing the event is about.
    pub aggregate_type: Cow<'a, str>,
    /// Which one; `None` gives an event without key and order.
    pub aggregate_id: Option<Cow<'a, str>>,
    /// What happened; empty when NULL.
    pub kind: Cow<'a, str>,
    /// What the event says; `None` when NULL.
    pub payload: Option<Payload<'a>>,
    /// Its headers, in order.
    pub headers: Vec<(String, Option<String>)>,
    /// When it happened, where a column says so.
    pub timestamp: Option<Micros>,
    /// The version of its schema, where a column says so.
    pub version: Option<u32>,
}

/// The payload of an outbox row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload<'a> {
    /// JSON: a json or jsonb column, or text or bytes that are a JSON object or array.
    Json(Cow<'a, str>),
    /// Other text.
    Text(Cow<'a, str>),
    /// Other bytes.
    Bytes(Cow<'a, [u8]>),
}

impl Payload<'_> {
    /// Its bytes, whatever they are.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Json(text) | Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl OutboxRow<'_> {
    /// Appends the key; says whether there is one.
    pub(super) fn write_key(&self, out: &mut Vec<u8>) -> bool {
        out.extend_from_slice(self.aggregate_id.as_deref().unwrap_or_default().as_bytes());
        self.aggregate_id.is_some()
    }

    /// Adds the row's own headers.
    pub(super) fn add_headers(&self, headers: &mut Headers) {
        headers.extend(self.headers.iter().map(|(name, value)| Header {
            name: Arc::from(name.as_str()),
            value: value.as_ref().map(|value| Bytes::copy_from_slice(value.as_bytes())),
        }));
    }
}
