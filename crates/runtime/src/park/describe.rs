//! A parked change for a person who looks at it.

use headwater_core::ports::Parked;
use headwater_core::{CellKind, Row, Table, Value};
use serde_json::{Map, json};

use super::decode;

/// The change as JSON: op, table, transaction, position, and the rows by column, their values as the source
/// wrote them. `None` where it cannot be read.
pub fn describe(parked: &Parked) -> Option<String> {
    let change = decode(&parked.change).ok()?;
    let table = &change.table;
    let told = json!({
        "op": change.op,
        "table": table.full_name(),
        "transaction": change.transaction.id,
        "position": change.position,
        "before": change.before.as_ref().map(|row| columns(table, row)),
        "after": change.after.as_ref().map(|row| columns(table, row)),
    });
    Some(told.to_string())
}

fn columns(table: &Table, row: &Row) -> Map<String, serde_json::Value> {
    let told = |(column, value): (&headwater_core::Column, Value<'_>)| {
        let value = match value {
            Value::Null => serde_json::Value::Null,
            Value::Absent | Value::Unchanged => return None,
            Value::Bytes(CellKind::Blob, bytes) => format!("({} bytes)", bytes.len()).into(),
            Value::Bytes(_, bytes) => String::from_utf8_lossy(bytes).into(),
        };
        Some((column.name.clone(), value))
    };
    table.columns.iter().zip(row.values()).filter_map(told).collect()
}
