//! Writing events in a service's own transaction.

use async_trait::async_trait;
use headwater_core::Result;
use headwater_core::ports::{NewEvent, OutboxWriter};
use sqlx::types::Uuid;
use sqlx::{Postgres, Transaction};

use super::layout::LOCKS;
use super::{Names, failed};
use crate::outbox;

/// An outbox table of a PostgreSQL database.
#[derive(Debug, Clone)]
pub struct PostgresOutbox {
    names: Names,
    one: String,
    lock: String,
    many: String,
}

impl PostgresOutbox {
    /// The outbox that `headwater init` made under this name: `schema.name`, or a name in `public`.
    pub fn new(table: &str) -> Self {
        let names = Names::new(table);
        let outbox = names.outbox();
        let columns = "id, stream, type, key, payload, headers, version";
        Self {
            // The lock is taken before the row's sequence is drawn: the subquery, which is volatile, is not
            // pulled up, and what the table adds by default is computed above it.
            one: format!(
                "INSERT INTO {outbox} ({columns}) SELECT $1, $2, $3, $4, $5::json, $6::json, $7 \
                 FROM (SELECT pg_advisory_xact_lock({LOCKS}, hashtext($4))) AS lock"
            ),
            lock: format!(
                "SELECT count(pg_advisory_xact_lock({LOCKS}, slot)) FROM \
                 (SELECT DISTINCT hashtext(key) AS slot FROM unnest($1::text[]) AS key \
                  WHERE key IS NOT NULL ORDER BY slot OFFSET 0) AS slots"
            ),
            many: format!(
                "INSERT INTO {outbox} ({columns}) SELECT id, stream, type, key, payload::json, headers::json, version \
                 FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::int[]) \
                 WITH ORDINALITY AS event (id, stream, type, key, payload, headers, version, at) ORDER BY at"
            ),
            names,
        }
    }

    async fn insert_one(
        &self,
        transaction: &mut Transaction<'_, Postgres>,
        event: &NewEvent,
    ) -> sqlx::Result<()> {
        sqlx::query(sqlx::AssertSqlSafe(self.one.as_str()))
            .bind(Uuid::from_bytes(*event.id.as_bytes()))
            .bind(&event.stream)
            .bind(&event.kind)
            .bind(event.key.as_deref())
            .bind(event.payload.as_deref())
            .bind(outbox::headers(event))
            .bind(version(event))
            .execute(&mut **transaction)
            .await
            .map(drop)
    }

    async fn insert_many(
        &self,
        transaction: &mut Transaction<'_, Postgres>,
        events: &[NewEvent],
    ) -> sqlx::Result<()> {
        let keys: Vec<Option<&str>> = events.iter().map(|event| event.key.as_deref()).collect();
        sqlx::query(sqlx::AssertSqlSafe(self.lock.as_str())).bind(&keys).execute(&mut **transaction).await?;
        let texts = |of: fn(&NewEvent) -> &str| events.iter().map(of).collect::<Vec<_>>();
        sqlx::query(sqlx::AssertSqlSafe(self.many.as_str()))
            .bind(events.iter().map(|event| Uuid::from_bytes(*event.id.as_bytes())).collect::<Vec<_>>())
            .bind(texts(|event| &event.stream))
            .bind(texts(|event| &event.kind))
            .bind(&keys)
            .bind(events.iter().map(|event| event.payload.as_deref()).collect::<Vec<_>>())
            .bind(events.iter().map(outbox::headers).collect::<Vec<_>>())
            .bind(events.iter().map(version).collect::<Vec<_>>())
            .execute(&mut **transaction)
            .await
            .map(drop)
    }
}

#[async_trait]
impl OutboxWriter for PostgresOutbox {
    type Transaction<'t> = Transaction<'t, Postgres>;

    async fn insert(&self, transaction: &mut Self::Transaction<'_>, events: &[NewEvent]) -> Result<()> {
        let done = match events {
            [] => Ok(()),
            [event] => self.insert_one(transaction, event).await,
            events => self.insert_many(transaction, events).await,
        };
        done.map_err(|error| failed(error, "writing events to the outbox", &self.names))
    }
}

fn version(event: &NewEvent) -> i32 {
    i32::try_from(event.version).unwrap_or(i32::MAX)
}
