//! Carrying out a plan: `headwater init`, and what an open source does when a table was altered.

use std::path::Path;
use std::time::Duration;

use headwater_core::{Error, Kind, Result};
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use super::errors::{Sql as _, is_busy};
use super::layout::ident;
use super::outbox;
use super::plan::{Captured, Note, Plan, Wanted, bare, plan, removal, wanted};
use super::watch::schema_version;
use crate::settings::Outbox;

/// Waits for a lock for some ten seconds. SQLite's own handler tries less and less often, and may never
/// catch the moment between two transactions of a busy application.
pub fn patient(tries: i32) -> bool {
    std::thread::sleep(Duration::from_millis(1));
    tries < 10_000
}

/// Waits for a lock for a moment only.
pub fn brief(tries: i32) -> bool {
    std::thread::sleep(Duration::from_millis(1));
    tries < 10
}

/// Opens a database that exists, for reading and writing.
pub fn connect(path: &Path) -> Result<Connection> {
    if !path.exists() {
        let error = Error::new(Kind::Unavailable, format!("there is no database at {}", path.display()));
        return Err(error.hint("is the path right? the application makes the database, Headwater does not"));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let doing = || format!("opening {}", path.display());
    let conn = Connection::open_with_flags(path, flags).sql(doing)?;
    conn.busy_handler(Some(patient)).sql(doing)?;
    // Reads the file: one that is no database, or is locked for good, is found here.
    let mode: String = conn.pragma_query_value(None, "journal_mode", |row| row.get(0)).sql(doing)?;
    if mode.eq_ignore_ascii_case("wal") {
        // All that this connection writes may be written again: only the application's own commits
        // have to wait for the disk.
        conn.pragma_update(None, "synchronous", "NORMAL").sql(doing)?;
    }
    Ok(conn)
}

/// What an application has to know that shares the write lock for the first time.
pub const SHARED_LOCK: &str = "Headwater removes confirmed changes in write transactions of about a millisecond: every \
     connection of the application needs a busy timeout (PRAGMA busy_timeout = 5000), and its transactions that \
     read before they write have to begin with BEGIN IMMEDIATE, or its writes may fail with \"database is locked\"";

/// Brings the triggers in step with the tables, in one transaction, and says what was done; the plan's
/// schema is then the one that it left.
pub fn bring_in_step(conn: &mut Connection, wanted: Wanted<'_>) -> Result<Plan> {
    let doing = || "installing the change table and triggers".to_owned();
    let found = {
        let read = conn.transaction().sql(doing)?;
        let found = plan(&read, wanted)?;
        read.finish().sql(doing)?;
        found
    };
    if found.statements.is_empty() {
        forget_notes(conn).sql(doing)?;
        return Ok(found);
    }
    let write = conn.transaction_with_behavior(TransactionBehavior::Immediate).sql(doing)?;
    let made = make_outbox(&write, wanted.outbox)?;
    let mut plan = plan(&write, wanted)?;
    carry_out(&write, &plan)?;
    plan.notes.splice(0..0, made);
    // What was noted under older triggers means nothing to the new ones.
    write.execute("DELETE FROM headwater_displaced", []).sql(doing)?;
    plan.schema = schema_version(&write)?;
    write.commit().sql(doing)?;
    Ok(plan)
}

/// Makes the outbox where it is missing; says so then.
fn make_outbox(write: &Transaction<'_>, outbox: Option<&Outbox>) -> Result<Option<Note>> {
    let Some(outbox) = outbox else { return Ok(None) };
    if outbox::exists(write, &outbox.table)? {
        return Ok(None);
    }
    let table = wanted(outbox)?;
    outbox::make(write, table)?;
    Ok(Some(Note::OutboxMade(bare(table).to_owned())))
}

/// Runs a plan's statements; fails when a table could not be written to afterwards.
fn carry_out(write: &Transaction<'_>, plan: &Plan) -> Result<()> {
    let usable = plan.captured.iter().map(|captured| usable(write, captured)).collect::<Vec<_>>();
    for statement in &plan.statements {
        write.execute_batch(statement).sql(|| first_line(statement))?;
    }
    let mut captured = plan.captured.iter().zip(usable);
    captured.try_for_each(|(captured, before)| refuse_broken(write, captured, before))
}

/// Rowids may have moved since rows were noted: the schema changed, or the database was restored. Nothing
/// depends on it: a busy application goes first.
fn forget_notes(conn: &Connection) -> rusqlite::Result<()> {
    let there = "SELECT EXISTS (SELECT 1 FROM headwater_displaced)";
    if !conn.query_row(there, [], |row| row.get(0))? {
        return Ok(());
    }
    match conn.execute("DELETE FROM headwater_displaced", []) {
        Err(error) if !is_busy(&error) => Err(error),
        _ => Ok(()),
    }
}

fn first_line(statement: &str) -> String {
    statement.lines().next().unwrap_or_default().chars().take(200).collect()
}

/// Whether statements on a table can be prepared, which compiles its triggers. An application's own
/// functions may be missing here: then nothing is known.
fn usable(conn: &Connection, captured: &Captured) -> Result<(), rusqlite::Error> {
    let table = ident(&captured.shape.name);
    let column = captured.shape.columns.iter().find(|column| !column.generated);
    conn.prepare(&format!("INSERT INTO {table} DEFAULT VALUES"))?;
    conn.prepare(&format!("DELETE FROM {table}"))?;
    if let Some(column) = column {
        let name = ident(&column.name);
        conn.prepare(&format!("UPDATE {table} SET {name} = {name}"))?;
    }
    Ok(())
}

/// Triggers must never make the application's own writes fail.
fn refuse_broken(conn: &Connection, captured: &Captured, before: Result<(), rusqlite::Error>) -> Result<()> {
    match (before, usable(conn, captured)) {
        (Ok(()), Err(error)) => {
            let what = format!("the triggers for table \"{}\" do not fit it", captured.shape.name);
            Err(Error::new(Kind::Refused, what).because(error).hint(
                "nothing was changed; leave the table out of `tables`, and please report its definition",
            ))
        }
        _ => Ok(()),
    }
}

/// Installs what capture needs, in one transaction: the change table, triggers on `tables` (names, or
/// `"*"`), and the outbox table with its trigger, where one is named and missing. What is captured already
/// stays so; doing it again changes nothing but what a changed table asks for. Returns a line for each
/// thing done. Blocks.
pub fn install(path: &Path, tables: &[String], outbox: Option<&Outbox>) -> Result<Vec<String>> {
    let plan = bring_in_step(&mut connect(path)?, Wanted { tables, outbox, only: false, read: 0 })?;
    let shared = plan.notes.contains(&Note::Installed).then(|| SHARED_LOCK.to_owned());
    Ok(plan.notes.iter().map(Note::to_string).chain(shared).collect())
}

/// The SQL that [`install`] would run now, as a script for the `sqlite3` command; empty when there is
/// nothing to do. It was run, and rolled back. Blocks.
pub fn script(path: &Path, tables: &[String], outbox: Option<&Outbox>) -> Result<String> {
    let mut conn = connect(path)?;
    let wanted = Wanted { tables, outbox, only: false, read: 0 };
    let mut found = plan(&conn, wanted)?;
    if found.statements.is_empty() {
        return Ok(String::new());
    }
    let doing = || "trying the statements".to_owned();
    // Whoever may only read prints them for somebody else.
    if !conn.is_readonly("main").sql(doing)? {
        let trial = conn.transaction_with_behavior(TransactionBehavior::Immediate).sql(doing)?;
        let made = make_outbox(&trial, outbox)?;
        found = plan(&trial, wanted)?;
        carry_out(&trial, &found)?;
        if let (Some(note), Some(outbox)) = (made, outbox) {
            found.notes.insert(0, note);
            found.statements.insert(0, outbox::script(&outbox.table));
        }
        trial.rollback().sql(doing)?;
    }
    let plan = found;
    // A table's name may hold a line's end: it must not end the comment.
    let notes = plan.notes.iter().map(|note| note.to_string().replace(['\n', '\r'], " "));
    let notes: String = notes.map(|note| format!("-- {note}\n")).collect();
    let statements = plan.statements.iter().map(|one| one.trim_end().trim_end_matches(';'));
    let statements: String = statements.map(|statement| format!("{statement};\n")).collect();
    Ok(format!("{notes}BEGIN IMMEDIATE;\n{statements}COMMIT;\n"))
}

/// Removes the triggers of `tables`; with none named, all of them, and the change table with all changes
/// that were not read yet. The outbox table stays. Returns a line for each thing done. Blocks.
pub fn remove(path: &Path, tables: &[String]) -> Result<Vec<String>> {
    let doing = || "removing the change table and triggers".to_owned();
    let mut conn = connect(path)?;
    let write = conn.transaction_with_behavior(TransactionBehavior::Immediate).sql(doing)?;
    let plan = removal(&write, tables)?;
    for statement in &plan.statements {
        write.execute_batch(statement).sql(|| first_line(statement))?;
    }
    write.commit().sql(doing)?;
    Ok(plan.notes.iter().map(Note::to_string).collect())
}

/// The SQL that [`remove`] would run now, to be part of a transaction of one's own. Blocks.
pub fn removal_script(path: &Path, tables: &[String]) -> Result<String> {
    let plan = removal(&connect(path)?, tables)?;
    Ok(plan.statements.iter().map(|statement| format!("{statement};\n")).collect())
}
