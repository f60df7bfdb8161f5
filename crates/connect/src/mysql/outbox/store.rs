//! What relays need of an outbox.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use headwater_core::ports::{
    Claim, ClaimLimit, Claimed, Finding, Lane, Lease, LeaseAsk, OutboxStore, Settled,
};
use headwater_core::{Result, Table};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::{AssertSqlSafe, Executor as _, MySqlConnection, MySqlPool, Row};

use super::check::check;
use super::claim::Claims;
use super::layout::WORK;
use super::lease::Leases;
use super::settle::Settle;
use super::shelf::MySqlOutboxShelf;
use super::{Names, Queue, place_of_now};
use crate::lent::{Lent, distrusts};
use crate::mysql::errors::failed;
use crate::mysql::sql::{LONGEST, list};
use crate::mysql::url::ConnectOptions;
use crate::store::micros;

/// How a relay's sessions are: each statement sees what is committed, none locks what lies between rows, and
/// none waits for long. The server ends one that is idle for seconds: a relay that stands still in the middle of a
/// transaction would keep its lanes locked. (One that is merely not needed is made anew when it is.)
const SESSION: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; \
     SET SESSION innodb_lock_wait_timeout = 5, SESSION lock_wait_timeout = 20, SESSION wait_timeout = 3";

/// How long a connection may be idle: shorter than the server's patience with it.
const IDLE: Duration = Duration::from_secs(2);

/// How long to wait for a connection. One whose server has vanished may take all of it to be closed, where it is
/// protected by TLS; then another is asked for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The outbox of a MySQL or MariaDB database, read by query.
pub struct MySqlOutboxStore {
    pool: MySqlPool,
    names: Names,
    table: Arc<Table>,
    leases: Leases,
    settle: Settle,
    claims: Claims,
    old: String,
}

impl MySqlOutboxStore {
    /// The outbox `table` of a database. Nothing is asked of the server yet.
    pub fn new(url: &ConnectOptions, table: &str) -> Self {
        // One each to claim, to settle, to renew leases and to clean.
        let pool = distrusts(MySqlPoolOptions::new()).max_connections(4).min_connections(0);
        let pool = pool.acquire_timeout(PATIENCE);
        let pool = pool.idle_timeout(IDLE);
        let pool = pool.after_connect(|connection, _| {
            Box::pin(async move { connection.execute(sqlx::raw_sql(SESSION)).await.map(drop) })
        });
        let names = Names::new(table);
        let schema = names.schema.as_deref().unwrap_or(url.database());
        Self {
            pool: pool.connect_lazy_with(url.sqlx()),
            table: crate::outbox::table(schema, &names.name),
            leases: Leases::new(&names),
            settle: Settle::new(&names),
            claims: Claims::new(&names),
            old: format!(
                "SELECT `seq` FROM {} FORCE INDEX (`{WORK}`) WHERE `queue` = {} \
                 AND `place` < {} - ? ORDER BY `place`, `seq` LIMIT {LONGEST}",
                names.outbox(),
                Queue::Done.number(),
                place_of_now()
            ),
            names,
        }
    }

    /// For how long a sequence that is missing may be still to come; a minute unless given. Longer than the
    /// `innodb_lock_wait_timeout` of those who publish.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        self.claims.horizon.set_patience(patience);
        self
    }

    /// What a person may do with rows that cannot be published. `owner` is the source's name.
    pub fn shelf(&self, owner: &str) -> MySqlOutboxShelf {
        MySqlOutboxShelf::new(self.pool.clone(), self.names.clone(), owner)
    }

    async fn cleaned(&self, on: &mut MySqlConnection, retention: Duration) -> sqlx::Result<u64> {
        let old = sqlx::query(AssertSqlSafe(&*self.old)).bind(micros(retention)).fetch_all(&mut *on).await?;
        let old: Vec<i64> = old.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<_>>()?;
        if old.is_empty() {
            return Ok(0);
        }
        let (places, sequences) = list(&old);
        let sql = format!("DELETE FROM {} WHERE `seq` IN ({places})", self.names.outbox());
        let delete =
            sequences.fold(sqlx::query(AssertSqlSafe(sql)), |delete, sequence| delete.bind(sequence));
        Ok(delete.execute(on).await?.rows_affected())
    }
}

#[async_trait]
impl OutboxStore for MySqlOutboxStore {
    async fn lease(&self, ask: &LeaseAsk) -> Result<Vec<Lease>> {
        let leases = Lent::asked(&self.pool, async |on| self.leases.lease(on, ask).await).await;
        leases.map_err(|error| failed(error, "renewing the leases of a relay", &self.names.plain()))
    }

    async fn claim(&self, claims: &[Claim], limit: ClaimLimit) -> Result<Claimed> {
        let claimed = self.claims.claim(&self.pool, claims, limit).await;
        let plain = self.names.plain();
        let mut claimed =
            claimed.map_err(|error| failed(error, &format!("reading the outbox {plain}"), &plain))?;
        claimed.table = (!claimed.rows.is_empty()).then(|| Arc::clone(&self.table));
        Ok(claimed)
    }

    async fn settle(&self, relay: &str, settled: &[Settled]) -> Result<Vec<Lane>> {
        let lost = Lent::asked(&self.pool, async |on| self.settle.settle(on, relay, settled).await).await;
        lost.map_err(|error| failed(error, "settling rows of the outbox", &self.names.plain()))
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        let checked = check(&self.pool, &self.names).await;
        checked.map_err(|error| failed(error, "looking at the outbox", &self.names.plain()))
    }

    async fn wait(&self, at_most: Duration) -> bool {
        tokio::time::sleep(at_most).await;
        false
    }

    async fn clean(&self, retention: Duration) -> Result<u64> {
        let done = Lent::asked(&self.pool, async |on| self.cleaned(on, retention).await).await;
        done.map_err(|error| failed(error, "deleting old rows of the outbox", &self.names.plain()))
    }
}
