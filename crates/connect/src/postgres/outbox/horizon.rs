//! Up to which sequence every row of an outbox is decided: committed, or rolled back.
//!
//! Who inserts into a table holds a lock on it until the transaction ends, and draws the sequence while
//! holding it. So once everybody is gone who held that lock after a row with some sequence had been seen,
//! no lower sequence can turn up any more. Other transactions, however old, do not matter. (A snapshot's
//! xmin would do as well, but any long transaction of any database of the server holds that back.)

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::Names;
use crate::postgres::client::quote_literal;

/// How the names of prepared transactions begin.
const PREPARED: &str = "-1/";

/// The locks are not looked at more often than this.
const PAUSE: Duration = Duration::from_millis(10);

/// The horizon of one outbox.
#[derive(Debug)]
pub(super) struct Horizon {
    sql: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    horizon: i64,
    /// The highest sequence that was seen.
    highest: i64,
    /// Becomes the horizon once these transactions have ended.
    next: Option<(i64, HashSet<String>)>,
    /// The prepared ones of the last look.
    prepared: HashSet<String>,
    looked: Option<Instant>,
}

impl Horizon {
    pub fn new(names: &Names) -> Self {
        let sql = format!(
            "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND relation = to_regclass({}) \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
             AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')",
            quote_literal(&names.outbox())
        );
        Self { sql, state: Mutex::default() }
    }

    /// A row was seen.
    pub fn saw(&self, sequence: i64) {
        let mut state = self.lock();
        state.highest = state.highest.max(sequence);
    }

    /// Where it is now. What is read of the table after this has every committed row up to it.
    pub async fn now(&self, on: &mut PgConnection) -> sqlx::Result<i64> {
        let highest = {
            let state = self.lock();
            if state.looked.is_some_and(|at| at.elapsed() < PAUSE) || state.highest == state.horizon {
                return Ok(state.horizon);
            }
            state.highest
        };
        let holders = sqlx::query(AssertSqlSafe(&*self.sql)).fetch_all(on).await?;
        let holders: sqlx::Result<HashSet<String>> = holders.iter().map(|row| row.try_get(0)).collect();
        let mut state = self.lock();
        state.looked = Some(Instant::now());
        state.look(highest, holders?);
        Ok(state.horizon)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// These hold the lock now; a row with the sequence `highest` had been seen before they were asked for.
    fn look(&mut self, highest: i64, holders: HashSet<String>) {
        let prepared = holders.iter().filter(|holder| holder.starts_with(PREPARED)).cloned().collect();
        let before = std::mem::replace(&mut self.prepared, prepared);
        if holders.is_empty() {
            (self.horizon, self.next) = (self.horizon.max(highest), None);
            return;
        }
        match &mut self.next {
            Some((sequence, waits)) => {
                let waited = waits.len();
                waits.retain(|holder| holders.contains(holder));
                // Who is gone may have prepared, and holds its locks under another name then.
                if waits.len() < waited {
                    waits.extend(self.prepared.difference(&before).cloned());
                }
                if waits.is_empty() {
                    self.horizon = self.horizon.max(*sequence);
                    self.next = Some((highest, holders));
                }
            }
            None => self.next = Some((highest, holders)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holders(names: &[&str]) -> HashSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn it_moves_once_those_who_might_have_drawn_lower_numbers_are_gone() {
        let mut state = State::default();
        state.look(10, holders(&["a", "b"]));
        assert_eq!(state.horizon, 0);
        state.look(20, holders(&["b", "c"]));
        assert_eq!(state.horizon, 0, "b may still commit a number below 10");
        state.look(30, holders(&["c"]));
        assert_eq!(state.horizon, 10, "c may have one between 10 and 30");
        state.look(40, holders(&["d"]));
        assert_eq!(state.horizon, 30);
        state.look(50, holders(&[]));
        assert_eq!(state.horizon, 50);
        state.look(45, holders(&[]));
        assert_eq!(state.horizon, 50, "it never goes back");
    }

    #[test]
    fn who_prepares_is_still_waited_for() {
        let mut state = State::default();
        state.look(10, holders(&["3/1", "-1/70"]));
        state.look(20, holders(&["-1/70", "-1/71", "3/2"]));
        state.look(30, holders(&["-1/71", "3/2"]));
        assert_eq!(state.horizon, 0, "3/1 is -1/71 now");
        state.look(40, holders(&["3/2"]));
        assert_eq!(state.horizon, 10);
    }
}
