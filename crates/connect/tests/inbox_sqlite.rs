//! The inbox on SQLite does what every inbox must.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use headwater_connect::sqlite::inbox::{SqliteInbox, install};
use headwater_testkit::suites::inbox::Factory;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{SqlitePool, Transaction};

struct OnSqlite {
    _dir: tempfile::TempDir,
    pool: SqlitePool,
}

impl OnSqlite {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("service.db");
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(Duration::from_secs(30));
        let pool = SqlitePoolOptions::new().max_connections(5).connect_with(options).await.unwrap();
        sqlx::query("CREATE TABLE effect (text TEXT NOT NULL)").execute(&pool).await.unwrap();
        assert!(install(&path).unwrap());
        assert!(!install(&path).unwrap(), "it is there");
        Self { _dir: dir, pool }
    }
}

impl Factory for OnSqlite {
    type Inbox = SqliteInbox;

    fn inbox(&self) -> SqliteInbox {
        SqliteInbox::new(self.pool.clone())
    }

    async fn effect(&self, transaction: &mut Transaction<'static, sqlx::Sqlite>, text: &str) {
        let insert = sqlx::query("INSERT INTO effect VALUES (?)").bind(text.to_owned());
        insert.execute(&mut **transaction).await.unwrap();
    }

    async fn effects(&self, text: &str) -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM effect WHERE text = ?").bind(text.to_owned());
        count.fetch_one(&self.pool).await.unwrap()
    }

    fn concurrent(&self) -> bool {
        false
    }
}

headwater_testkit::inbox_suite!(OnSqlite::new().await);

/// The statement of the clean, as it is planned: by the index, not by a scan.
#[tokio::test]
async fn cleaning_goes_by_an_index() {
    let factory = OnSqlite::new().await;
    let plan = "EXPLAIN QUERY PLAN DELETE FROM headwater_inbox WHERE consumer = ?1 AND event_id IN ( \
         SELECT event_id FROM headwater_inbox WHERE consumer = ?1 AND handled_at < ?2 ORDER BY handled_at LIMIT ?3)";
    let rows: Vec<(i64, i64, i64, String)> = sqlx::query_as(plan).fetch_all(&factory.pool).await.unwrap();
    let steps: Vec<&str> = rows.iter().map(|(.., step)| step.as_str()).collect();
    assert!(!steps.iter().any(|step| step.starts_with("SCAN")), "{steps:?}");
    assert!(steps.iter().any(|step| step.contains("headwater_inbox_handled_at")), "{steps:?}");
}
