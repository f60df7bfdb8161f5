//! Connections beside a busy application.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{Sqlite, SqlitePool, Transaction};
use tokio::time::{Instant, sleep};

use crate::sqlite::transaction::begin;

/// How long a statement waits for the application's transactions.
const PATIENCE: Duration = Duration::from_secs(10);

/// SQLite's own waiting asks less and less often, and may never catch the moment between two transactions of a busy
/// application. So a transaction hardly waits for the write lock and is begun again; only then it is patient, as a
/// commit may have to wait for readers.
const BEGIN: &str = "PRAGMA busy_timeout = 1; BEGIN IMMEDIATE; PRAGMA busy_timeout = 10000";

/// Connections that read, and others that write.
#[derive(Debug, Clone)]
pub(super) struct Pools {
    /// For statements that only read.
    pub reads: SqlitePool,
    /// Only for [`Pools::write`]: how patient one of these is depends on what it did before.
    writes: SqlitePool,
}

impl Pools {
    /// Nothing is opened yet.
    pub fn new(path: &Path) -> Self {
        let pool = || {
            let pool = SqlitePoolOptions::new().max_connections(4).min_connections(0);
            let pool = pool.acquire_timeout(PATIENCE).after_connect(|connection, _| {
                Box::pin(async move {
                    let mode: String =
                        sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *connection).await?;
                    if mode.eq_ignore_ascii_case("wal") {
                        // What a relay writes may be written again: only the application's own commits have
                        // to wait for the disk.
                        sqlx::query("PRAGMA synchronous = NORMAL").execute(connection).await?;
                    }
                    Ok(())
                })
            });
            pool.connect_lazy_with(options(path))
        };
        Self { reads: pool(), writes: pool() }
    }

    /// Begins a transaction, with the write lock.
    pub async fn write(&self) -> sqlx::Result<Transaction<'static, Sqlite>> {
        let end = Instant::now() + PATIENCE;
        loop {
            match begin(&self.writes, BEGIN).await {
                Err(error) if is_busy(&error) && Instant::now() < end => {
                    sleep(Duration::from_millis(1)).await;
                }
                begun => return begun,
            }
        }
    }
}

/// How the database is opened.
pub(super) fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).busy_timeout(PATIENCE)
}

fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<i32>().ok());
    code.is_some_and(|code| code & 0xff == 5)
}
