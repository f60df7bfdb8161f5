//! A relay has sessions of its own: what it sets for them and what it listens to must not become a service's, as behind a
//! pooler that lends a session for one transaction.

use headwater_core::{Error, Kind, Result};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, PgPool, Row as _};
use tokio::sync::OnceCell;

use super::store::PATIENCE;
use crate::sqlx_errors::{POOLER, SqlxExt as _};

/// Whether sessions are its own.
#[derive(Debug)]
pub(super) struct Sessions {
    pool: PgPool,
    own: OnceCell<()>,
}

impl Sessions {
    pub fn of(pool: PgPool) -> Self {
        Self { pool, own: OnceCell::new() }
    }

    /// An error of kind `Refused` where they are not. A busy pooler may give two at a time to who asks here, and is
    /// taken for the server.
    pub async fn are_own(&self) -> Result<()> {
        self.own.get_or_try_init(|| self.ask()).await.copied()
    }

    async fn ask(&self) -> Result<()> {
        let asked = tokio::time::timeout(PATIENCE, two(&self.pool)).await;
        let asked = asked.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        let [one, other] = asked.sqlx("connecting to the database of the outbox")?;
        if one != other {
            return Ok(());
        }
        let doing = "the url names a pooler that lends a session of the server for one transaction only";
        Err(Error::new(Kind::Refused, doing).hint(POOLER))
    }
}

/// The sessions of two connections at a time. They are not the pool's, for which something is set.
async fn two(pool: &PgPool) -> sqlx::Result<[i32; 2]> {
    let options = pool.connect_options();
    let mut connections = [options.connect().await?, options.connect().await?];
    let mut sessions = [0; 2];
    for (session, connection) in sessions.iter_mut().zip(&mut connections) {
        *session = connection.fetch_one(sqlx::raw_sql("SELECT pg_backend_pid()")).await?.try_get(0)?;
    }
    for connection in connections {
        connection.close().await?;
    }
    Ok(sessions)
}
