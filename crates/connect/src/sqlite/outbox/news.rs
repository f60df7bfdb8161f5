//! Noticing commits of others.

use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How often to ask: it costs some microseconds.
const PAUSE: Duration = Duration::from_millis(2);

/// Asks for `PRAGMA data_version`, which differs after every commit of another connection. (The files' times
/// would not do: a commit can be seen some time after the last of it was written.)
#[derive(Debug)]
pub(super) struct News {
    options: SqliteConnectOptions,
    /// Always the same connection: the number means nothing to another.
    watching: Mutex<Option<SqliteConnection>>,
    /// What it said when the outbox was last about to be read.
    seen: Mutex<Option<i64>>,
}

impl News {
    pub fn new(options: SqliteConnectOptions) -> Self {
        Self { options, watching: Mutex::default(), seen: Mutex::default() }
    }

    /// The outbox is about to be read.
    pub async fn reading(&self) {
        let now = self.now().await;
        *self.seen.lock().await = now;
    }

    /// Returns `true` when something was committed since, or `false` after `at_most`. Where nothing can be asked it only
    /// waits.
    pub async fn wait(&self, at_most: Duration) -> bool {
        let end = Instant::now() + at_most;
        let seen = *self.seen.lock().await;
        while Instant::now() < end {
            let now = self.now().await;
            if now.is_some() && now != seen {
                // Said once, whether or not anything is read then.
                *self.seen.lock().await = now;
                return true;
            }
            tokio::time::sleep_until(end.min(Instant::now() + PAUSE)).await;
        }
        false
    }

    async fn now(&self) -> Option<i64> {
        let mut watching = self.watching.lock().await;
        if watching.is_none() {
            *watching = self.options.connect().await.ok();
        }
        let asked = sqlx::query_scalar("PRAGMA data_version").fetch_one(watching.as_mut()?).await;
        if asked.is_err()
            && let Some(broken) = watching.take()
        {
            broken.close().await.ok();
        }
        asked.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_nobody_reads_is_said_once() {
        let dir = tempfile::tempdir().unwrap();
        let options =
            SqliteConnectOptions::new().filename(dir.path().join("shop.db")).create_if_missing(true);
        let (news, long) = (News::new(options), Duration::from_millis(200));
        assert!(news.wait(long).await, "nothing is known yet");
        assert!(!news.wait(long).await, "nothing has come since");
    }
}
