//! Headwater's own JSON. Shown in docs/formats.md.

mod outbox;
mod source;
pub(super) mod value;

use std::sync::Arc;

use headwater_core::{Op, Result, Row, Table, Value};

use self::source::Source;
use super::columns::{Exposed, Whose, exposed, named};
use super::{Contract, Encoder, EventView, Headers, KeyWriter, json, time};

pub(super) use outbox::HeadwaterOutbox;

/// Writes the `headwater` format.
pub(super) struct HeadwaterEncoder {
    whose: Whose,
    key: KeyWriter,
    key_columns: Vec<Exposed>,
    columns: Vec<Exposed>,
    /// For each op, what stands between the id and the key.
    heads: [Box<[u8]>; 5],
    source: Source,
}

impl HeadwaterEncoder {
    pub(super) fn new(contract: &Contract, table: &Arc<Table>) -> Result<Self> {
        let head = |op: Op| head(contract, op);
        Ok(Self {
            whose: Whose::new(contract, table),
            key: KeyWriter::new(contract, &contract.key, table)?,
            key_columns: named(contract, table, &contract.key)?,
            columns: exposed(contract, table)?,
            heads: [head(Op::Read), head(Op::Create), head(Op::Update), head(Op::Delete), head(Op::Truncate)],
            source: Source::new(&table.schema, &table.name),
        })
    }

    fn head(&self, op: Op) -> &[u8] {
        let [read, create, update, delete, truncate] = &self.heads;
        match op {
            Op::Read => read,
            Op::Create => create,
            Op::Update => update,
            Op::Delete => delete,
            Op::Truncate => truncate,
        }
    }

    fn write_key(&self, out: &mut Vec<u8>, row: Option<&Row>) -> Result<()> {
        let Some(row) = row.filter(|_| !self.key_columns.is_empty()) else {
            out.extend_from_slice(b"null");
            return Ok(());
        };
        let start = out.len();
        for column in &self.key_columns {
            let value = self.whose.key_value(row, column)?;
            self.write_field(out, column, value)?;
        }
        json::close_object(out, start);
        Ok(())
    }

    /// Writes a row as an object of what the source sent of it; says whether it left out a large value
    /// because it is unchanged.
    fn write_row(&self, out: &mut Vec<u8>, row: Option<&Row>) -> Result<bool> {
        let Some(row) = row else {
            out.extend_from_slice(b"null");
            return Ok(false);
        };
        let start = out.len();
        let mut unchanged = false;
        for column in &self.columns {
            match row.value(column.at) {
                Value::Absent => {}
                Value::Unchanged => unchanged = true,
                value => self.write_field(out, column, value)?,
            }
        }
        json::close_object(out, start);
        Ok(unchanged)
    }

    #[inline]
    fn write_field(&self, out: &mut Vec<u8>, column: &Exposed, value: Value<'_>) -> Result<()> {
        out.extend_from_slice(&column.field);
        match value {
            Value::Bytes(kind, bytes) => value::write(out, &column.ty, kind, bytes)
                .map_err(|error| self.whose.malformed(error, &column.column)),
            _ => {
                out.extend_from_slice(b"null");
                Ok(())
            }
        }
    }

    /// Writes the names of the columns that were left out of `after`.
    fn write_unchanged(&self, out: &mut Vec<u8>, after: &Row) {
        out.extend_from_slice(b",\"unchanged\":");
        let start = out.len();
        for column in self.columns.iter().filter(|column| after.value(column.at) == Value::Unchanged) {
            // The field without its colon: a comma and the name.
            out.extend_from_slice(column.field.split_last().map_or(&[], |(_, name)| name));
        }
        if let Some(comma) = out.get_mut(start) {
            *comma = b'[';
        }
        out.push(b']');
    }
}

/// What stands between the id and the key: all of it is known beforehand.
fn head(contract: &Contract, op: Op) -> Box<[u8]> {
    let mut head = b"\",\"stream\":".to_vec();
    json::str(&mut head, &contract.stream);
    let (op, version) = (op.as_str(), contract.version);
    head.extend_from_slice(
        format!(",\"type\":\"{op}\",\"version\":{version},\"op\":\"{op}\",\"key\":").as_bytes(),
    );
    head.into()
}

impl Encoder for HeadwaterEncoder {
    fn key(&mut self, row: &Row, out: &mut Vec<u8>) -> Result<bool> {
        if self.key.is_empty() {
            return Ok(false);
        }
        self.key.write(row, out)?;
        Ok(true)
    }

    fn payload(&mut self, event: &EventView<'_>, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(b"{\"id\":\"");
        out.extend_from_slice(&event.id.to_text());
        out.extend_from_slice(self.head(event.op));
        self.write_key(out, event.key_row())?;
        out.extend_from_slice(b",\"before\":");
        self.write_row(out, event.before)?;
        out.extend_from_slice(b",\"after\":");
        let after = event.after.filter(|_| event.op != Op::Delete);
        let unchanged = self.write_row(out, after)?;
        if let Some(after) = after.filter(|_| unchanged) {
            self.write_unchanged(out, after);
        }
        self.source.write(out, &event.change.transaction, &event.change.position);
        out.extend_from_slice(b",\"captured_at\":\"");
        time::write_instant(out, event.captured_at);
        out.extend_from_slice(b"\"}");
        Ok(())
    }

    fn headers(&mut self, _: &EventView<'_>, _: &mut Headers) -> Result<()> {
        Ok(())
    }
}
