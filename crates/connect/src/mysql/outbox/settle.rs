//! Writing down what became of rows, in few statements for each kind of outcome.

use std::collections::BTreeMap;

use headwater_core::ports::{Lane, Outcome, Settled};
use sqlx::{AssertSqlSafe, Connection as _, MySql, MySqlConnection, Transaction};

use super::Names;
use super::lease::{lane_and_epoch, lanes};
use crate::mysql::sql::{LONGEST, list};
use crate::outbox::epochs;
use crate::store::micros;

/// The most characters of an error that are kept.
const ERROR: usize = 4_000;

/// What rows that failed alike have in common: attempts, for how long not to try (`None`: parked), why.
type Failure = (u32, Option<i64>, String);

/// The statements.
#[derive(Debug)]
pub(super) struct Settle {
    lease: String,
    update: String,
}

impl Settle {
    pub fn new(names: &Names) -> Self {
        Self { lease: names.lease(), update: format!("UPDATE {} FORCE INDEX (PRIMARY) SET ", names.outbox()) }
    }

    /// See [`OutboxStore::settle`](headwater_core::ports::OutboxStore::settle).
    pub async fn settle(
        &self,
        on: &mut MySqlConnection,
        relay: &str,
        settled: &[Settled],
    ) -> sqlx::Result<Vec<Lane>> {
        let epochs = epochs(settled);
        let mut transaction = on.begin().await?;
        let held = self.held(&mut transaction, relay, epochs.keys().copied()).await?;
        let (mut published, mut waiting) = (Vec::new(), Vec::new());
        let mut failed: BTreeMap<Failure, Vec<i64>> = BTreeMap::new();
        for one in settled.iter().filter(|one| held.get(&one.lane) == Some(&one.epoch)) {
            match &one.outcome {
                Outcome::Published => published.push(one.sequence),
                Outcome::Waiting => waiting.push(one.sequence),
                Outcome::Retry { attempts, after, error } => {
                    failed
                        .entry((*attempts, Some(micros(*after)), short(error)))
                        .or_default()
                        .push(one.sequence);
                }
                Outcome::Parked { attempts, error } => {
                    failed.entry((*attempts, None, short(error))).or_default().push(one.sequence);
                }
            }
        }
        self.publish(&mut transaction, published).await?;
        self.wait(&mut transaction, waiting).await?;
        for (failure, sequences) in failed {
            self.fail(&mut transaction, &failure, sequences).await?;
        }
        transaction.commit().await?;
        let lost = |(lane, epoch): (Lane, u64)| (held.get(&lane) != Some(&epoch)).then_some(lane);
        Ok(epochs.into_iter().filter_map(lost).collect())
    }

    /// Which of these lanes the relay holds. Locked: a takeover waits until all of this is committed, or this
    /// sees its epoch.
    async fn held(
        &self,
        on: &mut Transaction<'_, MySql>,
        relay: &str,
        of: impl Iterator<Item = Lane>,
    ) -> sqlx::Result<BTreeMap<Lane, u64>> {
        let sql = format!(
            "SELECT `lane`, `epoch` FROM {} WHERE `lane` IN ({}) AND `relay` = ? ORDER BY `lane` LOCK IN SHARE MODE",
            self.lease,
            lanes(of)
        );
        let held = sqlx::query(AssertSqlSafe(sql)).bind(relay).fetch_all(&mut **on).await?;
        held.iter().map(lane_and_epoch).collect()
    }

    async fn publish(&self, on: &mut Transaction<'_, MySql>, sequences: Vec<i64>) -> sqlx::Result<()> {
        for (places, sequences) in lists(&sequences) {
            let sql = format!(
                "{}`state` = 'published', `settled_at` = UTC_TIMESTAMP(6), `error` = NULL, `next_try` = NULL \
                 WHERE `seq` IN ({places}) AND `state` IN ('new', 'retrying')",
                self.update
            );
            let update =
                sequences.fold(sqlx::query(AssertSqlSafe(sql)), |update, sequence| update.bind(sequence));
            update.execute(&mut **on).await?;
        }
        Ok(())
    }

    async fn wait(&self, on: &mut Transaction<'_, MySql>, sequences: Vec<i64>) -> sqlx::Result<()> {
        for (places, sequences) in lists(&sequences) {
            let sql =
                format!("{}`state` = 'waiting' WHERE `seq` IN ({places}) AND `state` = 'new'", self.update);
            let update =
                sequences.fold(sqlx::query(AssertSqlSafe(sql)), |update, sequence| update.bind(sequence));
            update.execute(&mut **on).await?;
        }
        Ok(())
    }

    async fn fail(
        &self,
        on: &mut Transaction<'_, MySql>,
        failure: &Failure,
        sequences: Vec<i64>,
    ) -> sqlx::Result<()> {
        let (attempts, after, error) = failure;
        for (places, sequences) in lists(&sequences) {
            let sql = format!(
                "{}`state` = ?, `attempts` = ?, `error` = ?, `next_try` = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND \
                 WHERE `seq` IN ({places}) AND `state` IN ('new', 'retrying')",
                self.update
            );
            let state = if after.is_some() { "retrying" } else { "parked" };
            let update = sqlx::query(AssertSqlSafe(sql)).bind(state).bind(attempts).bind(error).bind(after);
            sequences.fold(update, |update, sequence| update.bind(sequence)).execute(&mut **on).await?;
        }
        Ok(())
    }
}

/// Sequences in lists that one statement takes.
fn lists(sequences: &[i64]) -> impl Iterator<Item = (String, impl Iterator<Item = i64> + '_)> {
    sequences.chunks(LONGEST).map(list)
}

fn short(error: &str) -> String {
    error.chars().take(ERROR).collect()
}
