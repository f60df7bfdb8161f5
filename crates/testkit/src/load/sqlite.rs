//! The load on SQLite: as on PostgreSQL, and statements that displace rows.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rusqlite::Connection;

use super::{KEYS, Shared, Writer};
use crate::checker::{History, Step};

/// The tables, as [`super::TABLES`]; of the rows that have a `handle`, only one has the same.
pub const TABLES: &str = "
    pragma journal_mode = wal;
    create table account (id integer primary key, version int not null, note text, handle text unique);
    create table history (seq integer primary key, id int not null, version int not null, op text not null);";

/// The handles that a worker's rows contend for.
const HANDLES: i64 = 10;

/// One writer; it knows its keys, as nobody else writes them.
pub struct Worker {
    pub shared: Shared,
    pub first: i64,
    pub random: StdRng,
}

/// A key's last version, and while its row is there, the row's handle.
#[derive(Debug, Clone, Default)]
pub struct Known {
    version: i64,
    alive: bool,
    handle: Option<i64>,
}

type Keys = BTreeMap<i64, Known>;

impl Writer for Worker {
    type Known = Keys;

    const BEGIN: &str = "begin immediate;";
    const BACK: &str = "rollback to s; release s;";

    fn random(&mut self) -> &mut StdRng {
        &mut self.random
    }

    fn step(&mut self, keys: &mut Keys, note: &str) -> String {
        let id = self.first + self.random.random_range(0..KEYS);
        let handle = self.first + self.random.random_range(0..HANDLES);
        let known = keys.get(&id).cloned().unwrap_or_default();
        let mut history = Vec::new();
        let change = match (known.alive, self.random.random_range(0..8)) {
            (true, 0 | 1) => {
                history.push(gone(keys, id));
                format!("delete from account where id = {id}")
            }
            (true, 2..=4) => {
                let version = stands(keys, id, known.handle);
                history.push((id, version, "update"));
                format!("update account set version = {version}, note = '{note}' where id = {id}")
            }
            (true, 5) => {
                history.extend(displaced(keys, handle, id));
                let version = stands(keys, id, Some(handle));
                history.push((id, version, "update"));
                format!(
                    "update or replace account set version = {version}, handle = 'h{handle}' where id = {id}"
                )
            }
            (true, 6) => {
                let version = known.version + 1;
                format!("insert or ignore into account values ({id}, {version}, 'ignored', 'h{handle}')")
            }
            (false, 0..=3) => {
                let version = stands(keys, id, None);
                history.push((id, version, "create"));
                format!("insert into account values ({id}, {version}, '{note}', null)")
            }
            (alive, _) => {
                history.extend(displaced(keys, handle, id));
                history.extend(alive.then(|| gone(keys, id)));
                let version = stands(keys, id, Some(handle));
                history.push((id, version, "create"));
                format!("replace into account values ({id}, {version}, '{note}', 'h{handle}')")
            }
        };
        let lines = history.iter().map(|(id, version, op)| {
            format!("insert into history (id, version, op) values ({id}, {version}, '{op}');")
        });
        format!("{change};{}", lines.collect::<String>())
    }
}

impl Worker {
    /// Writes until it is stopped. Blocks.
    pub fn run(mut self, path: &Path) {
        let connection = Connection::open(path).expect("the database opens");
        connection.busy_timeout(Duration::from_secs(60)).expect("a timeout can be set");
        let mut keys = Keys::new();
        while !self.shared.stop.load(Ordering::Relaxed) {
            let (sql, after, commits) = self.transaction(&keys);
            connection.execute_batch(&sql).unwrap_or_else(|error| panic!("{error}: {sql}"));
            if commits {
                keys = after;
                self.shared.committed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

type Line = (i64, i64, &'static str);

/// The row stands, with its next version.
fn stands(keys: &mut Keys, id: i64, handle: Option<i64>) -> i64 {
    let known = keys.entry(id).or_default();
    *known = Known { version: known.version + 1, alive: true, handle };
    known.version
}

/// The row goes.
fn gone(keys: &mut Keys, id: i64) -> Line {
    let known = keys.entry(id).or_default();
    *known = Known { version: known.version + 1, alive: false, handle: None };
    (id, known.version, "delete")
}

/// The row that has the handle goes, unless it is the one that takes it.
fn displaced(keys: &mut Keys, handle: i64, taker: i64) -> Option<Line> {
    let holder = keys.iter().find(|(_, known)| known.handle == Some(handle)).map(|(id, _)| *id);
    holder.filter(|holder| *holder != taker).map(|holder| gone(keys, holder))
}

/// What was committed.
pub fn history(path: &Path) -> rusqlite::Result<History> {
    let connection = Connection::open(path)?;
    let mut history = History::new();
    let mut rows = connection.prepare("select id, version, op from history order by id, version")?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let step = Step { version: Some(row.get(1)?), op: row.get(2)? };
        history.entry(("accounts".to_owned(), row.get(0)?)).or_default().push(step);
    }
    Ok(history)
}
