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

    async fn say(&self, transaction: &mut Transaction<'static, sqlx::Sqlite>, sql: &'static str) {
        sqlx::Executor::execute(&mut **transaction, sqlx::raw_sql(sql)).await.unwrap();
    }

    async fn age(&self, consumer: &str, days: i64) {
        let sql = "UPDATE headwater_inbox SET handled_at = handled_at - ?2 * 86400000000 WHERE consumer = ?1";
        sqlx::query(sql).bind(consumer.to_owned()).bind(days).execute(&self.pool).await.unwrap();
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

/// An inbox whose transactions hold nothing until they commit, for handlers with effects elsewhere.
mod deferred {
    use headwater_connect::sqlite::inbox::{Deferred, DeferredInbox};
    use headwater_core::ports::{Inbox, Settlement, Taken};
    use headwater_testkit::suites::inbox::{Factory, tools};
    use sqlx::SqlitePool;
    use sqlx::sqlite::SqliteConnectOptions;

    struct OnDeferred {
        _dir: tempfile::TempDir,
        inbox: DeferredInbox,
        elsewhere: SqlitePool,
    }

    impl OnDeferred {
        async fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let options = SqliteConnectOptions::new().filename(dir.path().join("else.db"));
            let elsewhere = SqlitePool::connect_with(options.create_if_missing(true)).await.unwrap();
            sqlx::query("CREATE TABLE effect (text TEXT NOT NULL)").execute(&elsewhere).await.unwrap();
            let inbox = DeferredInbox::open(&dir.path().join("inbox.db")).await.unwrap();
            Self { _dir: dir, inbox, elsewhere }
        }
    }

    impl Factory for OnDeferred {
        type Inbox = DeferredInbox;

        fn inbox(&self) -> DeferredInbox {
            self.inbox.clone()
        }

        async fn effect(&self, _: &mut Deferred, text: &str) {
            let insert = sqlx::query("INSERT INTO effect VALUES (?)").bind(text.to_owned());
            insert.execute(&self.elsewhere).await.unwrap();
        }

        async fn age(&self, consumer: &str, days: i64) {
            let options = SqliteConnectOptions::new().filename(self._dir.path().join("inbox.db"));
            let pool = SqlitePool::connect_with(options).await.unwrap();
            let sql =
                "UPDATE headwater_inbox SET handled_at = handled_at - ?2 * 86400000000 WHERE consumer = ?1";
            sqlx::query(sql).bind(consumer.to_owned()).bind(days).execute(&pool).await.unwrap();
        }

        /// Its transactions are no database's.
        async fn say(&self, _: &mut Deferred, _: &'static str) {}

        async fn effects(&self, text: &str) -> i64 {
            let count =
                sqlx::query_scalar("SELECT count(*) FROM effect WHERE text = ?").bind(text.to_owned());
            count.fetch_one(&self.elsewhere).await.unwrap()
        }

        fn concurrent(&self) -> bool {
            true
        }
    }

    headwater_testkit::inbox_suite!(deferred OnDeferred::new().await);

    /// After an error it is not known whether a commit has happened.
    #[tokio::test]
    async fn what_was_taken_meanwhile_is_not_set_aside_again() {
        let factory = OnDeferred::new().await;
        let (inbox, names) = (factory.inbox(), tools::Names::new());
        let records = [1, 2].map(|n| names.record(n, Some("a")));
        let taken = tools::arrivals(&records);
        let (first, states) = inbox.begin(&names.consumer, &taken).await.unwrap();
        let (second, again) = inbox.begin(&names.consumer, &taken).await.unwrap();
        assert_eq!((states, again), (vec![Taken::New; 2], vec![Taken::New; 2]), "nothing is held");
        let aside = vec![tools::aside(&records[0], true), tools::aside(&records[1], false)];
        let settlement = Settlement { aside, ..Settlement::default() };
        inbox.commit(first, &names.consumer, &settlement).await.unwrap();
        inbox.commit(second, &names.consumer, &settlement).await.unwrap();
        let count = headwater_core::ports::Shelf::count(&inbox, &names.consumer).await.unwrap();
        assert_eq!((count.parked, count.waiting), (1, 1));
        let (dropped, _) =
            inbox.begin(&names.consumer, &[names.record(3, None)].map(|r| tools::arrival(&r))).await.unwrap();
        drop(dropped);
        assert_eq!(tools::states(&inbox, &names.consumer, &[names.record(3, None)]).await, [Taken::New]);
    }
}
