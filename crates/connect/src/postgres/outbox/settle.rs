//! Writing down what became of rows, in one statement.

use headwater_core::ports::{Lane, Outcome, Settled};
use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, PgConnection};

use super::Names;
use super::lease::millis;
use crate::outbox::epochs;

/// The statement.
#[derive(Debug)]
pub(super) struct Settle(String);

impl Settle {
    pub fn new(names: &Names) -> Self {
        let (outbox, lease) = (names.outbox(), names.lease());
        // Ids first, as an array, and states as no index has them: no index but that of ids is searched. Statistics from
        // before a backlog say that nothing is new, and all of it would be read each time.
        let ids = |ids: &str, lanes: &str| {
            format!(
                "ANY (ARRAY (SELECT one.id FROM unnest({ids}::uuid[], {lanes}::smallint[]) AS one (id, lane) \
                 JOIN ours USING (lane)))"
            )
        };
        let (published, waiting) = (ids("$4", "$5"), ids("$6", "$7"));
        // One statement: a relay that stands still in the middle of several would keep its lanes locked. A takeover
        // waits for the lock until all of this is committed, or this sees its epoch.
        Self(format!(
            "WITH ours AS (SELECT lane FROM {lease} WHERE relay = $1 AND lane = ANY($2) \
             AND epoch = ($3::bigint[])[array_position($2, lane)] ORDER BY lane FOR SHARE), \
             published AS (UPDATE {outbox} SET state = 'published', settled_at = clock_timestamp(), error = NULL, \
             next_try = NULL WHERE id = {published} AND (state || '') IN ('new', 'retrying')), \
             waiting AS (UPDATE {outbox} SET state = 'waiting' WHERE id = {waiting} AND (state || '') = 'new'), \
             failed AS (UPDATE {outbox} AS row SET \
             state = CASE WHEN one.after IS NULL THEN 'parked' ELSE 'retrying' END, attempts = one.attempts, \
             error = one.error, next_try = clock_timestamp() + one.after * interval '1 millisecond' \
             FROM unnest($8::uuid[], $9::smallint[], $10::int[], $11::bigint[], $12::text[]) \
             AS one (id, lane, attempts, after, error) JOIN ours USING (lane) \
             WHERE row.id = one.id AND (row.state || '') IN ('new', 'retrying')) \
             SELECT lane FROM ours"
        ))
    }

    /// For `EXPLAIN`.
    pub fn statement(&self) -> &str {
        &self.0
    }

    /// See [`OutboxStore::settle`](headwater_core::ports::OutboxStore::settle).
    pub async fn settle(
        &self,
        on: &mut PgConnection,
        relay: &str,
        settled: &[Settled],
    ) -> sqlx::Result<Vec<Lane>> {
        let epochs = epochs(settled);
        let (mut published, mut waiting, mut failed) = (Rows::default(), Rows::default(), Failed::default());
        for one in settled.iter().filter(|one| epochs.get(&one.lane) == Some(&one.epoch)) {
            match &one.outcome {
                Outcome::Published => published.add(one),
                Outcome::Waiting => waiting.add(one),
                Outcome::Retry { attempts, after, error } => {
                    failed.add(one, *attempts, Some(millis(*after)), error)
                }
                Outcome::Parked { attempts, error } => failed.add(one, *attempts, None, error),
            }
        }
        let lanes: Vec<i16> = epochs.keys().map(|lane| *lane as i16).collect();
        let sees: Vec<i64> = epochs.values().map(|epoch| *epoch as i64).collect();
        let settle = sqlx::query_scalar(AssertSqlSafe(&*self.0)).bind(relay).bind(lanes).bind(sees);
        let settle = settle.bind(published.ids).bind(published.lanes).bind(waiting.ids).bind(waiting.lanes);
        let settle = settle.bind(failed.rows.ids).bind(failed.rows.lanes);
        let settle = settle.bind(failed.attempts).bind(failed.after).bind(failed.errors);
        let held: Vec<i16> = settle.fetch_all(on).await?;
        Ok(epochs.into_keys().filter(|lane| !held.contains(&(*lane as i16))).collect())
    }
}

/// Rows, as arrays.
#[derive(Default)]
struct Rows {
    ids: Vec<Uuid>,
    lanes: Vec<i16>,
}

impl Rows {
    fn add(&mut self, settled: &Settled) {
        self.ids.push(Uuid::from_bytes(*settled.id.as_bytes()));
        self.lanes.push(settled.lane as i16);
    }
}

/// Rows that could not be published, as arrays.
#[derive(Default)]
struct Failed {
    rows: Rows,
    attempts: Vec<i32>,
    /// In how many milliseconds to try again; `None`: parked.
    after: Vec<Option<i64>>,
    errors: Vec<String>,
}

impl Failed {
    fn add(&mut self, settled: &Settled, attempts: u32, after: Option<i64>, error: &str) {
        self.rows.add(settled);
        self.attempts.push(attempts as i32);
        self.after.push(after);
        // PostgreSQL's text has no such character.
        self.errors.push(error.replace('\0', ""));
    }
}
