//! Headwater's own tables in the captured database: the one place that knows their layout.
//!
//! - `headwater_source`: names and values: `layout` (the version of this layout) and `system_id`, drawn
//!   when it was installed, which tells this database from every other.
//! - `headwater_table`: the definitions of captured tables. A table whose columns change gets a new one;
//!   each change names the definition it was made under. `gap` says that changes made before this
//!   definition may not have been captured, so the table has to be read as a whole.
//! - `headwater_change`: the changes. `id` is the order: SQLite lets one transaction write at a time, so
//!   ids become visible in the order they are given and none becomes visible late (invariant 4).
//!   `op` is `c` create, `u` update, `d` delete, `r` read, or `b`: the row before the update whose `u`
//!   follows at once. `at` is when the statement ran, in milliseconds since 1970. `c0`, `c1`, ... are the
//!   row's values. They have no declared type, so SQLite keeps each value exactly as it was: a float
//!   stays a float, text keeps its NULs and its invalid UTF-8.
//! - `headwater_displaced`: rows that a `REPLACE` may displace, noted before the statement acts; see
//!   `triggers`. What lies here between two statements means nothing.

use headwater_core::{Error, Kind, Result};
use rusqlite::{Connection, OptionalExtension as _};

use super::errors::Sql as _;

/// The version of the layout that this code makes and understands.
const LAYOUT: i64 = 1;

/// The most columns a captured table may have: SQLite's limit of 2000, less our own.
pub const MAX_COLUMNS: usize = 1990;

/// Milliseconds since 1970, in words that every SQLite understands: `unixepoch('subsec')` is newer.
pub const NOW: &str = "CAST((julianday('now') - 2440587.5) * 86400000.0 + 0.5 AS INTEGER)";

/// A name as SQL writes it.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as SQL writes it.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// `c0, c1, ...` for a table of `width` columns.
pub fn value_columns(width: usize) -> String {
    (0..width).map(|at| format!("c{at}")).collect::<Vec<_>>().join(", ")
}

/// What makes the tables.
pub fn create() -> Vec<String> {
    [
        "CREATE TABLE headwater_source (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
        &format!("INSERT INTO headwater_source VALUES ('layout', {LAYOUT})"),
        "INSERT INTO headwater_source VALUES ('system_id', lower(hex(randomblob(16))))",
        "CREATE TABLE headwater_table (def INTEGER PRIMARY KEY, name TEXT NOT NULL, version INTEGER NOT NULL, \
         definition TEXT NOT NULL, gap INTEGER NOT NULL, made_at INTEGER NOT NULL)",
        "CREATE TABLE headwater_change (id INTEGER PRIMARY KEY AUTOINCREMENT, def INTEGER NOT NULL, \
         op TEXT NOT NULL, at INTEGER NOT NULL)",
        "CREATE TABLE headwater_displaced (def INTEGER NOT NULL, row)",
        "CREATE INDEX headwater_displaced_row ON headwater_displaced (def, row)",
    ]
    .map(str::to_owned)
    .into()
}

/// What removes the tables.
pub const DROP: [&str; 4] = [
    "DROP TABLE IF EXISTS headwater_displaced",
    "DROP TABLE IF EXISTS headwater_change",
    "DROP TABLE IF EXISTS headwater_table",
    "DROP TABLE IF EXISTS headwater_source",
];

/// What gives the tables room for rows of `width` values, where they have room for `now`.
pub fn widen(now: usize, width: usize) -> Vec<String> {
    let add = |table: &str, at| format!("ALTER TABLE {table} ADD COLUMN c{at}");
    (now..width).flat_map(|at| [add("headwater_change", at), add("headwater_displaced", at)]).collect()
}

/// Whether the tables are there. Ones that a newer Headwater made are an error.
pub fn installed(conn: &Connection) -> Result<bool> {
    let doing = || "looking for Headwater's tables".to_owned();
    let sql = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'headwater_source'";
    let there = conn.query_row(sql, [], |_| Ok(())).optional().sql(doing)?.is_some();
    if !there {
        return Ok(false);
    }
    let sql = "SELECT value FROM headwater_source WHERE name = 'layout'";
    let layout: Option<i64> = conn.query_row(sql, [], |row| row.get(0)).optional().sql(doing)?;
    match layout {
        Some(LAYOUT) => Ok(true),
        Some(newer) if newer > LAYOUT => {
            let error = Error::new(Kind::Refused, format!("the change table has layout {newer}"));
            Err(error.hint(format!("this Headwater knows layout {LAYOUT}: use a newer one")))
        }
        _ => Err(Error::new(Kind::Refused, "table headwater_source is not as Headwater made it")
            .hint("remove Headwater's tables with `headwater init --remove`, then install them again")),
    }
}

/// How many values the change table has room for.
pub fn width(conn: &Connection) -> Result<usize> {
    let sql = "SELECT count(*) FROM pragma_table_info('headwater_change') WHERE name GLOB 'c[0-9]*'";
    let width: i64 =
        conn.query_row(sql, [], |row| row.get(0)).sql(|| "reading table headwater_change".into())?;
    Ok(usize::try_from(width).unwrap_or(0))
}

/// What tells this database from every other.
pub fn system_id(conn: &Connection) -> Result<String> {
    let doing = || "reading the database's system id".to_owned();
    let sql = "SELECT value FROM headwater_source WHERE name = 'system_id'";
    conn.prepare_cached(sql).sql(doing)?.query_row([], |row| row.get(0)).sql(doing)
}

/// The highest id a change was ever given. An application that resets its counters may delete all of
/// sqlite_sequence; the last change that was read is always there, and SQLite goes on from it.
pub fn newest(conn: &Connection) -> Result<u64> {
    let doing = || "reading the newest change's id".to_owned();
    let sql = "SELECT max(ifnull((SELECT max(seq) FROM sqlite_sequence WHERE name = 'headwater_change'), 0), \
               ifnull((SELECT max(id) FROM headwater_change), 0))";
    let newest: i64 = conn.prepare_cached(sql).sql(doing)?.query_row([], |row| row.get(0)).sql(doing)?;
    Ok(u64::try_from(newest).unwrap_or(0))
}
