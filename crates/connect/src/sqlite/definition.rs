//! The definitions of captured tables that `headwater_table` remembers.

use std::collections::BTreeMap;
use std::sync::Arc;

use headwater_core::{Column, ColumnType, Error, Identity, Kind, Result, Table};
use rusqlite::{Connection, OptionalExtension as _, Row};
use serde::{Deserialize, Serialize};

use super::errors::Sql as _;
use super::shape::{Shape, Unique};

/// What is captured of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Captures {
    /// Every change.
    Changes,
    /// Inserts only: it is an outbox.
    Inserts,
}

/// What a table was when changes were made under it; kept as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// What is captured.
    pub captures: Captures,
    /// Each column's name, and whether it is part of the key.
    pub columns: Vec<(String, bool)>,
    /// What only one row may have, as the triggers know it: what they look up to see which rows a
    /// `REPLACE` displaces. In order, each once, whatever its indexes are called.
    #[serde(default)]
    pub unique: Vec<Unique>,
}

/// A row of `headwater_table`.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Its number: what changes name.
    pub def: i64,
    /// The table's name.
    pub table: String,
    /// Which definition of the table it is, from 1.
    pub version: i64,
    /// What the table was.
    pub definition: Definition,
}

impl Definition {
    /// What a table is now.
    pub fn of(shape: &Shape, captures: Captures) -> Self {
        let columns = shape.columns.iter().map(|column| (column.name.clone(), column.key)).collect();
        let mut unique = match captures {
            Captures::Changes => shape.unique.clone(),
            Captures::Inserts => Vec::new(),
        };
        unique.sort();
        unique.dedup();
        Self { captures, columns, unique }
    }

    /// The text that is kept.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self)
            .map_err(|error| Error::new(Kind::Internal, "writing a definition").because(error))
    }

    /// The table as changes carry it.
    pub fn table(&self, name: &str) -> Arc<Table> {
        let column =
            |(name, key): &(String, bool)| Column { name: name.clone(), ty: ColumnType::Dynamic, key: *key };
        Arc::new(Table {
            schema: "main".into(),
            name: name.to_owned(),
            columns: self.columns.iter().map(column).collect(),
            identity: Identity::Full,
        })
    }
}

/// The newest definition of a table.
pub fn newest(conn: &Connection, table: &str) -> Result<Option<Recorded>> {
    let sql = "SELECT def, name, version, definition FROM headwater_table \
               WHERE name = ?1 COLLATE NOCASE ORDER BY def DESC LIMIT 1";
    let row = conn.query_row(sql, [table], raw).optional();
    row.sql(|| format!("reading the definitions of table \"{table}\""))?.map(Recorded::try_from).transpose()
}

/// The definition that changes name `def`.
pub fn numbered(conn: &Connection, def: i64) -> Result<Recorded> {
    let sql = "SELECT def, name, version, definition FROM headwater_table WHERE def = ?1";
    conn.query_row(sql, [def], raw).sql(|| format!("reading definition {def}"))?.try_into()
}

/// The last definition of a table before which changes may have been missed: what a snapshot must be
/// newer than. 0 when there is none.
pub fn gap(conn: &Connection, table: &str) -> Result<i64> {
    let sql = "SELECT ifnull(max(def), 0) FROM headwater_table WHERE name = ?1 COLLATE NOCASE AND gap";
    conn.query_row(sql, [table], |row| row.get(0))
        .sql(|| format!("reading the definitions of table \"{table}\""))
}

/// The gap of every table that has one.
pub fn gaps(conn: &Connection) -> Result<BTreeMap<String, i64>> {
    let doing = || "reading the definitions of tables".to_owned();
    let sql = "SELECT name, max(def) FROM headwater_table WHERE gap GROUP BY name";
    let mut statement = conn.prepare(sql).sql(doing)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).sql(doing)?;
    rows.collect::<rusqlite::Result<_>>().sql(doing)
}

/// The number that the next definition gets.
pub fn next_number(conn: &Connection) -> Result<i64> {
    let sql = "SELECT ifnull(max(def), 0) + 1 FROM headwater_table";
    conn.query_row(sql, [], |row| row.get(0)).sql(|| "reading the definitions of tables".into())
}

struct Raw {
    def: i64,
    table: String,
    version: i64,
    json: String,
}

fn raw(row: &Row<'_>) -> rusqlite::Result<Raw> {
    Ok(Raw { def: row.get(0)?, table: row.get(1)?, version: row.get(2)?, json: row.get(3)? })
}

impl TryFrom<Raw> for Recorded {
    type Error = Error;

    fn try_from(raw: Raw) -> Result<Self> {
        let definition = serde_json::from_str(&raw.json).map_err(|error| {
            Error::new(Kind::Decode, format!("reading definition {} of table \"{}\"", raw.def, raw.table))
                .because(error)
                .hint("headwater_table was changed by hand: `headwater init --remove`, then install again")
        })?;
        Ok(Self { def: raw.def, table: raw.table, version: raw.version, definition })
    }
}
