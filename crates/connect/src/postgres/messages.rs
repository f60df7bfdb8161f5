//! `pg_logical_emit_message(true, 'headwater', ...)`: an outbox without a table.
//!
//! The message is a JSON object with the members of an outbox row; it becomes a row of the outbox table,
//! or of a table that exists only here when the source has none.

use std::sync::Arc;

use headwater_core::{CellKind, Column, ColumnType, Identity, Row, RowBuilder, Table};
use headwater_wire::format::OutboxColumns;
use serde_json::value::RawValue;

/// Which messages are outbox rows, and the table whose rows they are.
pub struct Messages {
    prefix: String,
    table: Arc<Table>,
}

/// The table of messages where the source has no outbox table: schema and name.
pub const TABLE: (&str, &str) = ("", "messages");

impl Messages {
    /// Messages with this prefix are rows of the outbox `table` (or of [`TABLE`]) with these columns. An
    /// empty prefix is none.
    pub fn new(prefix: &str, table: Option<&(String, String)>, columns: &OutboxColumns) -> Self {
        let column = |name: &str, ty| Column { name: name.to_owned(), ty, key: false };
        let mut described = vec![
            column(&columns.id, ColumnType::Text),
            column(&columns.aggregatetype, ColumnType::Text),
            column(&columns.aggregateid, ColumnType::Text),
            column(&columns.kind, ColumnType::Text),
            column(&columns.payload, ColumnType::Json),
            column(columns.headers(), ColumnType::Json),
            column(columns.timestamp(), ColumnType::Dynamic),
        ];
        described.iter_mut().take(1).for_each(|id| id.key = true);
        let (schema, name) = table.cloned().unwrap_or_else(|| (TABLE.0.to_owned(), TABLE.1.to_owned()));
        let table = Table { schema, name, columns: described, identity: Identity::Key };
        Self { prefix: prefix.to_owned(), table: Arc::new(table) }
    }

    /// Whether messages with this prefix are for us.
    pub fn are(&self, prefix: &str) -> bool {
        !self.prefix.is_empty() && prefix == self.prefix
    }

    /// The row that a message is; `None` when it is not for us. What is not a JSON object becomes a row
    /// with nothing but its payload: the runtime parks it and says why, and nothing stops.
    pub fn row(&self, prefix: &str, content: &[u8]) -> Option<(Arc<Table>, Row)> {
        if !self.are(prefix) {
            return None;
        }
        let members = serde_json::from_slice::<std::collections::BTreeMap<String, Box<RawValue>>>(content);
        let mut row = RowBuilder::with_capacity(self.table.columns.len());
        for column in &self.table.columns {
            match &members {
                Ok(members) => push(&mut row, members.get(&column.name).map(|raw| raw.get()), &column.ty),
                Err(_) if column.name == self.table.columns[4].name => row.push(CellKind::Text, content),
                Err(_) => row.push(CellKind::Null, b""),
            }
        }
        Some((self.table.clone(), row.build()))
    }
}

/// A JSON column keeps the member's text. Of the others, a string is what it says and anything else its
/// JSON; a dynamic one tells numbers from texts.
fn push(row: &mut RowBuilder, member: Option<&str>, ty: &ColumnType) {
    let Some(member) = member.filter(|member| *member != "null") else {
        return row.push(CellKind::Null, b"");
    };
    let string = || serde_json::from_str::<String>(member).ok();
    match (ty, member.starts_with('"').then(string).flatten()) {
        (ColumnType::Json, _) | (ColumnType::Text, None) => row.push(CellKind::Text, member.as_bytes()),
        (ColumnType::Text, Some(text)) => row.push(CellKind::Text, text.as_bytes()),
        (_, Some(text)) => row.push(CellKind::String, text.as_bytes()),
        (_, None) => row.push(CellKind::Integer, member.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(content: &str) -> Vec<Option<String>> {
        let messages = Messages::new("headwater", None, &OutboxColumns::default());
        let (_, row) = messages.row("headwater", content.as_bytes()).unwrap();
        let text = |value| match value {
            headwater_core::Value::Bytes(_, bytes) => Some(String::from_utf8(bytes.to_vec()).unwrap()),
            _ => None,
        };
        row.values().map(text).collect()
    }

    #[test]
    fn members_are_columns() {
        let row = texts(
            r#"{"id": "a", "aggregatetype": "order", "aggregateid": 7, "type": "Placed", "payload": {"x": 1.50}}"#,
        );
        let some = |text: &str| Some(text.to_owned());
        let expected =
            [some("a"), some("order"), some("7"), some("Placed"), some(r#"{"x": 1.50}"#), None, None];
        assert_eq!(row, expected);
    }

    #[test]
    fn a_timestamp_is_a_number_or_a_text() {
        let messages = Messages::new("headwater", None, &OutboxColumns::default());
        for (timestamp, kind, text) in [
            ("1715940000500", CellKind::Integer, "1715940000500"),
            ("\"2024-05-17T10:00:00Z\"", CellKind::String, "2024-05-17T10:00:00Z"),
        ] {
            let content = format!("{{\"timestamp\": {timestamp}}}");
            let (_, row) = messages.row("headwater", content.as_bytes()).unwrap();
            assert_eq!(row.value(6), headwater_core::Value::Bytes(kind, text.as_bytes()));
        }
    }

    #[test]
    fn what_is_not_an_object_is_all_payload() {
        assert_eq!(texts("oops"), [None, None, None, None, Some("oops".to_owned()), None, None]);
    }

    #[test]
    fn other_prefixes_are_not_for_us() {
        let messages = Messages::new("headwater", None, &OutboxColumns::default());
        assert!(messages.row("other", b"{}").is_none());
        assert!(Messages::new("", None, &OutboxColumns::default()).row("", b"{}").is_none());
    }
}
