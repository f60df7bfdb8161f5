//! Writing down what became of rows.

use std::collections::BTreeMap;

use headwater_core::ports::{Lane, Outcome, Settled};
use serde_json::json;
use sqlx::{AssertSqlSafe, Row, Sqlite, Transaction};

use super::Names;
use super::lease::millis;
use super::pools::Pools;
use crate::outbox::epochs;
use crate::store::now;

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
        let these = "seq IN (SELECT value FROM json_each(?1))";
        Self {
            // Whoever takes over waits for the one write lock.
            guard: format!("SELECT lane, epoch FROM {lease} WHERE relay = ?1"),
            published: format!(
                "UPDATE {outbox} NOT INDEXED SET state = 'published', settled_at = ?2, error = NULL, next_try = NULL \
                 WHERE {these} AND state IN ('new', 'retrying')"
            ),
            waiting: format!(
                "UPDATE {outbox} NOT INDEXED SET state = 'waiting' WHERE {these} AND state = 'new'"
            ),
            failed: format!(
                "UPDATE {outbox} NOT INDEXED SET state = ?2, attempts = ?3, error = ?4, next_try = ?5 \
                 WHERE seq = ?1 AND state IN ('new', 'retrying')"
            ),
        }
    }

    /// Those that touch the outbox.
    pub fn statements(&self) -> [&str; 3] {
        [&self.published, &self.waiting, &self.failed]
    }

    /// See [`OutboxStore::settle`](headwater_core::ports::OutboxStore::settle).
    pub async fn settle(&self, pools: &Pools, relay: &str, settled: &[Settled]) -> sqlx::Result<Vec<Lane>> {
        let epochs = epochs(settled);
        let mut transaction = pools.write().await?;
        let held = self.held(&mut transaction, relay).await?;
        let ours: Vec<&Settled> =
            settled.iter().filter(|one| held.get(&one.lane) == Some(&one.epoch)).collect();
        let of = |outcome: Outcome| {
            let sequences = ours.iter().filter(|one| one.outcome == outcome).map(|one| one.sequence);
            json!(sequences.collect::<Vec<_>>()).to_string()
        };
        let published = sqlx::query(AssertSqlSafe(&*self.published)).bind(of(Outcome::Published));
        published.bind(now() / 1_000).execute(&mut *transaction).await?;
        let waiting = sqlx::query(AssertSqlSafe(&*self.waiting)).bind(of(Outcome::Waiting));
        waiting.execute(&mut *transaction).await?;
        for one in ours {
            self.fail(&mut transaction, one).await?;
        }
        transaction.commit().await?;
        let lost = |(lane, epoch): (Lane, u64)| (held.get(&lane) != Some(&epoch)).then_some(lane);
        Ok(epochs.into_iter().filter_map(lost).collect())
    }

    /// Which lanes the relay holds.
    async fn held(&self, on: &mut Transaction<'_, Sqlite>, relay: &str) -> sqlx::Result<BTreeMap<Lane, u64>> {
        let guard = sqlx::query(AssertSqlSafe(&*self.guard)).bind(relay.to_owned());
        let held = guard.fetch_all(&mut **on).await?;
        let pair = |row: &sqlx::sqlite::SqliteRow| {
            let (lane, epoch): (Lane, i64) = (row.try_get(0)?, row.try_get(1)?);
            Ok((lane, epoch.unsigned_abs()))
        };
        held.iter().map(pair).collect()
    }

    async fn fail(&self, on: &mut Transaction<'_, Sqlite>, settled: &Settled) -> sqlx::Result<()> {
        let (state, attempts, error, next) = match &settled.outcome {
            Outcome::Published | Outcome::Waiting => return Ok(()),
            Outcome::Retry { attempts, after, error } => {
                ("retrying", *attempts, error, Some((now() / 1_000).saturating_add(millis(*after))))
            }
            Outcome::Parked { attempts, error } => ("parked", *attempts, error, None),
        };
        sqlx::query(AssertSqlSafe(&*self.failed))
            .bind(settled.sequence)
            .bind(state)
            .bind(attempts)
            .bind(error.clone())
            .bind(next)
            .execute(&mut **on)
            .await
            .map(drop)
    }
}
