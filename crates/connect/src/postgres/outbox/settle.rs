//! Writing down what became of rows, in one statement for each kind of outcome.

use std::collections::BTreeMap;

use headwater_core::ports::{Lane, Outcome, Settled};
use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, PgPool, Postgres, Row, Transaction};

use super::Names;
use super::lease::millis;

/// The statements.
#[derive(Debug)]
pub(super) struct Settle {
    guard: String,
    published: String,
    waiting: String,
    failed: String,
}

impl Settle {
    pub fn new(names: &Names) -> Self {
        let (outbox, lease) = (names.outbox(), names.lease());
        Self {
            // A takeover waits for the lock until all of this is committed, or this sees its epoch.
            guard: format!(
                "SELECT lane, epoch FROM {lease} WHERE relay = $1 AND lane = ANY($2) ORDER BY lane FOR SHARE"
            ),
            published: format!(
                "UPDATE {outbox} SET state = 'published', settled_at = clock_timestamp(), error = NULL, next_try = NULL \
                 WHERE id = ANY($1) AND state IN ('new', 'retrying')"
            ),
            waiting: format!("UPDATE {outbox} SET state = 'waiting' WHERE id = ANY($1) AND state = 'new'"),
            failed: format!(
                "UPDATE {outbox} AS row SET state = CASE WHEN failed.after IS NULL THEN 'parked' ELSE 'retrying' END, \
                 attempts = failed.attempts, error = failed.error, \
                 next_try = clock_timestamp() + failed.after * interval '1 millisecond' \
                 FROM unnest($1::uuid[], $2::int[], $3::bigint[], $4::text[]) AS failed (id, attempts, after, error) \
                 WHERE row.id = failed.id AND row.state IN ('new', 'retrying')"
            ),
        }
    }

    /// See [`OutboxStore::settle`](headwater_core::ports::OutboxStore::settle).
    pub async fn settle(&self, pool: &PgPool, relay: &str, settled: &[Settled]) -> sqlx::Result<Vec<Lane>> {
        let epochs: BTreeMap<Lane, u64> = settled.iter().map(|one| (one.lane, one.epoch)).collect();
        let mut transaction = pool.begin().await?;
        let held = self.held(&mut transaction, relay, &epochs).await?;
        let ours = || settled.iter().filter(|one| held.get(&one.lane) == Some(&one.epoch));
        let ids = |outcome: Outcome| {
            let ids = ours().filter(|one| one.outcome == outcome).map(id);
            ids.collect::<Vec<_>>()
        };
        for (sql, ids) in [(&self.published, ids(Outcome::Published)), (&self.waiting, ids(Outcome::Waiting))]
        {
            if !ids.is_empty() {
                sqlx::query(AssertSqlSafe(&**sql)).bind(ids).execute(&mut *transaction).await?;
            }
        }
        self.fail(&mut transaction, ours()).await?;
        transaction.commit().await?;
        let lost = |(lane, epoch): (Lane, u64)| (held.get(&lane) != Some(&epoch)).then_some(lane);
        Ok(epochs.into_iter().filter_map(lost).collect())
    }

    /// Which of these lanes the relay holds, locked until the transaction ends.
    async fn held(
        &self,
        on: &mut Transaction<'_, Postgres>,
        relay: &str,
        lanes: &BTreeMap<Lane, u64>,
    ) -> sqlx::Result<BTreeMap<Lane, u64>> {
        let lanes: Vec<i16> = lanes.keys().map(|lane| *lane as i16).collect();
        let held =
            sqlx::query(AssertSqlSafe(&*self.guard)).bind(relay).bind(lanes).fetch_all(&mut **on).await?;
        let pair = |row: &sqlx::postgres::PgRow| {
            let (lane, epoch): (i16, i64) = (row.try_get(0)?, row.try_get(1)?);
            Ok((lane as Lane, epoch as u64))
        };
        held.iter().map(pair).collect()
    }

    async fn fail(
        &self,
        on: &mut Transaction<'_, Postgres>,
        settled: impl Iterator<Item = &Settled>,
    ) -> sqlx::Result<()> {
        let (mut ids, mut tried, mut waits, mut errors) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for one in settled {
            let (attempts, after, error) = match &one.outcome {
                Outcome::Published | Outcome::Waiting => continue,
                Outcome::Retry { attempts, after, error } => (attempts, Some(millis(*after)), error),
                Outcome::Parked { attempts, error } => (attempts, None, error),
            };
            ids.push(id(one));
            tried.push(*attempts as i32);
            waits.push(after);
            // PostgreSQL's text has no such character.
            errors.push(error.replace('\0', ""));
        }
        if ids.is_empty() {
            return Ok(());
        }
        let fail = sqlx::query(AssertSqlSafe(&*self.failed)).bind(ids).bind(tried).bind(waits).bind(errors);
        fail.execute(&mut **on).await.map(drop)
    }
}

fn id(settled: &Settled) -> Uuid {
    Uuid::from_bytes(*settled.id.as_bytes())
}
