//! Writing down what became of events.

use headwater_core::Result;
use headwater_core::ports::{Aside, Fate, Mark, Settlement};
use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, MySql, Transaction};

use crate::inbox::{headers, state};
use crate::sqlx_errors::SqlxExt;
use crate::store::micros;

/// The most characters of an error, and of a type, that are kept.
const ERROR: usize = 4_000;
const TYPE: usize = 1_000;

const ASIDE: &str = "INSERT INTO headwater_parked (consumer, stream, `partition`, `offset`, event_id, `key`, key_hash, \
     event_key, type, headers, payload, time, state, attempts, error, parked_at, next_try) \
     VALUES (?, ?, ?, ?, ?, ?, UNHEX(SHA2(?, 256)), ?, ?, ?, ?, ?, ?, ?, ?, UTC_TIMESTAMP(6), \
         UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND)";

const DONE: &str = "DELETE FROM headwater_parked WHERE consumer = ? AND seq = ?";

const FATE: &str = "UPDATE headwater_parked SET state = ?, attempts = ?, error = ?, \
     next_try = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND \
     WHERE consumer = ? AND seq = ? AND state IN ('waiting', 'retrying') AND attempts = ? - 1";

/// Does everything but commit.
pub(super) async fn run(
    on: &mut Transaction<'static, MySql>,
    consumer: &str,
    settlement: &Settlement,
) -> Result<()> {
    for one in &settlement.aside {
        aside(on, consumer, one).await.sqlx("setting an event aside")?;
    }
    for (sequence, fate) in &settlement.held {
        settle(on, consumer, *sequence, fate).await.sqlx("settling a parked event")?;
    }
    // Last: members and workers wait for each other's cursor.
    mark(on, consumer, &settlement.cursors).await.sqlx("moving a consumer's cursor")
}

async fn mark(on: &mut Transaction<'static, MySql>, consumer: &str, marks: &[Mark]) -> sqlx::Result<()> {
    if marks.is_empty() {
        return Ok(());
    }
    let mut marks: Vec<&Mark> = marks.iter().collect();
    marks.sort_by_key(|mark| (&mark.stream, mark.partition));
    let sql = format!(
        "INSERT INTO headwater_cursor (consumer, stream, `partition`, `offset`) VALUES {} \
         ON DUPLICATE KEY UPDATE `offset` = GREATEST(`offset`, VALUES(`offset`))",
        vec!["(?, ?, ?, ?)"; marks.len()].join(", ")
    );
    let query = marks.iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, mark| {
        let partition = i32::try_from(mark.partition).unwrap_or(i32::MAX);
        query.bind(consumer).bind(&*mark.stream).bind(partition).bind(big(mark.offset))
    });
    query.execute(&mut **on).await.map(drop)
}

async fn aside(on: &mut Transaction<'static, MySql>, consumer: &str, aside: &Aside) -> sqlx::Result<()> {
    let event = &aside.record.event;
    let parked = aside.parked.as_ref();
    sqlx::query(ASIDE)
        .bind(consumer)
        .bind(&*event.stream)
        .bind(i32::try_from(event.partition.unwrap_or(0)).unwrap_or(i32::MAX))
        .bind(big(aside.record.offset))
        .bind(Uuid::from_bytes(*event.id.as_bytes()))
        .bind(aside.key.as_deref())
        .bind(aside.key.as_deref())
        .bind(event.key.as_deref())
        .bind(short(&event.kind, TYPE))
        .bind(headers(event))
        .bind(event.payload.as_deref())
        .bind(event.time)
        .bind(state(aside))
        .bind(parked.map_or(0, |trouble| attempts(trouble.attempts)))
        .bind(parked.map(|trouble| short(&trouble.error, ERROR)))
        .bind(aside.again.map(micros))
        .execute(&mut **on)
        .await
        .map(drop)
}

async fn settle(
    on: &mut Transaction<'static, MySql>,
    consumer: &str,
    sequence: i64,
    fate: &Fate,
) -> sqlx::Result<()> {
    let (state, trouble, after) = match fate {
        Fate::Done => {
            return sqlx::query(DONE).bind(consumer).bind(sequence).execute(&mut **on).await.map(drop);
        }
        Fate::Retry(trouble, after) => ("retrying", trouble, Some(micros(*after))),
        Fate::Parked(trouble) => ("parked", trouble, None),
    };
    sqlx::query(FATE)
        .bind(state)
        .bind(attempts(trouble.attempts))
        .bind(short(&trouble.error, ERROR))
        .bind(after)
        .bind(consumer)
        .bind(sequence)
        .bind(attempts(trouble.attempts))
        .execute(&mut **on)
        .await
        .map(drop)
}

fn attempts(attempts: u32) -> i32 {
    i32::try_from(attempts).unwrap_or(i32::MAX)
}

fn big(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

fn short(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}
