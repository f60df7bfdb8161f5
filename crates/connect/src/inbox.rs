//! What the inbox tables of all databases have in common: how an event that is set aside is written.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use headwater_core::ports::{Aside, ShelfState};
use headwater_core::{Error, Event, EventId, Header, Kind, Micros, Position, Record, Result};
use serde_json::{Value, json};
use smallvec::SmallVec;
use sqlx::{AssertSqlSafe, Database, Pool, Transaction};

/// Inbox rows that one statement deletes.
pub const CLEANED: i64 = 1000;

/// How much later than the consumer a server gives up a handler's statement.
pub const MARGIN: Duration = Duration::from_secs(1);

/// Begins a transaction, in a task of its own: one that nobody waits for any more when it has begun is rolled back. sqlx
/// itself would give its connection back with the transaction open, and the next to use it would write into that.
pub async fn begin<D: Database>(pool: &Pool<D>, sql: String) -> sqlx::Result<Transaction<'static, D>> {
    let pool = pool.clone();
    let begun = tokio::spawn(async move { pool.begin_with(AssertSqlSafe(sql)).await });
    begun.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
}

/// The columns of an event that is set aside.
pub struct Columns {
    pub stream: String,
    pub partition: i64,
    pub offset: i64,
    pub id: EventId,
    pub key: Option<Vec<u8>>,
    pub kind: String,
    pub headers: String,
    pub payload: Option<Vec<u8>>,
    pub time: Micros,
}

impl Columns {
    /// The event.
    pub fn record(self) -> Result<Record> {
        let event = Event {
            id: self.id,
            stream: self.stream.into(),
            partition: Some(u32::try_from(self.partition).unwrap_or(0)),
            kind: self.kind.into(),
            key: self.key.map(Bytes::from),
            payload: self.payload.map(Bytes::from),
            headers: read_headers(&self.headers)?,
            time: self.time,
            position: Position::ZERO,
        };
        Ok(Record { offset: u64::try_from(self.offset).unwrap_or(0), event })
    }
}

/// The word for how an event that is set aside stands at first.
pub fn state(aside: &Aside) -> &'static str {
    let state = match (&aside.parked, aside.again) {
        (None, _) => ShelfState::Waiting,
        (Some(_), None) => ShelfState::Parked,
        (Some(_), Some(_)) => ShelfState::Retrying,
    };
    state.word()
}

/// Headers as a JSON array of `[name, value]`; a value that is no text is `{"hex": "..."}`.
pub fn headers(event: &Event) -> String {
    let value = |header: &Header| match header.value.as_deref() {
        None => Value::Null,
        Some(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => json!(text),
            Err(_) => json!({ "hex": hex(bytes) }),
        },
    };
    let headers = event.headers.iter().map(|header| json!([*header.name, value(header)]));
    Value::Array(headers.collect()).to_string()
}

fn read_headers(text: &str) -> Result<SmallVec<[Header; 2]>> {
    let wrong = || Error::new(Kind::Decode, "reading the headers of an event that is set aside");
    let pairs: Vec<(Arc<str>, Value)> = serde_json::from_str(text).map_err(|error| wrong().because(error))?;
    let header = |(name, value): (Arc<str>, Value)| {
        let value = match &value {
            Value::Null => None,
            Value::String(text) => Some(Bytes::copy_from_slice(text.as_bytes())),
            other => Some(other["hex"].as_str().and_then(unhex).ok_or_else(wrong)?.into()),
        };
        Ok(Header { name, value })
    };
    pairs.into_iter().map(header).collect()
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: &u8| char::from(*digit).to_digit(16);
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::try_from(digit(pair.first()?)? << 4 | digit(pair.get(1)?)?).ok();
    pairs.map(byte).collect()
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;

    #[test]
    fn what_is_set_aside_reads_back_as_it_was() {
        let header = |name: &str, value: Option<&[u8]>| Header {
            name: name.into(),
            value: value.map(Bytes::copy_from_slice),
        };
        let event = Event {
            id: EventId::derive(1, &[b"x"]),
            stream: "s".into(),
            partition: Some(3),
            kind: "Placed".into(),
            key: Some(Bytes::from_static(b"\xff\x00")),
            payload: None,
            headers: smallvec![
                header("trace", Some("a\"\u{0}é".as_bytes())),
                header("none", None),
                header("bytes", Some(b"\xfe\x01")),
                header("empty", Some(b"")),
            ],
            time: 1_700_000_000_123_456,
            position: Position::ZERO,
        };
        let columns = Columns {
            stream: "s".into(),
            partition: 3,
            offset: 9,
            id: event.id,
            key: event.key.as_deref().map(<[u8]>::to_vec),
            kind: "Placed".into(),
            headers: headers(&event),
            payload: None,
            time: event.time,
        };
        assert_eq!(columns.record().unwrap(), Record { offset: 9, event });
        for bad in ["", "{}", "[1]", r#"[["a", 1]]"#, r#"[["a", {"hex": "zz"}]]"#, r#"[["a", {"hex": "a"}]]"#]
        {
            assert!(read_headers(bad).is_err(), "{bad}");
        }
    }
}
