//! Writing events in a service's own transaction.

use async_trait::async_trait;
use headwater_core::Result;
use headwater_core::ports::{NewEvent, OutboxWriter};
use sqlx::{AssertSqlSafe, Sqlite, Transaction};

use super::{Names, failed};
use crate::outbox;

/// An outbox table of a SQLite database.
#[derive(Debug, Clone)]
pub struct SqliteOutbox {
    names: Names,
    insert: String,
}

impl SqliteOutbox {
    /// The outbox that `headwater init` made under this name.
    pub fn new(table: &str) -> Self {
        let names = Names::new(table);
        let insert = format!(
            "INSERT INTO {} (id, stream, type, key, payload, headers, version) VALUES (?, ?, ?, ?, ?, ?, ?)",
            names.outbox()
        );
        Self { names, insert }
    }

    async fn write(&self, transaction: &mut Transaction<'_, Sqlite>, event: &NewEvent) -> sqlx::Result<()> {
        sqlx::query(AssertSqlSafe(&*self.insert))
            .bind(event.id.to_string())
            .bind(event.stream.clone())
            .bind(event.kind.clone())
            .bind(event.key.clone())
            .bind(event.payload.clone())
            .bind(outbox::headers(event))
            .bind(event.version)
            .execute(&mut **transaction)
            .await
            .map(drop)
    }
}

#[async_trait]
impl OutboxWriter for SqliteOutbox {
    type Transaction<'t> = Transaction<'t, Sqlite>;

    async fn insert(&self, transaction: &mut Self::Transaction<'_>, events: &[NewEvent]) -> Result<()> {
        for event in events {
            let done = self.write(transaction, event).await;
            failed(done, "writing events to the outbox", &self.names)?;
        }
        Ok(())
    }
}
