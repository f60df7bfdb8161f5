//! What a table looks like, as far as its changes need it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A captured table as it was when a change was made; shared by all its changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The schema (PostgreSQL), database (MySQL) or `main` (SQLite).
    pub schema: String,
    /// The table's name.
    pub name: String,
    /// Its columns, in the order that rows carry them.
    pub columns: Vec<Column>,
    /// What the source can say of a row before its change.
    pub identity: Identity,
}

/// What a source sends of the row before an update or delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// The key columns (those with [`Column::key`]).
    Key,
    /// Every column.
    Full,
    /// Nothing: only inserts can be captured.
    Nothing,
}

/// One column of a [`Table`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name, as the database spells it.
    pub name: String,
    /// What its values are.
    pub ty: ColumnType,
    /// Whether it is part of the table's primary key (or of the index that stands for it).
    pub key: bool,
}

/// One attribute of a composite type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// The attribute's name.
    pub name: String,
    /// The attribute's type.
    pub ty: ColumnType,
}

/// What the values of a column are, in terms that every source shares.
///
/// A [`CellKind::Text`](crate::CellKind::Text) cell holds the value in its canonical text: the text that
/// PostgreSQL prints under `DateStyle = ISO`, `TimeZone = UTC`, `IntervalStyle = iso_8601`,
/// `bytea_output = hex` and `extra_float_digits = 1` in UTF-8. Other sources produce the same text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnType {
    /// `t` or `f`.
    Bool,
    /// A 16-bit signed integer.
    Int16,
    /// A 32-bit signed integer.
    Int32,
    /// A 64-bit signed integer.
    Int64,
    /// An unsigned 32-bit integer (an object identifier).
    Oid,
    /// A 32-bit float; `NaN`, `Infinity`, `-Infinity` are possible.
    Float32,
    /// A 64-bit float; `NaN`, `Infinity`, `-Infinity` are possible.
    Float64,
    /// A decimal; `None` where the column does not limit it. `NaN` and infinities are possible.
    Numeric {
        /// Total digits and digits after the point, where the column declares them.
        precision_scale: Option<(u16, i16)>,
    },
    /// An amount in the server's currency format.
    Money,
    /// Text of any length.
    Text,
    /// Bytes: canonical text is `\x` and hex.
    Bytes,
    /// A UUID.
    Uuid,
    /// A date: `2024-05-17`, `0044-03-15 BC`, `infinity`, `-infinity`.
    Date,
    /// A time of day, with digits after the second as the column declares (`None`: six).
    Time(Option<u8>),
    /// A time of day with its offset.
    TimeTz(Option<u8>),
    /// A date and time without zone: `2024-05-17 10:00:00.5`.
    Timestamp(Option<u8>),
    /// An instant, printed in UTC: `2024-05-17 10:00:00.5+00`.
    TimestampTz(Option<u8>),
    /// A span of time, ISO 8601: `P1Y2M3DT4H5M6S`.
    Interval,
    /// JSON text.
    Json,
    /// Binary JSON, printed as JSON text.
    Jsonb,
    /// Bits: `0101`. The number is the declared length of a fixed-length column.
    Bits(Option<u32>),
    /// One of the labels of an enum.
    Enum,
    /// An array of any dimension, in PostgreSQL's array text.
    Array(Box<ColumnType>),
    /// A row type, in PostgreSQL's composite text.
    Composite(Arc<[Field]>),
    /// A range or multirange, in PostgreSQL's range text.
    Range,
    /// hstore's text.
    Hstore,
    /// Values that carry their own type (SQLite): cells are never [`CellKind::Text`](crate::CellKind::Text).
    Dynamic,
    /// Anything else, by the name that the database gives it; its text is passed on.
    Other(String),
}

impl Table {
    /// `schema.name`.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// The place of a column, by name.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    /// The places of the key columns.
    pub fn key_columns(&self) -> impl Iterator<Item = usize> {
        self.columns.iter().enumerate().filter(|(_, column)| column.key).map(|(at, _)| at)
    }
}
