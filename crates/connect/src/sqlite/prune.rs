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

/// How often to visit while there is much to remove.
const OFTEN: Duration = Duration::from_millis(80);

/// How often to visit otherwise.
const SELDOM: Duration = Duration::from_secs(1);

/// What is confirmed, and what of it was removed.
#[derive(Default)]
pub struct Prune {
    confirmed: u64,
    removed: Option<u64>,
    last: Option<Instant>,
}

impl Prune {
    /// Everything up to `anchor` is safe elsewhere. The anchor itself stays, to be recognised by.
    pub fn confirmed(&mut self, anchor: Option<Anchor>) {
        self.confirmed = self.confirmed.max(anchor.map_or(0, |anchor| anchor.id));
    }

    /// In how long there is something to do.
    pub fn due_in(&self, now: Instant) -> Duration {
        let left = self.confirmed.saturating_sub(self.removed.unwrap_or(0));
        let every = match left {
            0 => return Duration::from_secs(3600),
            ROWS.. => OFTEN,
            _ => SELDOM,
        };
        self.last.map_or(every, |last| (last + every).saturating_duration_since(now))
    }

    /// Removes what is due. What fails now is tried again later: nothing depends on it.
    pub fn run(&mut self, conn: &Connection, source: &str) {
        let begun = Instant::now();
        if self.last.is_none() {
            self.last = Some(begun);
        }
        if !self.due_in(begun).is_zero() {
            return;
        }
        while self.removed != Some(self.confirmed) && begun.elapsed() < VISIT {
            match self.remove_some(conn) {
                Ok(()) => {}
                Err(error) if is_busy(&error) => break,
                Err(error) => {
                    tracing::warn!(source, "removing confirmed changes: {error}");
                    break;
                }
            }
        }
        self.last = Some(Instant::now());
    }

    fn remove_some(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        let first = match self.removed {
            Some(removed) => removed,
            None => conn
                .query_row("SELECT ifnull(min(id), 0) FROM headwater_change", [], |row| row.get(0))
                .map(from_sql)?,
        };
        let until = self.confirmed.min(first.saturating_add(ROWS));
        // Nothing depends on it: rather leave the lock to the application.
        conn.busy_handler(Some(brief))?;
        let done = remove(conn, until);
        conn.busy_handler(Some(patient))?;
        done?;
        self.removed = Some(until);
        Ok(())
    }
}

fn from_sql(id: i64) -> u64 {
    u64::try_from(id).unwrap_or(0)
}

fn remove(conn: &Connection, below: u64) -> rusqlite::Result<()> {
    let write = rusqlite::Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
    write
        .prepare_cached("DELETE FROM headwater_change WHERE id < ?1")?
        .execute([i64::try_from(below).unwrap_or(i64::MAX)])?;
    // No statement is running while this transaction has the lock: notes mean nothing.
    write.prepare_cached("DELETE FROM headwater_displaced WHERE rowid > 0")?.execute([])?;
    write.commit()
}
