//! What Debezium's PostgreSQL connector (3.x) writes through Kafka Connect's JSON converter without
//! schemas. Shown in docs/formats.md, with where it differs.

mod decimal;
mod interval;
mod options;
mod outbox;
mod placeholder;
mod source;
mod temporal;
mod value;

use std::sync::Arc;

use bytes::Bytes;
use headwater_core::{Header, Op, Result, Row, Table, Value};

use self::placeholder::placeholder;
use self::source::Source;
use super::columns::{Exposed, Whose, exposed, named};
use super::{Contract, Encoder, EventView, Headers, json};

pub use options::{BinaryMode, DebeziumOptions, DecimalMode, HstoreMode, IntervalMode, TimeMode};
pub(super) use outbox::DebeziumOutbox;
pub use outbox::{PlacedField, Placement};

/// The field of a key that tells apart the tables of one stream: what Debezium's topic routing adds.
const TABLE_FIELD: &str = "__dbz__physicalTableIdentifier";

/// Writes the `debezium` format.
pub(super) struct DebeziumEncoder {
    options: DebeziumOptions,
    whose: Whose,
    key_columns: Vec<Exposed>,
    /// What a key ends with, where several tables feed the stream.
    key_table: Vec<u8>,
    columns: Vec<(Exposed, Box<[u8]>)>,
    source: Source,
    new_key: Arc<str>,
    old_key: Arc<str>,
}

impl DebeziumEncoder {
    pub(super) fn new(options: &DebeziumOptions, contract: &Contract, table: &Arc<Table>) -> Result<Self> {
        let with_placeholder = |column: Exposed| {
            let placeholder = placeholder(options, &column.ty);
            (column, placeholder)
        };
        let mut key_table = Vec::new();
        if let Some(name) = &contract.key_prefix {
            key_table.extend_from_slice(&json::field(TABLE_FIELD));
            json::str(&mut key_table, name);
        }
        Ok(Self {
            options: options.clone(),
            whose: Whose::new(contract, table),
            key_columns: named(contract, table, &contract.key)?,
            key_table,
            columns: exposed(contract, table)?.into_iter().map(with_placeholder).collect(),
            source: Source::new(options.topic_prefix.clone(), &table.schema, &table.name),
            new_key: Arc::from("__debezium.newkey"),
            old_key: Arc::from("__debezium.oldkey"),
        })
    }

    fn write_value(&self, out: &mut Vec<u8>, column: &Exposed, value: Value<'_>) -> Result<()> {
        match value {
            Value::Bytes(kind, bytes) => value::write(out, &self.options, &column.ty, kind, bytes)
                .map_err(|error| self.whose.malformed(error, &column.column)),
            _ => {
                out.extend_from_slice(b"null");
                Ok(())
            }
        }
    }

    fn write_key(&self, out: &mut Vec<u8>, row: &Row) -> Result<()> {
        let start = out.len();
        for column in &self.key_columns {
            let value = self.whose.key_value(row, column)?;
            out.extend_from_slice(&column.field);
            self.write_value(out, column, value)?;
        }
        out.extend_from_slice(&self.key_table);
        json::close_object(out, start);
        Ok(())
    }

    /// Writes a row; what the source did not send is null, or the placeholder where it is unchanged.
    fn write_row(&self, out: &mut Vec<u8>, row: Option<&Row>) -> Result<()> {
        let Some(row) = row else {
            out.extend_from_slice(b"null");
            return Ok(());
        };
        let start = out.len();
        for (column, placeholder) in &self.columns {
            out.extend_from_slice(&column.field);
            match row.value(column.at) {
                Value::Unchanged => out.extend_from_slice(placeholder),
                value => self.write_value(out, column, value)?,
            }
        }
        json::close_object(out, start);
        Ok(())
    }
}

fn letter(op: Op) -> u8 {
    match op {
        Op::Read => b'r',
        Op::Create => b'c',
        Op::Update => b'u',
        Op::Delete => b'd',
        Op::Truncate => b't',
    }
}

impl Encoder for DebeziumEncoder {
    fn key(&mut self, row: &Row, out: &mut Vec<u8>) -> Result<bool> {
        if self.key_columns.is_empty() {
            return Ok(false);
        }
        self.write_key(out, row)?;
        Ok(true)
    }

    fn payload(&mut self, event: &EventView<'_>, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(b"{\"before\":");
        self.write_row(out, event.before)?;
        out.extend_from_slice(b",\"after\":");
        self.write_row(out, event.after.filter(|_| event.op != Op::Delete))?;
        self.source.write(out, event.op, &event.change.transaction, &event.change.position);
        out.extend_from_slice(b",\"transaction\":null,\"op\":\"");
        out.push(letter(event.op));
        out.extend_from_slice(b"\",\"ts_ms\":");
        json::integer(out, event.captured_at.div_euclid(1000));
        out.extend_from_slice(b",\"ts_us\":");
        json::integer(out, event.captured_at);
        out.extend_from_slice(b",\"ts_ns\":");
        json::integer(out, event.captured_at.saturating_mul(1000));
        out.push(b'}');
        Ok(())
    }

    fn headers(&mut self, event: &EventView<'_>, headers: &mut Headers) -> Result<()> {
        let Some(moved) = event.moved.filter(|_| !self.key_columns.is_empty()) else { return Ok(()) };
        let name = if event.op == Op::Delete { &self.new_key } else { &self.old_key };
        let mut key = Vec::new();
        self.write_key(&mut key, moved.other)?;
        headers.push(Header { name: Arc::clone(name), value: Some(Bytes::from(key)) });
        Ok(())
    }
}
