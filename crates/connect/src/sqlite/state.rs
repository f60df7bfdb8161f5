//! What a checkpoint of this source remembers.

use std::collections::{BTreeMap, BTreeSet};

use headwater_core::{Checkpoint, Error, Kind, Micros, Result};
use rusqlite::types::Value;
use serde::{Deserialize, Serialize};

/// The state inside a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct State {
    /// The database's system id.
    pub system_id: String,
    /// The last change handed out. It stays in the database, so that a database which was replaced by
    /// an older copy is recognised: there it is missing, or another change has its id.
    pub anchor: Option<Anchor>,
    /// The schema's version then: a rowid that is no key may have changed since (VACUUM raises it).
    pub schema: i64,
    /// The tables whose snapshot is complete: name, and the definition it was read under.
    pub done: BTreeMap<String, i64>,
    /// The tables that `snapshot = "never"` left unread: name, and their newest gap then. One that opens
    /// later is read all the same.
    #[serde(default)]
    pub skipped: BTreeMap<String, i64>,
    /// The snapshot under way.
    pub snapshot: Option<Snapshot>,
    /// The tables that an operator asked to be read anew, and that were not read to their end since.
    pub asked: BTreeSet<String>,
    /// The last request that was followed.
    pub request: Option<String>,
}

/// A change that the database must still have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// Its id.
    pub id: u64,
    /// When it was made, in milliseconds.
    pub at: i64,
}

/// A snapshot that is not complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name: with table and key it gives reads their ids.
    pub name: String,
    /// When it was begun.
    pub begun: Micros,
    /// The table that is being read.
    pub table: Option<Progress>,
}

/// How far the reading of a table is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The table.
    pub table: String,
    /// The definition that the reading began under.
    pub def: i64,
    /// The place of the last row handed out; empty before the first.
    pub after: Vec<Scalar>,
    /// The rows handed out.
    pub rows: u64,
}

/// A value of a key, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scalar {
    /// NULL.
    Null,
    /// An integer.
    Integer(i64),
    /// The bits of a float.
    Real(u64),
    /// Text that is UTF-8.
    Text(String),
    /// Text that is not.
    Bytes(Vec<u8>),
    /// A blob.
    Blob(Vec<u8>),
}

impl From<rusqlite::types::ValueRef<'_>> for Scalar {
    fn from(value: rusqlite::types::ValueRef<'_>) -> Self {
        use rusqlite::types::ValueRef;
        match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(number) => Self::Integer(number),
            ValueRef::Real(number) => Self::Real(number.to_bits()),
            ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => Self::Text(text.to_owned()),
                Err(_) => Self::Bytes(bytes.to_vec()),
            },
            ValueRef::Blob(bytes) => Self::Blob(bytes.to_vec()),
        }
    }
}

impl Scalar {
    /// The value to bind, and how the parameter has to be written: text that is not UTF-8 can only be
    /// bound as a blob.
    pub fn parameter(&self) -> (Value, &'static str) {
        match self {
            Self::Null => (Value::Null, "?"),
            Self::Integer(number) => (Value::Integer(*number), "?"),
            Self::Real(bits) => (Value::Real(f64::from_bits(*bits)), "?"),
            Self::Text(text) => (Value::Text(text.clone()), "?"),
            Self::Bytes(bytes) => (Value::Blob(bytes.clone()), "CAST(? AS TEXT)"),
            Self::Blob(bytes) => (Value::Blob(bytes.clone()), "?"),
        }
    }
}

impl State {
    /// What a checkpoint remembers.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        serde_json::from_value(checkpoint.state.clone()).map_err(|error| {
            Error::new(Kind::Decode, format!("reading the checkpoint of source {}", checkpoint.source))
                .because(error)
                .hint("was this source of another kind before? give it another name")
        })
    }

    /// What a checkpoint is to remember.
    pub fn to_json(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self)
            .map_err(|error| Error::new(Kind::Internal, "writing a checkpoint").because(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::types::ValueRef;

    #[test]
    fn key_values_survive_exactly() {
        let values = [
            ValueRef::Null,
            ValueRef::Integer(i64::MIN),
            ValueRef::Real(-0.0),
            ValueRef::Real(f64::INFINITY),
            ValueRef::Text("a\0é".as_bytes()),
            ValueRef::Text(&[0xff, 0]),
            ValueRef::Blob(&[0xff, 0]),
        ];
        for value in values {
            let scalar = Scalar::from(value);
            let back: Scalar = serde_json::from_str(&serde_json::to_string(&scalar).unwrap()).unwrap();
            assert_eq!(back, scalar);
            let conn = rusqlite::Connection::open_in_memory().unwrap();
            let (parameter, sql) = back.parameter();
            let same = conn.query_row(&format!("select {sql}"), [parameter], |row| {
                Ok(Scalar::from(row.get_ref(0)?) == scalar)
            });
            assert!(same.unwrap(), "{value:?}");
        }
    }
}
