//! What `headwater check` says about a SQLite source.

use std::path::Path;

use headwater_core::Result;
use headwater_core::ports::{Check, Finding};
use rusqlite::{Connection, OpenFlags};
use rustix::fs::{Access, access};

use super::capture::{Setup, how_to_install};
use super::definition::{Captures, Definition};
use super::errors::Sql as _;
use super::plan::{Note, Plan, plan};
use super::shape::Place;

/// Looks at everything, changes nothing. Blocks.
pub fn check(setup: &Setup) -> Check {
    match look(setup) {
        Ok(check) => check,
        Err(error) => {
            let hint = error.hint_text().unwrap_or("see the message").to_owned();
            let whole = error.to_string();
            let message = whole.split("\n  hint:").next().unwrap_or(&whole);
            Check { findings: vec![Finding::error(message, hint)], tables: None }
        }
    }
}

fn look(setup: &Setup) -> Result<Check> {
    let path = &setup.config.path;
    let conn = super::install::connect(path)?;
    let doing = || format!("looking at {}", path.display());
    let mut findings = vec![Finding::ok(format!("{} can be opened", path.display()))];
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    let writable = Connection::open_with_flags(path, flags).and_then(|conn| conn.is_readonly("main"));
    let read_only = match writable.sql(doing)? {
        true => Some(path.as_path()),
        false => folder_that_is_read_only(path),
    };
    findings.extend(read_only.map(|there| {
        let hint = "Headwater prunes the change table: let its user write to the file and its directory";
        Finding::error(format!("{} cannot be written to", there.display()), hint)
    }));
    let mode: String = conn.pragma_query_value(None, "journal_mode", |row| row.get(0)).sql(doing)?;
    findings.push(if mode.eq_ignore_ascii_case("wal") {
        Finding::ok("journal mode is WAL")
    } else {
        Finding::warning(
            format!("journal mode is {mode}: readers and writers wait for each other"),
            format!("run: sqlite3 {} 'PRAGMA journal_mode = WAL'", path.display()),
        )
    });
    findings.push(Finding::ok(super::install::SHARED_LOCK));
    let plan = plan(&conn, setup.wanted(0))?;
    findings.extend(capture(setup, &plan));
    let tables = plan.captured.iter().map(|captured| {
        let shape = &captured.shape;
        Definition::of(shape, captured.captures).table(&shape.name)
    });
    let all_there = !plan.notes.iter().any(|note| matches!(note, Note::Dropped(_)));
    Ok(Check { findings, tables: all_there.then(|| tables.collect()) })
}

/// The database's folder, where this user may not make files in it.
fn folder_that_is_read_only(path: &Path) -> Option<&Path> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    access(folder, Access::WRITE_OK | Access::EXEC_OK).is_err().then_some(folder)
}

fn capture(setup: &Setup, plan: &Plan) -> Vec<Finding> {
    let mut findings: Vec<Finding> = plan.notes.iter().map(|note| finding(setup, note)).collect();
    if plan.statements.is_empty() {
        findings.push(Finding::ok(format!("triggers are in step with {} tables", plan.captured.len())));
    }
    for captured in plan.captured.iter().filter(|captured| captured.captures == Captures::Changes) {
        let keyless = !captured.shape.columns.iter().any(|column| column.key);
        if keyless && matches!(captured.shape.place, Place::Rowid { .. }) {
            findings.push(Finding::warning(
                format!(
                    "table \"{}\" has no primary key: the whole row is its events' key, so a row that is \
                     updated becomes another one",
                    captured.shape.name
                ),
                "give it a primary key, or a key in the stream's config",
            ));
        }
    }
    if plan.captured.is_empty() {
        findings
            .push(Finding::error("nothing is captured", "name tables or an outbox in the source's config"));
    }
    findings
}

/// What is not so yet, or no longer so.
fn finding(setup: &Setup, note: &Note) -> Finding {
    let by_itself = "the source will see to it when it starts".to_owned();
    match note {
        Note::Dropped(table) => {
            Finding::warning(format!("table \"{table}\" is not there any more"), "remove it from `tables`")
        }
        Note::Installed | Note::OutboxMade(_) | Note::New(_) if !setup.config.install => {
            Finding::error(format!("not done yet: {note}"), how_to_install(&setup.config))
        }
        Note::Installed | Note::OutboxMade(_) | Note::New(_) => {
            Finding::warning(format!("not done yet: {note}"), by_itself)
        }
        other => Finding::warning(other.to_string(), by_itself),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use headwater_core::ports::Severity;

    use super::super::config::SqliteConfig;
    use super::super::watch::Watch;
    use super::*;

    /// Whose folder it is decides, not its mode alone.
    #[test]
    fn a_folder_that_is_not_ours_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shop.db");
        Connection::open(&path).unwrap().execute_batch("create table t (id integer primary key)").unwrap();
        let mode = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let root = rustix::process::geteuid().is_root();
        mode(&path, 0o666);
        mode(dir.path(), if root { 0o755 } else { 0o555 });
        let setup = Setup {
            name: "test".into(),
            config: SqliteConfig::new(&path, &["t"]),
            requests: None,
            keep: Default::default(),
            status: Default::default(),
            started: Default::default(),
        };
        let looked = std::thread::spawn(move || {
            if root {
                // Of this thread only.
                let nobody = rustix::fs::Uid::from_raw(65534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            (check(&setup), Watch::new(&path).err())
        });
        let (check, refused) = looked.join().unwrap();
        let mut errors = check.findings.iter().filter(|finding| finding.severity == Severity::Error);
        let told = errors.next().map(|finding| finding.message.clone());
        assert_eq!(told, Some(format!("{} cannot be written to", dir.path().display())), "{check:?}");
        let refused = refused.unwrap();
        assert!(
            refused.hint_text().is_some_and(|hint| hint.contains("write to the database's folder")),
            "{refused}"
        );
    }
}
