//! Writing down what became of events.

use headwater_core::Result;
use headwater_core::ports::{Aside, Fate, Mark, Settlement};
use sqlx::{Sqlite, Transaction};

use crate::inbox::{headers, state};
use crate::sqlx_errors::SqlxExt;
use crate::store::{micros, now};

const MARK: &str = "INSERT INTO headwater_cursor (consumer, stream, partition, \"offset\") VALUES (?, ?, ?, ?) \
     ON CONFLICT DO UPDATE SET \"offset\" = excluded.\"offset\" WHERE \"offset\" < excluded.\"offset\"";

const ASIDE: &str = "INSERT INTO headwater_parked (consumer, stream, partition, \"offset\", event_id, key, event_key, \
     type, headers, payload, time, state, attempts, error, parked_at, next_try) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

const DONE: &str = "DELETE FROM headwater_parked WHERE consumer = ? AND seq = ?";

const FATE: &str = "UPDATE headwater_parked SET state = ?3, attempts = ?4, error = ?5, next_try = ?6 \
     WHERE consumer = ?1 AND seq = ?2 AND state IN ('waiting', 'retrying') AND attempts = ?4 - 1";

/// Does everything but commit.
pub(super) async fn run(
    on: &mut Transaction<'static, Sqlite>,
    consumer: &str,
    settlement: &Settlement,
) -> Result<()> {
    for one in &settlement.aside {
        aside(on, consumer, one).await.sqlx("setting an event aside")?;
    }
    for (sequence, fate) in &settlement.held {
        settle(on, consumer, *sequence, fate).await.sqlx("settling a parked event")?;
    }
    for cursor in &settlement.cursors {
        mark(on, consumer, cursor).await.sqlx("moving a consumer's cursor")?;
    }
    Ok(())
}

async fn mark(on: &mut Transaction<'static, Sqlite>, consumer: &str, mark: &Mark) -> sqlx::Result<()> {
    sqlx::query(MARK)
        .bind(consumer)
        .bind(&*mark.stream)
        .bind(mark.partition)
        .bind(big(mark.offset))
        .execute(&mut **on)
        .await
        .map(drop)
}

async fn aside(on: &mut Transaction<'static, Sqlite>, consumer: &str, aside: &Aside) -> sqlx::Result<()> {
    let event = &aside.record.event;
    let parked = aside.parked.as_ref();
    sqlx::query(ASIDE)
        .bind(consumer)
        .bind(&*event.stream)
        .bind(event.partition.unwrap_or(0))
        .bind(big(aside.record.offset))
        .bind(event.id.to_string())
        .bind(aside.key.as_deref())
        .bind(event.key.as_deref())
        .bind(&*event.kind)
        .bind(headers(event))
        .bind(event.payload.as_deref())
        .bind(event.time)
        .bind(state(aside))
        .bind(parked.map_or(0, |trouble| trouble.attempts))
        .bind(parked.map(|trouble| trouble.error.as_str()))
        .bind(now())
        .bind(aside.again.map(|after| now().saturating_add(micros(after))))
        .execute(&mut **on)
        .await
        .map(drop)
}

async fn settle(
    on: &mut Transaction<'static, Sqlite>,
    consumer: &str,
    sequence: i64,
    fate: &Fate,
) -> sqlx::Result<()> {
    let (state, trouble, next) = match fate {
        Fate::Done => {
            return sqlx::query(DONE).bind(consumer).bind(sequence).execute(&mut **on).await.map(drop);
        }
        Fate::Retry(trouble, after) => ("retrying", trouble, Some(now().saturating_add(micros(*after)))),
        Fate::Parked(trouble) => ("parked", trouble, None),
    };
    sqlx::query(FATE)
        .bind(consumer)
        .bind(sequence)
        .bind(state)
        .bind(trouble.attempts)
        .bind(trouble.error.as_str())
        .bind(next)
        .execute(&mut **on)
        .await
        .map(drop)
}

fn big(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}
