//! A relay has sessions of its own: what it sets for them and what it listens to must not become a service's, as behind a
//! pooler that lends a session for one transaction.

use std::sync::Arc;
use std::time::Duration;

use headwater_core::{Error, Kind, Result};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, PgConnection, PgPool, Row as _};
use tokio::sync::OnceCell;

use crate::sqlx_errors::{POOLER, SqlxExt as _};

const DOING: &str = "connecting to the database of the outbox";

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

    /// The pool, once it is known that its sessions are its own.
    pub fn known(&self) -> Option<&PgPool> {
        self.own.initialized().then_some(&self.pool)
    }

    /// The pool, or an error of kind `Refused` where a session may be another's a moment later. That is asked until it is
    /// known. A pooler that is busy, or gives its sessions in turn, may answer by two, and is taken for the server then.
    pub async fn pool(self: &Arc<Self>) -> Result<&PgPool> {
        if self.known().is_none() {
            // Whoever asks may give up sooner than a server that is far away answers.
            let ours = Arc::clone(self);
            let asked = tokio::spawn(async move { ours.own.get_or_try_init(|| ours.ask()).await.copied() });
            asked.await.map_err(|error| Error::new(Kind::Internal, DOING).because(error))??;
        }
        Ok(&self.pool)
    }

    async fn ask(&self) -> Result<()> {
        let Ok(asked) = tokio::time::timeout(self.patience, two(&self.pool)).await else {
            return Err(Error::new(Kind::Unavailable, DOING).because("the server has not answered in time"));
        };
        let ([one, other], connections) = asked.sqlx(DOING)?;
        // Whether they end well says nothing any more.
        let ends = futures::future::join_all(connections.map(PgConnection::close));
        drop(tokio::time::timeout(self.patience, ends).await);
        if one != other {
            return Ok(());
        }
        let doing = "the url names a pooler that lends a session of the server for one transaction only";
        Err(Error::new(Kind::Refused, doing).hint(POOLER))
    }
}

/// Two connections at a time, and their sessions. They are not the pool's, for which something is set.
async fn two(pool: &PgPool) -> sqlx::Result<([i32; 2], [PgConnection; 2])> {
    let options = pool.connect_options();
    let (mut one, mut other) = tokio::try_join!(options.connect(), options.connect())?;
    Ok(([session(&mut one).await?, session(&mut other).await?], [one, other]))
}

/// Which it is. Nothing is prepared for that, as the next one would find it.
async fn session(of: &mut PgConnection) -> sqlx::Result<i32> {
    of.fetch_one(sqlx::raw_sql("SELECT pg_backend_pid()")).await?.try_get(0)
}
