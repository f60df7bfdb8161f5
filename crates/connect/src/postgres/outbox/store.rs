//! What relays need of an outbox.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use futures::TryStreamExt;
use headwater_core::ports::{
    Claim, ClaimLimit, Claimed, ClaimedRow, Finding, Lane, Lease, LeaseAsk, OutboxStore, Settled,
};
use headwater_core::{EventId, Result, Table};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow, PgSslMode};
use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection, PgPool, Row};

use super::check::check;
use super::horizon::Horizon;
use super::layout::place;
use super::lease::{Leases, millis};
use super::sessions::Sessions;
use super::settle::Settle;
use super::shelf::PostgresOutboxShelf;
use super::wake::Heard;
use super::{Names, failed};
use crate::lent::{DRAINED, Lent, distrusts};
use crate::outbox::{Parts, gaps};
use crate::postgres::url::{ConnectOptions, SslMode};

/// Done rows that are deleted in one statement.
const CLEANED: i64 = 1_000;

/// How long to wait for a connection. One whose server has vanished may take all of it to be closed, where it is
/// protected by TLS; then another is asked for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Nothing waits for a lock for long: who has gone leaves no statement behind that does. One that reads takes its time.
const SESSION: &str = "SET lock_timeout = '20s'";

/// Waiting rows that are let go in one statement. After so many, whatever their lanes, a claim ends.
const RESUMED: u64 = 10_000;

/// The outbox of a PostgreSQL database, read by query.
pub struct PostgresOutboxStore {
    pool: PgPool,
    names: Names,
    table: Arc<Table>,
    leases: Leases,
    settle: Settle,
    horizon: Horizon,
    heard: OnceLock<Heard>,
    sessions: Arc<Sessions>,
    new: String,
    due: String,
    blocked: String,
    resume: String,
    clean: String,
}

impl PostgresOutboxStore {
    /// The outbox `table` of a database. Nothing is asked of the server yet.
    pub fn new(url: &ConnectOptions, table: &str) -> Self {
        // One each to claim, to settle, to renew leases, to clean and to listen.
        let pool = distrusts(PgPoolOptions::new()).max_connections(5).min_connections(0);
        let patience = url.connect_timeout.min(PATIENCE);
        let pool = pool.acquire_timeout(patience);
        let pool = pool.after_connect(|connection, _| {
            Box::pin(async move { connection.execute(sqlx::raw_sql(SESSION)).await.map(drop) })
        });
        let pool = pool.connect_lazy_with(options(url));
        let sessions = Arc::new(Sessions::of(pool.clone(), patience));
        let names = Names::new(table);
        let outbox = names.outbox();
        let columns = "row.lane, row.seq, row.attempts, row.id, row.stream, row.type, row.key, row.payload::text, \
             row.headers::text, row.version, CASE WHEN isfinite(row.created_at) THEN \
             (extract(epoch FROM row.created_at) * 1000000)::bigint ELSE 0 END, row.state = 'retrying'";
        Self {
            pool,
            table: names.table(),
            leases: Leases::new(&names),
            settle: Settle::new(&names),
            horizon: Horizon::new(&names),
            heard: OnceLock::new(),
            sessions,
            new: format!(
                "SELECT {columns} FROM unnest($1::smallint[], $2::bigint[]) WITH ORDINALITY AS claim (lane, above, at) \
                 CROSS JOIN LATERAL (SELECT * FROM {outbox} AS of WHERE of.lane = claim.lane AND of.state = 'new' \
                 AND of.seq > claim.above AND of.seq NOT IN (SELECT unnest($4::bigint[])) \
                 ORDER BY of.seq LIMIT $3) AS row ORDER BY claim.at, row.seq"
            ),
            // The clock is asked once, in a subquery: no index is searched for what may change from row to row.
            due: format!(
                "SELECT {columns} FROM {outbox} AS row WHERE row.lane = ANY($1) AND row.state IN ('retrying', 'parked') \
                 AND row.state = 'retrying' AND row.next_try <= (SELECT clock_timestamp()) \
                 ORDER BY row.next_try, row.seq LIMIT $2"
            ),
            blocked: format!(
                "SELECT stream, key, {} FROM {outbox} WHERE lane = $1 AND state IN ('retrying', 'parked') \
                 AND key IS NOT NULL",
                place("")
            ),
            // Counted is what was there, not what was changed: another statement that lets the same rows go, as one
            // whose asker has gone, leaves nothing to change of these, and may leave later ones as they are. By their ids, see settle.rs.
            resume: format!(
                "WITH late AS MATERIALIZED (SELECT row.id FROM unnest($2::bigint[], $3::bigint[]) AS gap (first, last) \
                 CROSS JOIN LATERAL (SELECT late.id FROM {outbox} AS late WHERE late.lane = $1 AND late.state = 'waiting' \
                  AND {place} BETWEEN gap.first AND gap.last LIMIT {RESUMED}) AS row LIMIT {RESUMED}), \
                 goes AS (UPDATE {outbox} SET state = 'new' WHERE (state || '') = 'waiting' AND id = ANY (ARRAY (SELECT id FROM late))) \
                 SELECT count(*) FROM late",
                place = place("late.")
            ),
            clean: format!(
                "DELETE FROM {outbox} WHERE id = ANY (ARRAY (SELECT id FROM {outbox} WHERE state IN ('published', 'dropped') \
                 AND settled_at < (SELECT clock_timestamp() - $1 * interval '1 millisecond') ORDER BY settled_at LIMIT {CLEANED} \
                 FOR UPDATE SKIP LOCKED))"
            ),
            names,
        }
    }

    /// The statements that read the outbox all the time, for `EXPLAIN`: new rows, those that are tried again, the
    /// keys that are blocked, what waits behind nothing, what is cleaned, what became of rows.
    pub fn statements(&self) -> [&str; 6] {
        [&self.new, &self.due, &self.blocked, &self.resume, &self.clean, self.settle.statement()]
    }

    /// What a person may do with rows that cannot be published. `owner` is the source's name.
    pub fn shelf(&self, owner: &str) -> PostgresOutboxShelf {
        PostgresOutboxShelf::new(Arc::clone(&self.sessions), self.names.clone(), owner)
    }

    async fn claimed(&self, claims: &[Claim], limit: ClaimLimit) -> sqlx::Result<Claimed> {
        let mut on = Lent::of(&self.pool).await?;
        let mut claimed = Claimed { horizon: self.horizon.now(&mut on).await?, ..Claimed::default() };
        let mut let_go = 0;
        for claim in claims.iter().filter(|claim| claim.resume) {
            self.resume(&mut on, claim.lane, &mut let_go, &mut claimed).await?;
        }
        let claims = claimed.answered(claims);
        let lanes: Vec<i16> = claims.iter().map(|claim| claim.lane as i16).collect();
        let above: Vec<i64> = claims.iter().map(|claim| claim.above).collect();
        let known: Vec<i64> = claims.iter().flat_map(|claim| &claim.known).copied().collect();
        let rows = i64::try_from(limit.rows).unwrap_or(i64::MAX);
        let mut room = Room { limit, bytes: 0, rows: HashMap::new() };
        let due: Vec<i16> =
            claims.iter().filter(|claim| claim.retries).map(|claim| claim.lane as i16).collect();
        let mut full = false;
        if !due.is_empty() {
            let due = sqlx::query(AssertSqlSafe(&*self.due)).bind(due).bind(rows);
            full = self.take(due.fetch(&mut **on), &mut room, &mut claimed).await?;
            room.rows.clear();
        }
        let again = claimed.rows.len() >= limit.rows;
        let new = sqlx::query(AssertSqlSafe(&*self.new)).bind(&lanes).bind(above).bind(rows).bind(known);
        let full = full || self.take(new.fetch(&mut **on), &mut room, &mut claimed).await?;
        let more = |claim: &&&Claim| {
            let new = room.rows.get(&claim.lane).copied().unwrap_or(0);
            full || new >= limit.rows || claim.retries && again
        };
        claimed.more = claims.iter().filter(more).map(|claim| claim.lane).collect();
        claimed.table = (!claimed.rows.is_empty()).then(|| Arc::clone(&self.table));
        let taken = claimed.rows.len();
        let rest = limit.rows.saturating_mul(claims.len()).saturating_sub(taken);
        if !full || rest.saturating_mul(room.bytes / taken.max(1)) <= DRAINED {
            on.back();
        }
        Ok(claimed)
    }

    /// Takes rows until there is no more room; whether that was so.
    async fn take(
        &self,
        mut rows: impl futures::Stream<Item = sqlx::Result<PgRow>> + Unpin,
        room: &mut Room,
        claimed: &mut Claimed,
    ) -> sqlx::Result<bool> {
        while let Some(row) = rows.try_next().await? {
            let row = claimed_row(&row)?;
            self.horizon.saw(row.sequence);
            room.bytes += row.row.size();
            *room.rows.entry(row.lane).or_default() += 1;
            claimed.rows.push(row);
            if room.bytes >= room.limit.bytes {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Says which keys are blocked, and lets go what waits behind none of them: some of it at a time, as nobody
    /// reads the lane before all of it is. `let_go` counts the rows of all lanes.
    async fn resume(
        &self,
        on: &mut PgConnection,
        lane: Lane,
        let_go: &mut u64,
        claimed: &mut Claimed,
    ) -> sqlx::Result<()> {
        if *let_go >= RESUMED {
            claimed.resuming.push(lane);
            return Ok(());
        }
        let at = lane as i16;
        let heads = sqlx::query(AssertSqlSafe(&*self.blocked)).bind(at).fetch_all(&mut *on).await?;
        let (mut keys, mut places) = (HashSet::new(), BTreeSet::new());
        for head in &heads {
            keys.insert((head.try_get(0)?, head.try_get(1)?));
            places.insert(head.try_get(2)?);
        }
        let (first, last): (Vec<i64>, Vec<i64>) = gaps(&places).into_iter().unzip();
        let resume =
            sqlx::query_scalar::<_, i64>(AssertSqlSafe(&*self.resume)).bind(at).bind(first).bind(last);
        let rows = resume.fetch_one(&mut *on).await?.unsigned_abs();
        *let_go += rows;
        if rows < RESUMED {
            claimed.blocked.extend(keys.into_iter().map(|key| (lane, key)));
        } else {
            claimed.resuming.push(lane);
        }
        Ok(())
    }
}

/// What may still be taken.
struct Room {
    limit: ClaimLimit,
    bytes: usize,
    /// By lane.
    rows: HashMap<Lane, usize>,
}

fn claimed_row(row: &PgRow) -> sqlx::Result<ClaimedRow> {
    let (lane, attempts): (i16, i32) = (row.try_get(0)?, row.try_get(2)?);
    let id = EventId::from_bytes(*row.try_get::<Uuid, _>(3)?.as_bytes());
    let (stream, key): (&str, Option<&str>) = (row.try_get(4)?, row.try_get(6)?);
    let created_at = row.try_get(10)?;
    let text = id.to_string();
    let parts = Parts {
        id: &text,
        stream: stream.as_bytes(),
        kind: row.try_get::<&str, _>(5)?.as_bytes(),
        key: key.map(str::as_bytes),
        payload: row.try_get::<Option<&str>, _>(7)?.map(str::as_bytes),
        headers: row.try_get::<Option<&str>, _>(8)?.map(str::as_bytes),
        version: row.try_get::<i32, _>(9)?.into(),
        created_at,
    };
    Ok(ClaimedRow {
        lane: lane as Lane,
        sequence: row.try_get(1)?,
        id,
        attempts: attempts as u32,
        again: row.try_get(11)?,
        stream: stream.to_owned(),
        key: key.map(str::to_owned),
        created_at,
        row: parts.row(),
    })
}

#[async_trait]
impl OutboxStore for PostgresOutboxStore {
    async fn lease(&self, ask: &LeaseAsk) -> Result<Vec<Lease>> {
        let pool = self.sessions.pool().await?;
        let leases = Lent::asked(pool, async |on| self.leases.lease(on, ask).await).await;
        leases.map_err(|error| failed(error, "renewing the leases of a relay", &self.names))
    }

    async fn claim(&self, claims: &[Claim], limit: ClaimLimit) -> Result<Claimed> {
        let claimed = self.claimed(claims, limit).await;
        claimed.map_err(|error| {
            failed(error, &format!("reading the outbox {}", self.names.outbox()), &self.names)
        })
    }

    async fn settle(&self, relay: &str, settled: &[Settled]) -> Result<Vec<Lane>> {
        let lost = Lent::asked(&self.pool, async |on| self.settle.settle(on, relay, settled).await).await;
        lost.map_err(|error| failed(error, "settling rows of the outbox", &self.names))
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        let checked = check(self.sessions.pool().await?, &self.names).await;
        checked.map_err(|error| failed(error, "looking at the outbox", &self.names))
    }

    async fn wait(&self, at_most: Duration) -> bool {
        // Before that there is no lane to look into either.
        let pool = self.sessions.known();
        let heard = pool.map(|pool| self.heard.get_or_init(|| Heard::start(pool.clone(), &self.names)));
        let told = async {
            match heard {
                Some(heard) => heard.told().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = told => true,
            () = tokio::time::sleep(at_most) => false,
        }
    }

    async fn clean(&self, retention: Duration) -> Result<u64> {
        let clean = sqlx::query(AssertSqlSafe(&*self.clean)).bind(millis(retention));
        let pool = self.sessions.pool().await?;
        let done = Lent::asked(pool, async |on| clean.execute(on).await).await;
        done.map(|done| done.rows_affected())
            .map_err(|error| failed(error, "deleting old rows of the outbox", &self.names))
    }
}

/// The same place and protection, for sqlx.
fn options(url: &ConnectOptions) -> PgConnectOptions {
    let mode = match url.ssl_mode {
        SslMode::Disable => PgSslMode::Disable,
        SslMode::Allow => PgSslMode::Allow,
        SslMode::Prefer => PgSslMode::Prefer,
        SslMode::Require => PgSslMode::Require,
        SslMode::VerifyCa => PgSslMode::VerifyCa,
        SslMode::VerifyFull => PgSslMode::VerifyFull,
    };
    let mut options = PgConnectOptions::new_without_pgpass()
        .host(&url.host)
        .port(url.port)
        .username(&url.user)
        .database(&url.database)
        .application_name(&url.application_name)
        // No such value is read, and poolers do not know it.
        .extra_float_digits(None)
        .ssl_mode(mode);
    if url.is_unix() {
        options = options.socket(&url.host);
    }
    if let Some(password) = &url.password {
        options = options.password(password);
    }
    if let Some(root) = &url.ssl_root_cert {
        options = options.ssl_root_cert(root);
    }
    if let Some((certificate, key)) = &url.ssl_client {
        options = options.ssl_client_cert(certificate).ssl_client_key(key);
    }
    options
}
