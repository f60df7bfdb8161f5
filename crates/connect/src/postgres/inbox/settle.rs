//! Writing down what became of events.

use headwater_core::Result;
use headwater_core::ports::{Aside, Fate, Mark, Settlement, Trouble};
use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, Postgres, Transaction};

use super::layout::Tables;
use crate::inbox::{headers, state};
use crate::sqlx_errors::SqlxExt;
use crate::store::micros;

#[derive(Debug)]
pub(super) struct Sql {
    cursors: String,
    aside: String,
    done: String,
    fate: String,
}

impl Sql {
    pub(super) fn new(tables: &Tables) -> Self {
        let Tables { cursor, parked, .. } = tables;
        Self {
            cursors: format!(
                "INSERT INTO {cursor} AS cursor (consumer, stream, partition, \"offset\") \
                 SELECT $1, stream, partition, at FROM unnest($2::text[], $3::int[], $4::bigint[]) \
                     AS mark (stream, partition, at) ORDER BY stream, partition \
                 ON CONFLICT (consumer, stream, partition) DO UPDATE SET \"offset\" = EXCLUDED.\"offset\" \
                     WHERE cursor.\"offset\" < EXCLUDED.\"offset\""
            ),
            aside: format!(
                "INSERT INTO {parked} (consumer, stream, partition, \"offset\", event_id, key, event_key, type, headers, \
                     payload, time, state, attempts, error, next_try) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::json, $10, \
                     timestamptz 'epoch' + $11 * interval '1 microsecond', $12, $13, $14, \
                     clock_timestamp() + $15 * interval '1 microsecond')"
            ),
            done: format!("DELETE FROM {parked} WHERE consumer = $1 AND seq = $2"),
            fate: format!(
                "UPDATE {parked} SET state = $3, attempts = $4, error = $5, \
                     next_try = clock_timestamp() + $6 * interval '1 microsecond' \
                 WHERE consumer = $1 AND seq = $2 AND state IN ('waiting', 'retrying') AND attempts = $4 - 1"
            ),
        }
    }

    /// Does everything but commit.
    pub(super) async fn run(
        &self,
        on: &mut Transaction<'static, Postgres>,
        consumer: &str,
        settlement: &Settlement,
    ) -> Result<()> {
        for aside in &settlement.aside {
            self.set_aside(on, consumer, aside).await.sqlx("setting an event aside")?;
        }
        for (sequence, fate) in &settlement.held {
            self.settle(on, consumer, *sequence, fate).await.sqlx("settling a parked event")?;
        }
        // Last: members and workers wait for each other's cursor.
        if !settlement.cursors.is_empty() {
            return self.mark(on, consumer, &settlement.cursors).await.sqlx("moving a consumer's cursor");
        }
        Ok(())
    }

    async fn mark(
        &self,
        on: &mut Transaction<'static, Postgres>,
        consumer: &str,
        marks: &[Mark],
    ) -> sqlx::Result<()> {
        let int = |partition: u32| i32::try_from(partition).unwrap_or(i32::MAX);
        sqlx::query(AssertSqlSafe(self.cursors.as_str()))
            .bind(consumer)
            .bind(marks.iter().map(|mark| &*mark.stream).collect::<Vec<&str>>())
            .bind(marks.iter().map(|mark| int(mark.partition)).collect::<Vec<_>>())
            .bind(marks.iter().map(|mark| big(mark.offset)).collect::<Vec<_>>())
            .execute(&mut **on)
            .await
            .map(drop)
    }

    async fn set_aside(
        &self,
        on: &mut Transaction<'static, Postgres>,
        consumer: &str,
        aside: &Aside,
    ) -> sqlx::Result<()> {
        let event = &aside.record.event;
        let parked = aside.parked.as_ref();
        sqlx::query(AssertSqlSafe(self.aside.as_str()))
            .bind(consumer)
            .bind(&*event.stream)
            .bind(i32::try_from(event.partition.unwrap_or(0)).unwrap_or(i32::MAX))
            .bind(big(aside.record.offset))
            .bind(Uuid::from_bytes(*event.id.as_bytes()))
            .bind(aside.key.as_deref())
            .bind(event.key.as_deref())
            .bind(text(&event.kind))
            .bind(headers(event))
            .bind(event.payload.as_deref())
            .bind(event.time)
            .bind(state(aside))
            .bind(parked.map_or(0, attempts))
            .bind(parked.map(|trouble| text(&trouble.error)))
            .bind(aside.again.map(micros))
            .execute(&mut **on)
            .await
            .map(drop)
    }

    async fn settle(
        &self,
        on: &mut Transaction<'static, Postgres>,
        consumer: &str,
        sequence: i64,
        fate: &Fate,
    ) -> sqlx::Result<()> {
        let (state, trouble, after) = match fate {
            Fate::Done => {
                let done = sqlx::query(AssertSqlSafe(self.done.as_str())).bind(consumer).bind(sequence);
                return done.execute(&mut **on).await.map(drop);
            }
            Fate::Retry(trouble, after) => ("retrying", trouble, Some(after)),
            Fate::Parked(trouble) => ("parked", trouble, None),
        };
        sqlx::query(AssertSqlSafe(self.fate.as_str()))
            .bind(consumer)
            .bind(sequence)
            .bind(state)
            .bind(attempts(trouble))
            .bind(text(&trouble.error))
            .bind(after.copied().map(micros))
            .execute(&mut **on)
            .await
            .map(drop)
    }
}

fn attempts(trouble: &Trouble) -> i32 {
    i32::try_from(trouble.attempts).unwrap_or(i32::MAX)
}

fn big(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

/// What PostgreSQL takes as text: without zero characters.
fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
