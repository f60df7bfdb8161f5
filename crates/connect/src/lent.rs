//! Connections to servers that may go silent: a host that loses its power, or a firewall that forgets a connection, says
//! nothing, and whoever gives up waiting for an answer leaves a connection behind that nobody can use.

use std::io::ErrorKind;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use sqlx::pool::{PoolConnection, PoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Database, Pool};

/// How long a connection may take to say that it is well. Of those that a pool has, all may have gone silent, and whoever
/// asks for a lease has a few seconds.
const WELL: Duration = Duration::from_secs(1);

/// When a pool has had no connection for so long, it is looked whether the server takes any.
const DOUBT: Duration = Duration::from_millis(500);

/// A pool that closes a connection which does not say in time that it is well, before it lends it.
pub(crate) fn distrusts<DB: Database>(pool: PoolOptions<DB>) -> PoolOptions<DB> {
    pool.test_before_acquire(false).before_acquire(|connection, _| {
        Box::pin(async {
            Ok(tokio::time::timeout(WELL, connection.ping()).await.is_ok_and(|well| well.is_ok()))
        })
    })
}

/// Why the server of a pool takes no connections. Of all else that is wrong the pool says so itself: then there is no
/// answer here.
async fn refusal<DB: Database>(pool: &Pool<DB>) -> sqlx::Error {
    tokio::time::sleep(DOUBT).await;
    match pool.connect_options().connect().await {
        Err(sqlx::Error::Io(error)) if error.kind() == ErrorKind::ConnectionRefused => return error.into(),
        Err(_) => {}
        Ok(connection) => drop(connection.close().await),
    }
    std::future::pending().await
}

/// So many bytes that nobody wants any more may still come through a connection before its next statement.
pub(crate) const DRAINED: usize = 4 << 20;

/// A connection of a pool that is closed, unless it is given back: the pool would ask it first whether it is well, and
/// keep its place until there is an answer.
pub(crate) struct Lent<DB: Database> {
    connection: PoolConnection<DB>,
    /// The server has answered all that it was asked.
    answered: bool,
}

impl<DB: Database> Lent<DB> {
    /// One of this pool. A server that refuses connections is an error at once: a pool would try until its time is up,
    /// and then say only that.
    pub async fn of(pool: &Pool<DB>) -> sqlx::Result<Self> {
        tokio::select! {
            biased;
            connection = pool.acquire() => Ok(Self { connection: connection?, answered: false }),
            error = refusal(pool) => Err(error),
        }
    }

    /// Asks by one of this pool, which is given back unless there is no answer, or an error.
    pub async fn asked<T>(
        pool: &Pool<DB>,
        ask: impl AsyncFnOnce(&mut DB::Connection) -> sqlx::Result<T>,
    ) -> sqlx::Result<T> {
        let mut on = Self::of(pool).await?;
        let answer = ask(&mut on).await?;
        on.back();
        Ok(answer)
    }

    /// The pool may lend it to others.
    pub fn back(mut self) {
        self.answered = true;
    }
}

impl<DB: Database> Deref for Lent<DB> {
    type Target = PoolConnection<DB>;

    fn deref(&self) -> &Self::Target {
        &self.connection
    }
}

impl<DB: Database> DerefMut for Lent<DB> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.connection
    }
}

impl<DB: Database> Drop for Lent<DB> {
    fn drop(&mut self) {
        if !self.answered {
            self.connection.close_on_drop();
        }
    }
}
