//! Reading rows that are due: first where they are, of all lanes in one statement and from the index alone,
//! then the rows themselves, as many as there is room for.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use futures::TryStreamExt;
use headwater_core::ports::{Claim, ClaimLimit, Claimed, ClaimedRow, Lane};
use sqlx::mysql::MySqlRow;
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Executor as _, MySql, MySqlPool, Row};

use super::horizon::Horizon;
use super::layout::WORK;
use super::{Names, Queue, place_of_key, place_of_now};
use crate::lent::{DRAINED, Lent};
use crate::mysql::sql::{LONGEST, list};
use crate::outbox::{Parts, gaps};

/// Waiting rows that are let go in one statement. After so many, whatever their lanes, a claim ends.
const RESUMED: u64 = 10_000;

/// The statements.
#[derive(Debug)]
pub(super) struct Claims {
    pub horizon: Horizon,
    outbox: String,
    rows: String,
}

/// Where the rows are that are due: those that are tried again, and new ones, by their sequence.
#[derive(Debug, Default)]
struct Places {
    again: Vec<(i64, Lane)>,
    new: BTreeMap<i64, Lane>,
}

impl Places {
    /// Keeps of each lane the first new ones that are not known, and no more than `rows`; returns the lanes
    /// that may have more.
    fn keep(&mut self, claims: &[&Claim], rows: usize) -> HashSet<Lane> {
        let known: HashSet<i64> = claims.iter().flat_map(|claim| &claim.known).copied().collect();
        let (mut many, mut again) = (HashMap::<Lane, usize>::new(), HashMap::<Lane, usize>::new());
        self.again.iter().for_each(|(_, lane)| *again.entry(*lane).or_default() += 1);
        self.new.retain(|sequence, lane| {
            let many = many.entry(*lane).or_default();
            let keep = *many < rows && !known.contains(sequence);
            *many += usize::from(keep);
            keep
        });
        many.into_iter().chain(again).filter(|(_, many)| *many >= rows).map(|(lane, _)| lane).collect()
    }
}

impl Claims {
    pub fn new(names: &Names) -> Self {
        let outbox = names.outbox();
        Self {
            horizon: Horizon::new(names),
            rows: format!(
                "SELECT `queue`, `seq`, `attempts`, `id`, `stream`, `type`, `key`, `payload`, `headers`, `version`, \
                 COALESCE(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', `created_at`), 0) \
                 FROM {outbox} FORCE INDEX (PRIMARY) WHERE `seq` IN "
            ),
            outbox,
        }
    }

    /// See [`OutboxStore::claim`](headwater_core::ports::OutboxStore::claim).
    pub async fn claim(
        &self,
        pool: &MySqlPool,
        claims: &[Claim],
        limit: ClaimLimit,
    ) -> sqlx::Result<Claimed> {
        let mut connection = Lent::of(pool).await?;
        let mut claimed = Claimed { horizon: self.horizon.now(&mut connection).await?, ..Claimed::default() };
        let mut let_go = 0;
        for claim in claims.iter().filter(|claim| claim.resume) {
            self.resume(&mut connection, claim.lane, &mut let_go, &mut claimed).await?;
        }
        let claims = claimed.answered(claims);
        let mut places = self.places(&mut connection, &claims, limit.rows).await?;
        let mut more = places.keep(&claims, limit.rows);
        let again: Vec<i64> = places.again.iter().map(|(sequence, _)| *sequence).collect();
        let new: Vec<i64> = places.new.keys().copied().collect();
        let read = self.read(connection, &[&again, &new], limit.bytes, &mut claimed.rows).await?;
        let lanes = places.again.iter().map(|(_, lane)| lane).chain(places.new.values());
        more.extend(lanes.skip(read));
        claimed.more = more.into_iter().collect();
        Ok(claimed)
    }

    /// Where the rows of these lanes are, at most so many of each besides those that are known.
    async fn places(
        &self,
        on: &mut PoolConnection<MySql>,
        claims: &[&Claim],
        rows: usize,
    ) -> sqlx::Result<Places> {
        let mut claims = claims.to_vec();
        claims.sort_by_key(|claim| claim.lane);
        let from = format!("SELECT `queue`, `seq` FROM {} FORCE INDEX (`{WORK}`) WHERE", self.outbox);
        let part = |claim: &&Claim| {
            let (new, again) = (Queue::New(claim.lane).number(), Queue::Retrying(claim.lane).number());
            let new =
                format!("({from} `queue` = {new} AND `place` IS NULL AND `seq` > ? ORDER BY `seq` LIMIT ?)");
            let again = format!(
                "({from} `queue` = {again} AND `place` <= {} ORDER BY `place`, `seq` LIMIT ?)",
                place_of_now()
            );
            if claim.retries { format!("{new} UNION ALL {again}") } else { new }
        };
        let sql = claims.iter().map(part).collect::<Vec<_>>().join(" UNION ALL ");
        if sql.is_empty() {
            return Ok(Places::default());
        }
        let limit = |rows: usize| i64::try_from(rows).unwrap_or(i64::MAX);
        let ask = claims.iter().fold(sqlx::query(AssertSqlSafe(sql)), |ask, claim| {
            let ask = ask.bind(claim.above).bind(limit(rows.saturating_add(claim.known.len())));
            if claim.retries { ask.bind(limit(rows)) } else { ask }
        });
        let mut places = Places::default();
        for row in ask.fetch_all(&mut **on).await? {
            let (queue, sequence): (u8, i64) = (row.try_get(0)?, row.try_get(1)?);
            match Queue::of(queue.into()) {
                Some(Queue::New(lane)) => drop(places.new.insert(sequence, lane)),
                Some(Queue::Retrying(lane)) => places.again.push((sequence, lane)),
                Some(_) | None => {}
            }
        }
        Ok(places)
    }

    /// Reads rows until they have so many bytes; says how many of the places it has come past. A connection
    /// that has much more to say then is closed.
    async fn read(
        &self,
        mut on: Lent<MySql>,
        places: &[&[i64]],
        bytes: usize,
        claimed: &mut Vec<ClaimedRow>,
    ) -> sqlx::Result<usize> {
        let (mut past, mut size) = (0, 0);
        for chunk in places.iter().flat_map(|places| places.chunks(LONGEST)) {
            let (list, sequences) = list(chunk);
            let sql = format!("{}({list}) ORDER BY `seq`", self.rows);
            let ask = sequences.fold(sqlx::query(AssertSqlSafe(sql)), |ask, sequence| ask.bind(sequence));
            let mut rows = ask.fetch(&mut **on);
            while let Some(row) = rows.try_next().await? {
                let Some(row) = claimed_row(&row)? else { continue };
                self.horizon.saw(row.sequence);
                size += row.row.size();
                let at = chunk.iter().position(|sequence| *sequence == row.sequence).unwrap_or(0);
                claimed.push(row);
                if size >= bytes {
                    drop(rows);
                    if (chunk.len() - at - 1) * (size / claimed.len()) <= DRAINED {
                        on.back();
                    }
                    return Ok(past + at + 1);
                }
            }
            drop(rows);
            past += chunk.len();
        }
        on.back();
        Ok(past)
    }

    /// Says which keys are blocked, and lets go what waits behind none of them: some of it at a time, as nobody
    /// reads the lane before all of it is. `let_go` counts the rows of all lanes.
    async fn resume(
        &self,
        on: &mut PoolConnection<MySql>,
        lane: Lane,
        let_go: &mut u64,
        claimed: &mut Claimed,
    ) -> sqlx::Result<()> {
        if *let_go >= RESUMED {
            claimed.resuming.push(lane);
            return Ok(());
        }
        let outbox = &self.outbox;
        let keys = format!(
            "SELECT `stream`, `key`, {} FROM {outbox} FORCE INDEX (`{WORK}`) WHERE `queue` IN ({}, {}) AND `key` IS NOT NULL",
            place_of_key(""),
            Queue::Retrying(lane).number(),
            Queue::Parked(lane).number()
        );
        let (mut keys_blocked, mut places) = (HashSet::new(), BTreeSet::new());
        for head in sqlx::query(AssertSqlSafe(keys)).fetch_all(&mut **on).await? {
            keys_blocked.insert((head.try_get(0)?, head.try_get(1)?));
            places.insert(head.try_get(2)?);
        }
        for gaps in gaps(&places).chunks(LONGEST) {
            let between = |(first, last): &(i64, i64)| format!("`place` BETWEEN {first} AND {last}");
            let gaps = gaps.iter().map(between).collect::<Vec<_>>().join(" OR ");
            let resume = format!(
                "UPDATE {outbox} FORCE INDEX (`{WORK}`) SET `state` = 'new' WHERE `queue` = {} AND ({gaps}) LIMIT {RESUMED}",
                Queue::Waiting(lane).number()
            );
            let rows = on.execute(sqlx::raw_sql(AssertSqlSafe(resume))).await?.rows_affected();
            *let_go += rows;
            if rows == RESUMED {
                claimed.resuming.push(lane);
                return Ok(());
            }
        }
        claimed.blocked.extend(keys_blocked.into_iter().map(|key| (lane, key)));
        Ok(())
    }
}

/// A row, unless it has been settled since its place was read.
fn claimed_row(row: &MySqlRow) -> sqlx::Result<Option<ClaimedRow>> {
    let (lane, again) = match Queue::of(row.try_get::<u8, _>(0)?.into()) {
        Some(Queue::New(lane)) => (lane, false),
        Some(Queue::Retrying(lane)) => (lane, true),
        _ => return Ok(None),
    };
    let (id, stream, key): (&str, &str, Option<&str>) = (row.try_get(3)?, row.try_get(4)?, row.try_get(6)?);
    let created_at = row.try_get(10)?;
    let parts = Parts {
        id,
        stream: stream.as_bytes(),
        kind: row.try_get::<&str, _>(5)?.as_bytes(),
        key: key.map(str::as_bytes),
        payload: row.try_get::<Option<&str>, _>(7)?.map(str::as_bytes),
        headers: row.try_get::<Option<&str>, _>(8)?.map(str::as_bytes),
        version: row.try_get::<i32, _>(9)?.into(),
        created_at,
    };
    let wrong = |()| sqlx::Error::Decode(format!("the id of an event is no UUID: {id}").into());
    Ok(Some(ClaimedRow {
        lane,
        sequence: row.try_get(1)?,
        id: id.parse().map_err(wrong)?,
        attempts: row.try_get::<i32, _>(2)?.unsigned_abs(),
        again,
        stream: stream.to_owned(),
        key: key.map(str::to_owned),
        created_at,
        row: parts.row(),
    }))
}
