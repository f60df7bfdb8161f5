//! Events to rows of the `event` table and back.

use std::sync::Arc;

use bytes::Bytes;
use headwater_core::{Event, EventId, Header, Position, Record};
use rusqlite::types::{Type, ValueRef};
use rusqlite::{CachedStatement, Row, params};
use serde_json::Value;
use smallvec::SmallVec;

use super::segment::unplace;

/// The columns of `event`, in the order that [`insert`] writes and [`Rows`] reads them.
pub(super) const COLUMNS: &str = "place, id, time, position, kind, key, headers, payload";

/// Writes one event; the statement is an `INSERT` of [`COLUMNS`].
pub(super) fn insert(statement: &mut CachedStatement<'_>, place: i64, event: &Event) -> rusqlite::Result<()> {
    let mut position = [0; 8 + Position::MAX];
    let bytes = event.position.bytes();
    position[..8].copy_from_slice(&event.position.epoch().to_be_bytes());
    position[8..8 + bytes.len()].copy_from_slice(bytes);
    let headers = (!event.headers.is_empty()).then(|| headers_to_json(&event.headers));
    statement
        .execute(params![
            place,
            &event.id.as_bytes()[..],
            event.time,
            &position[..8 + bytes.len()],
            &*event.kind,
            event.key.as_deref(),
            headers,
            event.payload.as_deref(),
        ])
        .map(drop)
}

fn headers_to_json(headers: &[Header]) -> String {
    let value = |value: &Option<Bytes>| match value.as_deref().map(std::str::from_utf8) {
        None => Value::Null,
        Some(Ok(text)) => Value::from(text),
        Some(Err(_)) => {
            let digits = |byte: &u8| format!("{byte:02x}");
            Value::from(vec![value.iter().flatten().map(digits).collect::<String>()])
        }
    };
    let pair = |header: &Header| Value::from(vec![Value::from(&*header.name), value(&header.value)]);
    Value::from(headers.iter().map(pair).collect::<Vec<_>>()).to_string()
}

fn headers_from_json(text: &str) -> Option<SmallVec<[Header; 2]>> {
    let pairs: Vec<(String, Value)> = serde_json::from_str(text).ok()?;
    let header = |(name, value): (String, Value)| {
        let value = match value {
            Value::Null => None,
            Value::String(text) => Some(Bytes::from(text)),
            Value::Array(hex) => Some(from_hex(hex.first()?.as_str()?)?),
            _ => return None,
        };
        Some(Header { name: name.into(), value })
    };
    pairs.into_iter().map(header).collect()
}

fn from_hex(digits: &str) -> Option<Bytes> {
    let digits: Vec<u32> = digits.chars().map(|digit| digit.to_digit(16)).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| (high << 4 | low) as u8).collect())
}

/// Collects the rows of one partition into records: the bytes of all in one buffer.
pub(super) struct Rows {
    stream: Arc<str>,
    base: u32,
    data: Vec<u8>,
    rows: Vec<Raw>,
    /// The kinds met lately: streams have few.
    kinds: Vec<Arc<str>>,
}

struct Raw {
    place: i64,
    id: EventId,
    time: i64,
    position: Position,
    kind: Arc<str>,
    key: Option<(usize, usize)>,
    headers: SmallVec<[Header; 2]>,
    payload: Option<(usize, usize)>,
}

impl Rows {
    /// None yet, of a stream whose partition 0 has the number `base`.
    pub(super) fn new(stream: Arc<str>, base: u32) -> Self {
        Self { stream, base, data: Vec::new(), rows: Vec::new(), kinds: Vec::new() }
    }

    /// How many bytes it holds.
    pub(super) fn bytes(&self) -> usize {
        self.data.len() + self.rows.len() * size_of::<Record>()
    }

    /// How many rows it holds.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Adds a row of [`COLUMNS`].
    pub(super) fn push(&mut self, row: &Row<'_>) -> rusqlite::Result<()> {
        let wrong = |column, name: &str| rusqlite::Error::InvalidColumnType(column, name.into(), Type::Blob);
        let id = row.get_ref(1)?.as_blob()?.try_into().map_err(|_| wrong(1, "id"))?;
        let position = position(row.get_ref(3)?.as_blob()?).ok_or_else(|| wrong(3, "position"))?;
        let headers = match row.get_ref(6)? {
            ValueRef::Null => SmallVec::new(),
            text => headers_from_json(text.as_str()?).ok_or_else(|| wrong(6, "headers"))?,
        };
        let raw = Raw {
            place: row.get(0)?,
            id: EventId::from_bytes(id),
            time: row.get(2)?,
            position,
            kind: self.kind(row.get_ref(4)?.as_str()?),
            key: self.keep(row.get_ref(5)?.as_blob_or_null()?),
            headers,
            payload: self.keep(row.get_ref(7)?.as_blob_or_null()?),
        };
        self.rows.push(raw);
        Ok(())
    }

    fn kind(&mut self, name: &str) -> Arc<str> {
        if let Some(kind) = self.kinds.iter().find(|kind| &***kind == name) {
            return Arc::clone(kind);
        }
        let kind: Arc<str> = name.into();
        if self.kinds.len() < 8 {
            self.kinds.push(Arc::clone(&kind));
        }
        kind
    }

    fn keep(&mut self, bytes: Option<&[u8]>) -> Option<(usize, usize)> {
        let start = self.data.len();
        self.data.extend_from_slice(bytes?);
        Some((start, self.data.len()))
    }

    /// The records, in the order of their rows.
    pub(super) fn finish(self) -> Vec<Record> {
        let data = Bytes::from(self.data);
        let slice = |range: Option<(usize, usize)>| range.map(|(start, end)| data.slice(start..end));
        let record = |raw: Raw| {
            let (number, offset) = unplace(raw.place);
            let event = Event {
                id: raw.id,
                stream: Arc::clone(&self.stream),
                partition: Some(number.saturating_sub(self.base)),
                kind: raw.kind,
                key: slice(raw.key),
                payload: slice(raw.payload),
                headers: raw.headers,
                time: raw.time,
                position: raw.position,
            };
            Record { offset, event }
        };
        self.rows.into_iter().map(record).collect()
    }
}

fn position(bytes: &[u8]) -> Option<Position> {
    let (epoch, rest) = bytes.split_first_chunk::<8>()?;
    Position::new(u64::from_be_bytes(*epoch), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_every_sort_read_back() {
        let header = |name: &str, value: Option<&[u8]>| Header {
            name: name.into(),
            value: value.map(Bytes::copy_from_slice),
        };
        let headers = [
            header("a", Some(b"text \"quoted\"")),
            header("a", None),
            header("", Some(b"")),
            header("raw", Some(&[0xff, 0x00, 0x7f])),
        ];
        let text = headers_to_json(&headers);
        assert_eq!(text, r#"[["a","text \"quoted\""],["a",null],["",""],["raw",["ff007f"]]]"#);
        assert_eq!(headers_from_json(&text).unwrap().as_slice(), &headers);
    }

    #[test]
    fn a_damaged_header_is_no_header() {
        assert_eq!(headers_from_json(r#"[["a",["f"]]]"#), None);
        assert_eq!(headers_from_json(r#"[["a",1]]"#), None);
        assert_eq!(headers_from_json("{"), None);
    }
}
