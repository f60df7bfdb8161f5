//! Telling relays that there may be rows, beside the transactions that write them. Only a hint: relays look by
//! themselves too.
//!
//! NOTIFY in a transaction makes all transactions of the server that notify commit one after the other. So it is
//! sent after the commit, by itself, and one stands for all that came while the one before was on its way.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgListener;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::Names;
use crate::postgres::client::quote_ident;

/// The pause after something failed.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest name of a channel.
const LONGEST: usize = 63;

impl Names {
    /// The channel on which relays of this outbox listen; `None` where the name is too long for one.
    fn channel(&self) -> Option<String> {
        Some(format!("{}.{}", self.schema, self.name)).filter(|name| name.len() <= LONGEST)
    }
}

/// Tells relays, once a transaction has committed, that there may be rows for them.
#[derive(Debug, Clone)]
pub struct PostgresWaker {
    due: Arc<Notify>,
    _task: Arc<AbortOnDropHandle<()>>,
}

impl PostgresWaker {
    /// For the outbox `table`, over a connection of this pool now and then. Its task ends with the last clone.
    pub fn new(pool: PgPool, table: &str) -> Self {
        let due = Arc::new(Notify::new());
        let task = tokio::spawn(tell(pool, Names::new(table), Arc::clone(&due)));
        Self { due, _task: Arc::new(AbortOnDropHandle::new(task)) }
    }

    /// A transaction has committed. Returns at once, and costs no more however often it is called.
    pub fn wake(&self) {
        self.due.notify_one();
    }
}

async fn tell(pool: PgPool, names: Names, due: Arc<Notify>) {
    let Some(channel) = names.channel() else { return };
    let sql = format!("NOTIFY {}", quote_ident(&channel));
    loop {
        due.notified().await;
        if let Err(error) = sqlx::query(AssertSqlSafe(&*sql)).execute(&pool).await {
            tracing::debug!(%error, channel, "relays were not told");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Hears that there may be rows.
#[derive(Debug)]
pub(super) struct Heard {
    told: Arc<Notify>,
    _task: AbortOnDropHandle<()>,
}

impl Heard {
    pub fn start(pool: PgPool, names: &Names) -> Self {
        let told = Arc::new(Notify::new());
        let task = tokio::spawn(listen(pool, names.clone(), Arc::clone(&told)));
        Self { told, _task: AbortOnDropHandle::new(task) }
    }

    pub async fn told(&self) {
        self.told.notified().await;
    }
}

async fn listen(pool: PgPool, names: Names, told: Arc<Notify>) {
    let Some(channel) = names.channel() else { return };
    loop {
        let error = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.listen(&channel).await?;
            loop {
                // A connection that was lost is made again; what was sent meanwhile is not heard.
                listener.try_recv().await?;
                told.notify_one();
            }
        };
        let ended: Result<(), sqlx::Error> = error.await;
        if let Err(error) = ended {
            tracing::debug!(%error, channel, "not listening for rows");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
