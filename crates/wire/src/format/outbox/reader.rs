//! From a row of an outbox table to what it says.

use std::borrow::Cow;
use std::num::NonZeroU32;

use headwater_core::{CellKind, ColumnType, Error, Kind, Micros, Result, Row, Table, Value};

use super::super::headwater::value;
use super::super::malformed::{self, Malformed};
use super::super::{bytea, json, time};
use super::{OutboxColumns, OutboxRow, Payload, headers};

/// Reads the rows of one version of an outbox table.
#[derive(Debug, Clone)]
pub struct OutboxReader {
    table: String,
    id: Column,
    aggregatetype: Column,
    aggregateid: Column,
    kind: Column,
    payload: Column,
    headers: Option<Column>,
    timestamp: Option<Column>,
    version: Option<Column>,
}

#[derive(Debug, Clone)]
struct Column {
    at: usize,
    name: String,
    ty: ColumnType,
}

impl OutboxColumns {
    /// Finds the columns in a table. One that is missing is an error of kind `Contract`.
    pub fn reader(&self, table: &Table) -> Result<OutboxReader> {
        let names = self.of(table);
        // One that the config names has to be there.
        let optional = |name: &str, named: bool| match column(table, name) {
            Err(error) if named => Err(error),
            column => Ok(column.ok()),
        };
        Ok(OutboxReader {
            table: table.full_name(),
            id: column(table, &names.id)?,
            aggregatetype: column(table, &names.aggregatetype)?,
            aggregateid: column(table, &names.aggregateid)?,
            kind: column(table, &names.kind)?,
            payload: column(table, &names.payload)?,
            headers: optional(names.headers(), names.headers.is_some())?,
            timestamp: optional(names.timestamp(), names.timestamp.is_some())?,
            version: names.version.as_deref().map(|name| column(table, name)).transpose()?,
        })
    }
}

fn column(table: &Table, name: &str) -> Result<Column> {
    let missing = || {
        Error::new(Kind::Contract, format!("outbox table {} has no column \"{name}\"", table.full_name()))
            .hint("name the outbox's columns in the source's config, or add the column")
    };
    let at = table.column(name).ok_or_else(missing)?;
    let ty = table.columns.get(at).ok_or_else(missing)?.ty.clone();
    Ok(Column { at, name: name.to_owned(), ty })
}

impl OutboxReader {
    /// Reads a row. Errors are of kind `Decode`.
    pub fn read<'a>(&self, row: &'a Row) -> Result<OutboxRow<'a>> {
        Ok(OutboxRow {
            id: self.required(&self.id, row)?,
            aggregate_type: self.aggregate_type(row)?,
            aggregate_id: self.aggregate_id(row)?,
            kind: self.text(&self.kind, row)?.unwrap_or_default(),
            payload: self.value(&self.payload, row, payload)?,
            headers: self.optional(self.headers.as_ref(), row, pairs)?.unwrap_or_default(),
            timestamp: self.optional(self.timestamp.as_ref(), row, micros)?.flatten(),
            version: self.optional(self.version.as_ref(), row, version)?,
        })
    }

    /// What sort of thing a row is about, whatever else of it can be read.
    pub fn aggregate_type<'a>(&self, row: &'a Row) -> Result<Cow<'a, str>> {
        self.required(&self.aggregatetype, row)
    }

    /// Which one a row is about, whatever else of it can be read.
    pub fn aggregate_id<'a>(&self, row: &'a Row) -> Result<Option<Cow<'a, str>>> {
        self.text(&self.aggregateid, row)
    }

    /// A column's value, made something by `read`; `None` when it is NULL.
    fn value<'a, T>(
        &self,
        column: &Column,
        row: &'a Row,
        read: impl FnOnce(&ColumnType, CellKind, &'a [u8]) -> malformed::Result<T>,
    ) -> Result<Option<T>> {
        let Value::Bytes(kind, bytes) = row.value(column.at) else { return Ok(None) };
        let value = read(&column.ty, kind, bytes);
        value.map(Some).map_err(|error| error.of("(outbox)", &self.table, &column.name))
    }

    fn optional<'a, T>(
        &self,
        column: Option<&Column>,
        row: &'a Row,
        read: impl FnOnce(&ColumnType, CellKind, &'a [u8]) -> malformed::Result<T>,
    ) -> Result<Option<T>> {
        column.map_or(Ok(None), |column| self.value(column, row, read))
    }

    fn text<'a>(&self, column: &Column, row: &'a Row) -> Result<Option<Cow<'a, str>>> {
        self.value(column, row, text)
    }

    fn required<'a>(&self, column: &Column, row: &'a Row) -> Result<Cow<'a, str>> {
        self.text(column, row)?.ok_or_else(|| {
            let doing = format!("an outbox row of {} has no \"{}\"", self.table, column.name);
            Error::new(Kind::Decode, doing).hint("make the column NOT NULL")
        })
    }
}

fn text<'a>(ty: &ColumnType, kind: CellKind, bytes: &'a [u8]) -> malformed::Result<Cow<'a, str>> {
    utf8(value::plain(ty, kind, bytes)?)
}

fn utf8(bytes: Cow<'_, [u8]>) -> malformed::Result<Cow<'_, str>> {
    match bytes {
        Cow::Borrowed(bytes) => json::utf8(bytes).map(Cow::Borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).map_err(|_| Malformed::Utf8),
    }
}

fn payload<'a>(ty: &ColumnType, kind: CellKind, bytes: &'a [u8]) -> malformed::Result<Payload<'a>> {
    match (kind, ty) {
        (CellKind::Text, ColumnType::Json | ColumnType::Jsonb) => {
            json::check(bytes)?;
            Ok(Payload::Json(Cow::Borrowed(json::utf8(bytes)?)))
        }
        (CellKind::Text, ColumnType::Bytes) => Ok(binary(Cow::Owned(bytea::decode(bytes)?))),
        (CellKind::Blob, _) => Ok(binary(Cow::Borrowed(bytes))),
        _ => {
            let text = text(ty, kind, bytes)?;
            let is_json = is_object_or_array(text.as_bytes());
            Ok(if is_json { Payload::Json(text) } else { Payload::Text(text) })
        }
    }
}

fn binary(bytes: Cow<'_, [u8]>) -> Payload<'_> {
    if !is_object_or_array(&bytes) {
        return Payload::Bytes(bytes);
    }
    match utf8(bytes) {
        Ok(text) => Payload::Json(text),
        // Cannot be: JSON is UTF-8.
        Err(_) => Payload::Bytes(Cow::Borrowed(b"")),
    }
}

/// Whether text that need not be JSON is: only objects and arrays count, so that the text `12` stays text.
fn is_object_or_array(bytes: &[u8]) -> bool {
    let begins = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    matches!(begins, Some(b'{' | b'[')) && json::check(bytes).is_ok()
}

fn pairs(ty: &ColumnType, _: CellKind, bytes: &[u8]) -> malformed::Result<Vec<(String, Option<String>)>> {
    match ty {
        ColumnType::Hstore => headers::from_hstore(bytes),
        _ => headers::from_json(bytes),
    }
}

fn version(ty: &ColumnType, kind: CellKind, bytes: &[u8]) -> malformed::Result<u32> {
    let version = text(ty, kind, bytes)?.parse::<NonZeroU32>();
    version.map(NonZeroU32::get).map_err(|_| Malformed::Not("a version: a number above 0"))
}

/// A timestamp, or a number of milliseconds; infinities say nothing.
fn micros(ty: &ColumnType, kind: CellKind, bytes: &[u8]) -> malformed::Result<Option<Micros>> {
    let not = Malformed::Not("a timestamp or a number of milliseconds");
    let moment = match (kind, ty) {
        (CellKind::Text, ColumnType::TimestampTz(_)) => time::parse_timestamp(bytes, true)?,
        (CellKind::Text, ColumnType::Timestamp(_)) => time::parse_timestamp(bytes, false)?,
        (CellKind::Integer, _) | (CellKind::Text, ColumnType::Int64) => {
            let millis: i64 = json::utf8(bytes)?.parse().map_err(|_| not)?;
            time::Moment::At(millis.checked_mul(1000).ok_or(not)?)
        }
        (CellKind::String, _) | (CellKind::Text, ColumnType::Text) => {
            time::parse_iso(bytes).map_err(|_| not)?
        }
        _ => return Err(not),
    };
    Ok(match moment {
        time::Moment::At(micros) => Some(micros),
        time::Moment::Infinity | time::Moment::MinusInfinity => None,
    })
}
