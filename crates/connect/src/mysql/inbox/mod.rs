//! The inbox in a service's own MySQL or MariaDB database.

mod bound;
mod layout;
mod rows;
mod settle;
mod shelf;

use std::collections::HashSet;
use std::time::Duration;

use headwater_core::ports::{Arrival, Backlog, Due, Held, Inbox, Settlement, Taken};
use headwater_core::{Error, Kind, Result};
use serde_json::{Value, json};
use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, Executor, MySql, MySqlPool, Row, Transaction};

use bound::Bound;
pub use layout::{SCRIPT, install};

use crate::inbox::{MARGIN, begin, hex};
use crate::mysql::sql::{LONGEST, list};
use crate::sqlx_errors::SqlxExt;
use crate::store::micros;

/// An inbox in a MySQL or MariaDB database. A consumer uses as many connections of the pool at once as it works
/// on keys, and one more.
///
/// Its transactions are READ COMMITTED: what the statement sees that runs now, and no locks of what lies between
/// rows.
#[derive(Debug, Clone)]
pub struct MySqlInbox {
    pool: MySqlPool,
    bound: Option<Bound>,
}

/// The savepoint is gone when the server has rolled all of it back: see [`MySqlInbox::commit`].
const BEGIN: &str =
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION; SAVEPOINT headwater_inbox";

const STILL_THERE: &str = "RELEASE SAVEPOINT headwater_inbox";

/// The most characters of a consumer's name.
const NAME: usize = 255;

const CURSOR: &str =
    "SELECT `offset` FROM headwater_cursor WHERE consumer = ? AND stream = ? AND `partition` = ?";

/// In the order of the ids: two members that take the same events wait, and do not deadlock.
const TAKE: &str = "INSERT IGNORE INTO headwater_inbox (consumer, event_id, handled_at, taken) \
     SELECT ?, UNHEX(asked.id), UTC_TIMESTAMP(6), ? \
     FROM JSON_TABLE(?, '$[*]' COLUMNS (id CHAR(32) PATH '$')) AS asked ORDER BY asked.id";

/// Which of some events a transaction took. By their ids, each by itself.
const FRESH: &str = "SELECT inbox.event_id \
     FROM JSON_TABLE(?, '$[*]' COLUMNS (id CHAR(32) PATH '$')) AS asked \
     STRAIGHT_JOIN headwater_inbox AS inbox FORCE INDEX (PRIMARY) \
         ON inbox.consumer = ? AND inbox.event_id = UNHEX(asked.id) WHERE inbox.taken = ?";

/// A statement of its own, in READ COMMITTED: it sees what those committed whom taking waited for. A limit instead
/// of EXISTS: no server reads the whole table for it.
const BLOCKED: &str = "SELECT asked.at FROM JSON_TABLE(?, '$[*]' COLUMNS (at FOR ORDINALITY, \
         stream VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PATH '$[0]', `key` LONGTEXT PATH '$[1]')) AS asked \
     WHERE asked.`key` IS NOT NULL AND 1 = ( \
         SELECT 1 FROM headwater_parked AS parked FORCE INDEX (headwater_parked_key) WHERE parked.consumer = ? \
             AND parked.stream = asked.stream AND parked.key_hash = UNHEX(SHA2(UNHEX(asked.`key`), 256)) LIMIT 1)";

/// The first of each key, by the index alone (from key to key, where the server knows that this is less), then
/// those of them that may go; and events without a key.
const DUE: &str = "SELECT stream, `key`, seq FROM ((SELECT head.stream, head.`key`, head.seq, head.next_try FROM ( \
         SELECT MIN(seq) AS seq FROM headwater_parked FORCE INDEX (headwater_parked_key) \
         WHERE consumer = ? AND key_hash IS NOT NULL GROUP BY consumer, stream, key_hash) AS first \
         STRAIGHT_JOIN headwater_parked AS head ON head.seq = first.seq \
         WHERE head.state = 'waiting' OR head.state = 'retrying' AND head.next_try <= UTC_TIMESTAMP(6) \
         ORDER BY head.next_try, head.seq LIMIT ?) \
     UNION ALL \
     (SELECT stream, NULL, seq, next_try FROM headwater_parked FORCE INDEX (headwater_parked_retrying) \
         WHERE consumer = ? AND key_hash IS NULL AND state = 'retrying' AND next_try <= UTC_TIMESTAMP(6) \
         ORDER BY next_try, seq LIMIT ?)) AS due \
     ORDER BY next_try, seq LIMIT ?";

const FIRST: &str = "SELECT seq FROM headwater_parked FORCE INDEX (headwater_parked_key) \
     WHERE consumer = ? AND stream = ? AND key_hash = UNHEX(SHA2(?, 256)) ORDER BY seq LIMIT 1";

/// By the newest row, unless it is from the future, not by the clock: what a consumer handled before it stood still, and
/// reads again afterwards, does not grow old meanwhile.
const OLD: &str = "SELECT event_id FROM headwater_inbox FORCE INDEX (headwater_inbox_handled_at) WHERE consumer = ? \
     AND handled_at <= (SELECT LEAST(MAX(newest.handled_at), UTC_TIMESTAMP(6)) FROM headwater_inbox AS newest \
         WHERE newest.consumer = ?) \
         - INTERVAL ? MICROSECOND ORDER BY handled_at LIMIT ?";

impl MySqlInbox {
    /// The inbox that `headwater init` made in the database of the pool's connections.
    pub fn new(pool: MySqlPool) -> Self {
        Self { pool, bound: None }
    }

    async fn open(&self, doing: &str) -> Result<Transaction<'static, MySql>> {
        let sql = match &self.bound {
            None => BEGIN.to_owned(),
            Some(bound) => format!("{}; {BEGIN}", bound.set()),
        };
        begin(&self.pool, sql).await.sqlx(doing)
    }

    /// Says something within a transaction that is about to end; what bounded it is as before then.
    async fn say(&self, transaction: &mut Transaction<'static, MySql>, last: &str) -> sqlx::Result<()> {
        let sql = match &self.bound {
            None => last.to_owned(),
            Some(bound) => format!("{}; {last}", bound.reset()),
        };
        Executor::execute(&mut **transaction, sqlx::raw_sql(AssertSqlSafe(sql))).await.map(drop)
    }

    async fn undo(&self, mut transaction: Transaction<'static, MySql>, doing: &str) -> Result<()> {
        if self.bound.is_some() {
            let mut said = self.say(&mut transaction, "DO 0").await;
            // The error was that of a statement which was cut off: it is read first, and nothing was said.
            if matches!(said, Err(sqlx::Error::Database(_))) {
                said = self.say(&mut transaction, "DO 0").await;
            }
            said.sqlx(doing)?;
        }
        transaction.rollback().await.sqlx(doing)
    }

    /// Undoes what has failed, and says why it has.
    async fn fail<T>(&self, transaction: Transaction<'static, MySql>, error: Error) -> Result<T> {
        drop(self.undo(transaction, "rolling back what has failed").await);
        Err(error)
    }

    /// How each of the arrivals is taken.
    async fn taken(
        &self,
        transaction: &mut Transaction<'static, MySql>,
        consumer: &str,
        arrivals: &[Arrival],
    ) -> Result<Vec<Taken>> {
        if arrivals.is_empty() {
            return Ok(Vec::new());
        }
        let mut taken = self.take(transaction, consumer, arrivals).await?;
        for at in self.blocked(transaction, consumer, arrivals).await? {
            if let Some(taken) = taken.get_mut(at).filter(|taken| **taken == Taken::New) {
                *taken = Taken::Blocked;
            }
        }
        Ok(taken)
    }

    /// The first event of a key that is due, if it may go and is nobody else's now.
    async fn first(
        &self,
        transaction: &mut Transaction<'static, MySql>,
        consumer: &str,
        due: &Due,
        doing: &str,
    ) -> Result<Option<Held>> {
        let sequence = match due.key.as_deref() {
            None => Some(due.sequence),
            Some(key) => {
                let first = sqlx::query_scalar::<_, i64>(FIRST).bind(consumer).bind(&*due.stream).bind(key);
                first.fetch_optional(&mut **transaction).await.sqlx(doing)?
            }
        };
        let sql = format!(
            "SELECT {} FROM headwater_parked WHERE seq = ? \
             AND (state = 'waiting' OR state = 'retrying' AND next_try <= UTC_TIMESTAMP(6)) FOR UPDATE SKIP LOCKED",
            rows::COLUMNS
        );
        let asked = sqlx::query(AssertSqlSafe(sql)).bind(sequence);
        let Some(row) = asked.fetch_optional(&mut **transaction).await.sqlx(doing)? else { return Ok(None) };
        let (sequence, attempts) = rows::head(&row).sqlx(doing)?;
        let record = rows::columns(&row).sqlx(doing)?.record()?;
        Ok(Some(Held { sequence, attempts, record }))
    }

    async fn take(
        &self,
        transaction: &mut Transaction<'static, MySql>,
        consumer: &str,
        arrivals: &[Arrival],
    ) -> Result<Vec<Taken>> {
        let doing = "writing inbox rows";
        let ids: Vec<String> = arrivals.iter().map(|arrival| hex(arrival.id.as_bytes())).collect();
        let (ids, by) = (json!(ids).to_string(), rand::random::<i64>());
        let take = sqlx::query(TAKE).bind(consumer).bind(by).bind(&ids).execute(&mut **transaction).await;
        if take.sqlx(doing)?.rows_affected() == arrivals.len() as u64 {
            return Ok(vec![Taken::New; arrivals.len()]);
        }
        let fresh = sqlx::query_scalar::<_, Uuid>(FRESH).bind(&ids).bind(consumer).bind(by);
        let fresh: HashSet<[u8; 16]> = fresh
            .fetch_all(&mut **transaction)
            .await
            .sqlx(doing)?
            .into_iter()
            .map(Uuid::into_bytes)
            .collect();
        let state = |arrival: &Arrival| match fresh.contains(arrival.id.as_bytes()) {
            true => Taken::New,
            false => Taken::Seen,
        };
        Ok(arrivals.iter().map(state).collect())
    }

    /// Which of the arrivals have a key with something set aside.
    async fn blocked(
        &self,
        transaction: &mut Transaction<'static, MySql>,
        consumer: &str,
        arrivals: &[Arrival],
    ) -> Result<Vec<usize>> {
        let asked = |arrival: &Arrival| json!([*arrival.stream, arrival.key.as_deref().map(hex)]);
        let asked = Value::Array(arrivals.iter().map(asked).collect()).to_string();
        let places = sqlx::query(BLOCKED).bind(asked).bind(consumer).fetch_all(&mut **transaction).await;
        let place = |row: &sqlx::mysql::MySqlRow| row.try_get_unchecked::<i64, _>(0);
        let places = places.and_then(|rows| rows.iter().map(place).collect::<sqlx::Result<Vec<_>>>());
        let places = places.sqlx("looking for parked keys")?;
        Ok(places.into_iter().filter_map(|at| usize::try_from(at - 1).ok()).collect())
    }
}

impl Inbox for MySqlInbox {
    type Transaction = Transaction<'static, MySql>;

    fn bounded(self, handler: Duration) -> Self {
        Self { bound: Some(Bound::of(handler.saturating_add(MARGIN))), ..self }
    }

    async fn cursor(&self, consumer: &str, stream: &str, partition: u32) -> Result<Option<u64>> {
        let asked = sqlx::query_scalar::<_, i64>(CURSOR).bind(consumer).bind(stream).bind(partition);
        let offset = asked.fetch_optional(&self.pool).await.sqlx("reading a consumer's cursor")?;
        Ok(offset.map(|offset| u64::try_from(offset).unwrap_or(0)))
    }

    async fn begin(&self, consumer: &str, arrivals: &[Arrival]) -> Result<(Self::Transaction, Vec<Taken>)> {
        if consumer.chars().count() > NAME {
            return Err(Error::new(Kind::Config, "the consumer's name has more than 255 characters"));
        }
        let mut transaction = self.open("beginning a consumer's transaction").await?;
        match self.taken(&mut transaction, consumer, arrivals).await {
            Ok(taken) => Ok((transaction, taken)),
            Err(error) => self.fail(transaction, error).await,
        }
    }

    /// After a deadlock the server has rolled everything back, and takes each further statement for a
    /// transaction of its own. Where a handler kept such an error to itself the savepoint tells, before anything
    /// is written down.
    async fn commit(
        &self,
        mut transaction: Self::Transaction,
        consumer: &str,
        settlement: &Settlement,
    ) -> Result<()> {
        let said = self
            .say(&mut transaction, STILL_THERE)
            .await
            .sqlx("committing after the server has ended the transaction, which the handler did not pass on");
        if let Err(error) = said {
            return self.fail(transaction, error).await;
        }
        settle::run(&mut transaction, consumer, settlement).await?;
        transaction.commit().await.sqlx("committing a consumer's transaction")
    }

    async fn rollback(&self, transaction: Self::Transaction) -> Result<()> {
        self.undo(transaction, "rolling back a consumer's transaction").await
    }

    async fn clean(&self, consumer: &str, retention: Duration) -> Result<u64> {
        let doing = "cleaning the inbox";
        let old = sqlx::query_scalar::<_, Uuid>(OLD).bind(consumer).bind(consumer);
        let old = old.bind(micros(retention)).bind(LONGEST as u64);
        let old = old.fetch_all(&self.pool).await.sqlx(doing)?;
        if old.is_empty() {
            return Ok(0);
        }
        let (places, ids) = list(&old);
        let sql = format!("DELETE FROM headwater_inbox WHERE consumer = ? AND event_id IN ({places})");
        let delete = sqlx::query(AssertSqlSafe(sql)).bind(consumer);
        let delete = ids.fold(delete, |delete, id| delete.bind(id));
        Ok(delete.execute(&self.pool).await.sqlx(doing)?.rows_affected())
    }
}

impl Backlog for MySqlInbox {
    async fn due(&self, consumer: &str, limit: usize) -> Result<Vec<Due>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let asked = sqlx::query(DUE).bind(consumer).bind(limit).bind(consumer).bind(limit).bind(limit);
        let doing = "looking for parked events that may go";
        let rows = asked.fetch_all(&self.pool).await.sqlx(doing)?;
        let due = |row: sqlx::mysql::MySqlRow| -> sqlx::Result<Due> {
            let stream: String = row.try_get(0)?;
            let key: Option<Vec<u8>> = row.try_get(1)?;
            Ok(Due { stream: stream.into(), key: key.map(Into::into), sequence: row.try_get(2)? })
        };
        rows.into_iter().map(due).collect::<sqlx::Result<_>>().sqlx(doing)
    }

    async fn head(&self, consumer: &str, due: &Due) -> Result<Option<(Self::Transaction, Held)>> {
        let doing = "taking a parked event";
        let mut transaction = self.open(doing).await?;
        match self.first(&mut transaction, consumer, due, doing).await {
            Ok(Some(held)) => Ok(Some((transaction, held))),
            Ok(None) => self.undo(transaction, doing).await.map(|()| None),
            Err(error) => self.fail(transaction, error).await,
        }
    }
}
