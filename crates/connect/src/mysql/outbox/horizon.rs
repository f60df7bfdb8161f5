//! Up to which sequence nothing can turn up any more.
//!
//! A sequence is drawn before its row is there, so a missing one may be still to come; and what would tell who
//! has drawn one, the server's metadata locks, takes rights that a service's user has not. But sequences are
//! drawn in order: what is missing below one that was there a while ago was drawn before that. And from drawing
//! to inserting a statement does nothing but wait for a lock, at most: so what has been missing for longer than
//! a statement waits for a lock is not coming. What is there and not committed a dirty read shows.
//!
//! So the horizon is below the first row that is new, committed or not, now and as it was that while ago. (If
//! the server's thread did stand still for so long, its row is found all the same, by the next look from the
//! beginning; only its place among its key's would be lost.)

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use headwater_core::ports::LANES;
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Executor as _, MySql, Row};

use super::layout::WORK;
use super::{Names, Queue};

/// Longer than a statement waits for a lock: `innodb_lock_wait_timeout` is 50 s.
const PATIENCE: Duration = Duration::from_secs(60);

/// The rows are not looked at more often than this.
const PAUSE: Duration = Duration::from_millis(500);

/// The horizon of one outbox.
#[derive(Debug)]
pub(super) struct Horizon {
    outbox: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    patience: Duration,
    horizon: i64,
    /// The highest sequence that was seen.
    highest: i64,
    /// The first sequence that was new at some time, or above all that were seen.
    firsts: VecDeque<(Instant, i64)>,
}

impl Horizon {
    pub fn new(names: &Names) -> Self {
        let state = State { patience: PATIENCE, horizon: 0, highest: 0, firsts: VecDeque::new() };
        Self { outbox: names.outbox(), state: Mutex::new(state) }
    }

    /// Waits so long for what is missing.
    pub fn set_patience(&self, patience: Duration) {
        self.lock().patience = patience;
    }

    /// A row was seen.
    pub fn saw(&self, sequence: i64) {
        let mut state = self.lock();
        state.highest = state.highest.max(sequence);
    }

    /// Where it is now. What is read of the table after this has every committed row up to it.
    pub async fn now(&self, on: &mut PoolConnection<MySql>) -> sqlx::Result<i64> {
        let (above, highest) = {
            let state = self.lock();
            let pause = PAUSE.min(state.patience);
            if state.firsts.back().is_some_and(|(at, _)| at.elapsed() < pause) || state.highest == 0 {
                return Ok(state.horizon);
            }
            (state.horizon, state.highest)
        };
        let asked = Instant::now();
        // What is being settled is not new to a dirty read, and is to the other.
        let committed = self.first(on, "", above).await?;
        let dirty = "SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED;";
        let dirty = self.first(on, dirty, above).await?;
        let first = committed.into_iter().chain(dirty).min().unwrap_or(highest + 1);
        let mut state = self.lock();
        state.look(asked, Instant::now(), first);
        Ok(state.horizon)
    }

    /// The first new row of all lanes, above what is decided.
    async fn first(
        &self,
        on: &mut PoolConnection<MySql>,
        how: &str,
        above: i64,
    ) -> sqlx::Result<Option<i64>> {
        let lane = |lane| {
            format!(
                "(SELECT `seq` FROM {} FORCE INDEX (`{WORK}`) WHERE `queue` = {} AND `place` IS NULL AND `seq` > {above} \
                 ORDER BY `seq` LIMIT 1)",
                self.outbox,
                Queue::New(lane).number()
            )
        };
        // One message: the level is that of the next statement, which must be no other.
        let sql = format!("{how}{}", (0..LANES).map(lane).collect::<Vec<_>>().join(" UNION ALL "));
        let rows = on.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
        let firsts = rows.iter().map(|row| row.try_get::<i64, _>(0));
        Ok(firsts.collect::<sqlx::Result<Vec<_>>>()?.into_iter().min())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// This was the first new row in that while, later than all looks before.
    fn look(&mut self, asked: Instant, answered: Instant, first: i64) {
        self.firsts.push_back((answered, first));
        let old = |(then, _): &(Instant, i64)| asked.saturating_duration_since(*then) >= self.patience;
        // Of those that are old enough the youngest.
        while self.firsts.get(1).is_some_and(old) {
            self.firsts.pop_front();
        }
        if let Some((_, then)) = self.firsts.front().filter(|first| old(first)) {
            self.horizon = self.horizon.max(first.min(*then) - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_below_what_is_new_now_and_was_a_while_ago() {
        let mut state =
            State { patience: Duration::from_secs(60), horizon: 0, highest: 0, firsts: VecDeque::new() };
        let begin = Instant::now();
        let mut look = |seconds: u64, first: i64| {
            let at = begin + Duration::from_secs(seconds);
            state.look(at, at, first);
            state.horizon
        };
        assert_eq!(look(0, 10), 0, "what is missing below 10 may be still to come");
        assert_eq!(look(30, 100), 0);
        assert_eq!(look(59, 200), 0);
        assert_eq!(look(60, 300), 9, "not any more");
        assert_eq!(look(89, 50), 9, "30 s are not long enough");
        assert_eq!(look(90, 50), 49, "50 was not there before: it must have been drawn before 100");
        assert_eq!(look(149, 500), 49, "60 s ago it was 50");
        assert_eq!(look(1000, 600), 499);
        assert_eq!(look(1001, 20), 499, "it never goes back");
    }
}
