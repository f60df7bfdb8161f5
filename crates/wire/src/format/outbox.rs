//! Reading an outbox row.

use std::borrow::Cow;

use headwater_core::{Error, Kind, Micros, Result, Row, Table};
use serde::Deserialize;

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
    /// Headers: a JSON object of strings. `None`: `headers`, if the table has such a column.
    pub headers: Option<String>,
    /// When it happened. `None`: the commit's time.
    pub timestamp: Option<String>,
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
        }
    }
}

impl OutboxColumns {
    /// Finds the columns in a table. One that is missing is an error of kind `Contract`.
    pub fn reader(&self, table: &Table) -> Result<OutboxReader> {
        let _ = table;
        Err(Error::new(Kind::Internal, "outbox rows are not read yet"))
    }
}

/// Reads the rows of one version of an outbox table.
#[derive(Debug, Clone)]
pub struct OutboxReader {}

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
    pub payload: Option<Cow<'a, [u8]>>,
    /// Whether the payload is JSON: its column's type says so, or (text, bytes) it reads as JSON.
    pub payload_is_json: bool,
    /// Its headers.
    pub headers: Vec<(String, Option<String>)>,
    /// When it happened, where a column says so.
    pub timestamp: Option<Micros>,
}

impl OutboxReader {
    /// Reads a row. Errors are of kind `Decode`.
    pub fn read<'a>(&self, row: &'a Row) -> Result<OutboxRow<'a>> {
        let _ = row;
        Err(Error::new(Kind::Internal, "outbox rows are not read yet"))
    }
}
