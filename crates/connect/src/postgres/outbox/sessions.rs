//! A relay has sessions of its own: what it sets for them and what it listens to must not become a service's, as behind a
//! pooler that lends a session for one transaction.

use std::time::Duration;

use headwater_core::{Error, Kind, Result};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, PgConnection, PgPool, Row as _};
use tokio::sync::OnceCell;

use crate::sqlx_errors::{POOLER, SqlxExt as _};

/// A pool, and whether its sessions are its own.
#[derive(Debug)]
pub(super) struct Sessions {
    pool: PgPool,
    patience: Duration,
    own: OnceCell<()>,
}

impl Sessions {
    /// Those of this pool; the server may take so long to give some.
    pub fn of(pool: PgPool, patience: Duration) -> Self {
        Self { pool, patience, own: OnceCell::new() }
    }

    /// The pool, or an error of kind `Refused` where a session may be another's a moment later. That is asked once. A busy
    /// pooler may answer by two sessions, and is taken for the server then.
    pub async fn pool(&self) -> Result<&PgPool> {
        self.own.get_or_try_init(|| self.ask()).await?;
        Ok(&self.pool)
    }

    async fn ask(&self) -> Result<()> {
        let doing = "connecting to the database of the outbox";
        let Ok(asked) = tokio::time::timeout(self.patience, two(&self.pool)).await else {
            return Err(Error::new(Kind::Unavailable, doing).because("the server has not answered in time"));
        };
        let [one, other] = asked.sqlx(doing)?;
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
    let (mut one, mut other) = tokio::try_join!(options.connect(), options.connect())?;
    let sessions = [session(&mut one).await?, session(&mut other).await?];
    // Whether they end well says nothing any more.
    drop(tokio::join!(one.close(), other.close()));
    Ok(sessions)
}

/// Which it is. Nothing is prepared for that, as the next one would find it.
async fn session(of: &mut PgConnection) -> sqlx::Result<i32> {
    of.fetch_one(sqlx::raw_sql("SELECT pg_backend_pid()")).await?.try_get(0)
}
