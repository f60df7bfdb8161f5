//! The tables and indexes of an outbox.

use std::path::Path;
use std::time::Duration;

use headwater_core::ports::Lane;
use headwater_core::{Error, Kind, Result};
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior};

use super::Names;
use super::lease::millis;
use super::store::CLEANED;
use crate::outbox::{any_left, unpublished};
use crate::sqlite::errors::Sql as _;
use crate::sqlite::install::connect;
use crate::sqlite::layout::NOW;

/// One lane: one transaction writes at a time, and relays that share would wait for each other.
pub(super) const LANES: Lane = 1;

/// The SQL that makes the outbox `table` and what belongs to it. Times are milliseconds since 1970.
pub fn script(table: &str) -> String {
    let names = Names::new(table);
    let (outbox, lease, relay) = (names.outbox(), names.lease(), names.relay());
    format!(
        "CREATE TABLE {outbox} (\n    \
             seq INTEGER PRIMARY KEY AUTOINCREMENT, -- rises in the order of commits\n    \
             id TEXT NOT NULL DEFAULT ({uuid}) -- a UUID, by itself of version 7\n        \
                 CHECK (id GLOB '????????-????-????-????-????????????' AND id NOT GLOB '*[^0-9a-fA-F-]*'\n                 \
                 AND length(replace(id, '-', '')) = 32),\n    \
             stream TEXT NOT NULL,\n    \
             type TEXT NOT NULL,\n    \
             key TEXT, -- what the event is about; none: no order\n    \
             payload TEXT CHECK (payload IS NULL OR json_valid(payload)),\n    \
             headers TEXT CHECK (json_type(headers) = 'object'), -- of strings\n    \
             version INTEGER NOT NULL DEFAULT 1, -- of the event's schema\n    \
             created_at INTEGER NOT NULL DEFAULT ({NOW}),\n    \
             state TEXT NOT NULL DEFAULT 'new', -- new, waiting, retrying, parked, published, dropped\n    \
             attempts INTEGER NOT NULL DEFAULT 0,\n    \
             next_try INTEGER,\n    \
             error TEXT,\n    \
             settled_at INTEGER\n\
         );\n\
         -- Small, whatever is published: each holds only the rows that are in its states.\n\
         {indexes}\
         -- Which relay empties it.\n\
         CREATE TABLE IF NOT EXISTS {lease} (lane INTEGER PRIMARY KEY, relay TEXT, epoch INTEGER NOT NULL DEFAULT 0, \
         until INTEGER NOT NULL DEFAULT 0);\n\
         INSERT OR IGNORE INTO {lease} (lane) VALUES (0);\n\
         -- Which relays are alive.\n\
         CREATE TABLE IF NOT EXISTS {relay} (relay TEXT PRIMARY KEY, until INTEGER NOT NULL);\n",
        uuid = uuid(),
        indexes = indexes(&names).map(|(_, index)| index + ";\n").concat(),
    )
}

/// A UUID of version 7 (RFC 9562), in words that every SQLite understands.
fn uuid() -> String {
    format!(
        "lower(printf('%08x-%04x-7', {NOW} >> 16, {NOW} & 65535) || substr(hex(randomblob(2)), 2) || '-' || \
         substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))"
    )
}

/// The name of each index, and what makes it.
pub(super) fn indexes(names: &Names) -> [(String, String); 5] {
    let outbox = names.outbox();
    let index = |part: &str, columns: &str, states: &str| {
        let sql = format!("CREATE INDEX {} ON {outbox} ({columns}) WHERE {states}", names.part(part));
        (format!("{}_{part}", names.name), sql)
    };
    [
        index("new", "seq", "state = 'new'"),
        index("waiting", "stream, key, seq", "state = 'waiting'"),
        index("heads", "stream, key, seq", "state IN ('retrying', 'parked')"),
        index("due", "next_try", "state = 'retrying'"),
        index("done", "settled_at", "state IN ('published', 'dropped')"),
    ]
}

/// The SQL that takes the outbox and all that belongs to it away.
pub fn removal_script(table: &str) -> String {
    let names = Names::new(table);
    let tables = [names.outbox(), names.lease(), names.relay()];
    let tables = tables.iter().map(|table| format!("DROP TABLE IF EXISTS {table};\n"));
    // The other trigger goes with the table; this one is on another.
    std::iter::once(names.drop_trigger("settle") + ";\n").chain(tables).collect()
}

/// Makes the outbox where it is missing; says whether it was. One that is there is left as it is. Blocks.
pub fn install(path: &Path, table: &str) -> Result<bool> {
    let doing = || format!("making the outbox {table}");
    let mut connection = connect(path)?;
    let write = connection.transaction_with_behavior(TransactionBehavior::Immediate).sql(doing)?;
    let made = make(&write, table)?;
    write.commit().sql(doing)?;
    Ok(made)
}

/// The same, in a transaction of one's own.
pub(crate) fn make(on: &Connection, table: &str) -> Result<bool> {
    if exists(on, table)? {
        return Ok(false);
    }
    on.execute_batch(&script(table)).sql(|| format!("making the outbox {table}"))?;
    Ok(true)
}

/// Takes the outbox away, with the rows that are in it; says whether it was there. Refuses, unless told
/// otherwise, while rows wait to be published. Blocks.
pub fn remove(path: &Path, table: &str, force: bool) -> Result<bool> {
    let doing = || format!("removing the outbox {table}");
    let mut connection = connect(path)?;
    if !exists(&connection, table)? {
        return Ok(false);
    }
    let outbox = Names::new(table).outbox();
    if !is_own(&connection, table)? {
        return Err(Error::new(Kind::Refused, format!("{table} is no outbox that `headwater init` made"))
            .hint(
                "a table of another layout is yours: DROP TABLE it when no service writes to it any more",
            ));
    }
    // Counted while services go on publishing: that may read the whole table.
    if !force {
        let waiting = format!("SELECT count(*) FROM {outbox} WHERE state NOT IN ('published', 'dropped')");
        let waiting: i64 = connection.query_row(&waiting, [], |row| row.get(0)).sql(doing)?;
        if waiting > 0 {
            return Err(unpublished(table, Some(waiting.unsigned_abs())));
        }
    }
    let write = connection.transaction_with_behavior(TransactionBehavior::Immediate).sql(doing)?;
    if !force {
        // What was written meanwhile.
        if write.query_row(&any_left(&outbox), [], |row| row.get(0)).sql(doing)? {
            return Err(unpublished(table, None));
        }
    }
    write.execute_batch(&removal_script(table)).sql(doing)?;
    write.commit().sql(doing)?;
    Ok(true)
}

/// Deletes what was settled before `retention`, a little of it, where this is an outbox of Headwater's own
/// layout. What fails now is tried again later: nothing depends on it.
pub(crate) fn clean(on: &Connection, source: &str, table: &str, retention: Duration) {
    let names = Names::new(table);
    let sql = format!(
        "DELETE FROM {outbox} WHERE seq IN (SELECT seq FROM {outbox} INDEXED BY {} \
         WHERE state IN ('published', 'dropped') AND settled_at <= {NOW} - ? ORDER BY settled_at LIMIT {CLEANED})",
        names.part("done"),
        outbox = names.outbox()
    );
    let clean = || -> Result<()> {
        if is_own(on, table)? {
            let doing = || format!("deleting old rows of the outbox {table}");
            on.prepare_cached(&sql).sql(doing)?.execute([millis(retention)]).sql(doing)?;
        }
        Ok(())
    };
    if let Err(error) = clean() {
        tracing::debug!(source, "{error}");
    }
}

/// Whether it is there.
pub(crate) fn exists(on: &Connection, table: &str) -> Result<bool> {
    let sql = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ? COLLATE NOCASE";
    let there = on.query_row(sql, [&Names::new(table).name], |_| Ok(())).optional();
    Ok(there.sql(|| format!("looking for the outbox {table}"))?.is_some())
}

/// The tables of all outboxes of Headwater's own layout: their rows are no changes of an application.
pub(crate) fn tables(on: &Connection) -> Result<Vec<String>> {
    let doing = || "looking for outboxes".to_owned();
    let sql = "SELECT name FROM sqlite_schema AS outbox WHERE type = 'table' AND 2 = (SELECT count(*) FROM \
         sqlite_schema AS other WHERE type = 'table' AND other.name IN (outbox.name || '_lease', outbox.name || '_relay'))";
    let mut statement = on.prepare_cached(sql).sql(doing)?;
    let found = statement.query_map([], |row| row.get(0)).sql(doing)?;
    let mut tables = Vec::new();
    for name in found.collect::<rusqlite::Result<Vec<String>>>().sql(doing)? {
        if is_own(on, &name)? {
            tables.extend([format!("{name}_lease"), format!("{name}_relay"), name]);
        }
    }
    Ok(tables)
}

/// Whether the table, where there is one, has the columns of Headwater's own layout.
pub(super) fn is_own(on: &Connection, table: &str) -> Result<bool> {
    let sql =
        "SELECT count(*) FROM pragma_table_info(?) WHERE name IN ('seq', 'stream', 'state', 'settled_at')";
    let count: i64 = on
        .query_row(sql, [&Names::new(table).name], |row| row.get(0))
        .sql(|| format!("looking at the outbox {table}"))?;
    Ok(count == 4)
}
