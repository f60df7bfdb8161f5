//! `from`, `columns` and lists of names.

use std::fmt;
use std::str::FromStr;

use headwater_core::Table;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A table of a source, as a config names it: `SOURCE.schema.table` or `SOURCE.table`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableRef {
    /// The source's name.
    pub source: String,
    /// The schema; `None` is the source's default one.
    pub schema: Option<String>,
    /// The table's name.
    pub table: String,
}

impl TableRef {
    /// Whether this is the table meant.
    pub fn matches(&self, table: &Table) -> bool {
        self.table == table.name && self.matches_schema(&table.schema)
    }

    /// Whether a schema is the one meant: without one, `main` (SQLite) and `public` are.
    pub fn matches_schema(&self, schema: &str) -> bool {
        match &self.schema {
            Some(named) => named == schema,
            None => matches!(schema, "main" | "public"),
        }
    }

    /// Whether `name` (`schema.table`, or `table` for the default schema) is the table meant.
    pub fn matches_name(&self, name: &str) -> bool {
        match name.split_once('.') {
            Some((schema, table)) => table == self.table && self.matches_schema(schema),
            None => name == self.table && matches!(self.schema.as_deref(), None | Some("main" | "public")),
        }
    }
}

impl fmt::Display for TableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{}.{schema}.{}", self.source, self.table),
            None => write!(f, "{}.{}", self.source, self.table),
        }
    }
}

impl FromStr for TableRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.splitn(3, '.').collect();
        let (source, schema, table) = match parts[..] {
            [source, schema, table] => (source, Some(schema.to_owned()), table),
            [source, table] => (source, None, table),
            _ => return Err(format!("\"{text}\" names no table: expected SOURCE.schema.table")),
        };
        if source.is_empty() || table.is_empty() || schema.as_deref() == Some("") {
            return Err(format!("\"{text}\" has an empty part: expected SOURCE.schema.table"));
        }
        Ok(Self { source: source.to_owned(), schema, table: table.to_owned() })
    }
}

/// The columns that a stream exposes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Columns {
    /// All of them, by their own names.
    All,
    /// These: (the exposed name, the table's column).
    Named(Vec<(String, String)>),
}

impl<'de> Deserialize<'de> for Columns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ColumnsVisitor)
    }
}

struct ColumnsVisitor;

impl<'de> Visitor<'de> for ColumnsVisitor {
    type Value = Columns;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"*\", a list of columns, or { exposed = \"column\" }")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Columns, E> {
        if text == "*" { Ok(Columns::All) } else { Err(E::invalid_value(de::Unexpected::Str(text), &self)) }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Columns, A::Error> {
        let mut named = Vec::new();
        while let Some(name) = list.next_element::<String>()? {
            named.push((name.clone(), name));
        }
        Ok(Columns::Named(named))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Columns, A::Error> {
        let mut named = Vec::new();
        while let Some(pair) = map.next_entry()? {
            named.push(pair);
        }
        Ok(Columns::Named(named))
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// A string or a list of strings, each a table.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<TableRef>, D::Error> {
    let names = OneOrMany::deserialize(deserializer)?.into_vec();
    names.iter().map(|name| name.parse().map_err(de::Error::custom)).collect()
}

/// A string or a list of strings, each a column.
pub(super) fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    Ok(Option::<OneOrMany>::deserialize(deserializer)?.map(OneOrMany::into_vec))
}

impl<'de> Deserialize<'de> for TableRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
