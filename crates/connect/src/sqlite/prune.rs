//! Removing changes that are confirmed, a little at a time: the application must not wait for it.

use std::time::{Duration, Instant};

use rusqlite::{Connection, TransactionBehavior};

use super::errors::is_busy;
use super::install::{brief, patient};
use super::state::Anchor;

/// Rows removed in one transaction: about a millisecond of the database's one write lock.
const ROWS: u64 = 1_000;

/// How long a visit may go on; in between the application has the lock to itself.
const VISIT: Duration = Duration::from_millis(20);

/// How often to visit otherwise. Each visit may be in the way of an application that does not wait for
/// the lock, so there are few.
const SELDOM: Duration = Duration::from_secs(10);

/// So many rows are a reason to visit at once.
const MANY: u64 = 20_000;

/// How often to visit until what one visit could not remove is gone.
const OFTEN: Duration = Duration::from_millis(80);

/// What is confirmed, and what of it was removed.
#[derive(Default)]
pub struct Prune {
    confirmed: Option<Anchor>,
    removed: Option<u64>,
    last: Option<Instant>,
    /// Whether the last visit ended before all was removed.
    unfinished: bool,
}

impl Prune {
    /// Everything up to `anchor` is safe elsewhere. The anchor itself stays, to be recognised by.
    pub fn confirmed(&mut self, anchor: Option<Anchor>) {
        self.confirmed = anchor.or(self.confirmed);
    }

    /// In how long there is something to do.
    pub fn due_in(&self, now: Instant) -> Duration {
        let confirmed = self.confirmed.map_or(0, |anchor| anchor.id);
        let left = confirmed.saturating_sub(self.removed.unwrap_or(0));
        let every = match left {
            0 => return Duration::from_secs(3600),
            MANY.. => OFTEN,
            _ if self.unfinished => OFTEN,
            _ => SELDOM,
        };
        self.last.map_or(every, |last| (last + every).saturating_duration_since(now))
    }

    /// Removes what is due; says whether anything was. What fails now is tried again later: nothing depends on
    /// it.
    pub fn run(&mut self, conn: &Connection, source: &str) -> bool {
        let begun = Instant::now();
        if self.last.is_none() {
            self.last = Some(begun);
        }
        if !self.due_in(begun).is_zero() {
            return false;
        }
        self.unfinished = true;
        while self.unfinished && begun.elapsed() < VISIT {
            match self.remove_some(conn) {
                Ok(more) => self.unfinished = more,
                Err(error) => {
                    if !is_busy(&error) {
                        tracing::warn!(source, "removing confirmed changes: {error}");
                    }
                    self.unfinished = false;
                }
            }
        }
        self.last = Some(Instant::now());
        true
    }

    /// Whether there is more.
    fn remove_some(&mut self, conn: &Connection) -> rusqlite::Result<bool> {
        let Some(confirmed) = self.confirmed else { return Ok(false) };
        let first = match self.removed {
            Some(removed) => removed,
            None => conn
                .query_row("SELECT ifnull(min(id), 0) FROM headwater_change", [], |row| row.get(0))
                .map(from_sql)?,
        };
        let until = confirmed.id.min(first.saturating_add(ROWS));
        // Nothing depends on it: rather leave the lock to the application.
        conn.busy_handler(Some(brief))?;
        let done = remove(conn, until, confirmed);
        conn.busy_handler(Some(patient))?;
        done?;
        self.removed = Some(until);
        Ok(until < confirmed.id)
    }
}

fn from_sql(id: i64) -> u64 {
    u64::try_from(id).unwrap_or(0)
}

/// Removes what is below an id, unless the database is not the one that was confirmed: an older copy in
/// its place has changes under the same ids that nobody has read.
fn remove(conn: &Connection, below: u64, confirmed: Anchor) -> rusqlite::Result<()> {
    let id = |id: u64| i64::try_from(id).unwrap_or(i64::MAX);
    let write = rusqlite::Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
    write
        .prepare_cached(
            "DELETE FROM headwater_change WHERE id < ?1 \
             AND EXISTS (SELECT 1 FROM headwater_change WHERE id = ?2 AND at = ?3)",
        )?
        .execute([id(below), id(confirmed.id), confirmed.at])?;
    // No statement is running while this transaction has the lock: notes mean nothing.
    write.prepare_cached("DELETE FROM headwater_displaced WHERE rowid > 0")?.execute([])?;
    write.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visits_are_rare_unless_there_is_much_to_remove() {
        let now = Instant::now();
        let mut prune = Prune { last: Some(now), ..Prune::default() };
        assert!(prune.due_in(now) > SELDOM, "nothing is confirmed");
        for (id, unfinished, due) in [(5, false, SELDOM), (5, true, OFTEN), (MANY, false, OFTEN)] {
            prune.confirmed(Some(Anchor { id, at: 0 }));
            prune.unfinished = unfinished;
            assert_eq!(prune.due_in(now), due);
        }
    }

    #[test]
    fn only_what_was_confirmed_is_removed() {
        let conn = Connection::open_in_memory().unwrap();
        super::super::layout::create().iter().for_each(|sql| conn.execute_batch(sql).unwrap());
        conn.execute_batch("INSERT INTO headwater_change (def, op, at) VALUES (1, 'c', 7), (1, 'c', 8)")
            .unwrap();
        let left = |id, at| {
            remove(&conn, id, Anchor { id, at }).unwrap();
            conn.query_row("SELECT count(*) FROM headwater_change", [], |row| row.get::<_, i64>(0)).unwrap()
        };
        assert_eq!(left(2, 9), 2, "another change has its id");
        assert_eq!(left(3, 8), 2, "it is missing");
        assert_eq!(left(2, 8), 1);
    }
}
