//! The inbox on PostgreSQL does what every inbox must, and never reads a whole table.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use headwater_connect::postgres::inbox::{PostgresInbox, install, script};
use headwater_connect::postgres::to_mend;
use headwater_connect::postgres::url::ConnectOptions;
use headwater_core::ports::{Backlog, Due, Inbox, Settlement, Taken};
use headwater_testkit::servers::{Database, Postgres, Proxy};
use headwater_testkit::suites::inbox::{Factory, tools};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Executor, PgPool, Transaction};

struct OnPostgres {
    pool: PgPool,
    database: Database,
}

impl OnPostgres {
    async fn new() -> Self {
        let database = Postgres::shared().await.unwrap().create_database().await.unwrap();
        let url = ConnectOptions::parse(database.url()).unwrap();
        assert!(install(&url, "public").await.unwrap());
        assert!(!install(&url, "public").await.unwrap(), "it is there");
        database.execute("CREATE TABLE effect (text text NOT NULL)").await.unwrap();
        let pool = PgPoolOptions::new().max_connections(5).connect(database.url()).await.unwrap();
        Self { pool, database }
    }
}

impl Factory for OnPostgres {
    type Inbox = PostgresInbox;

    fn inbox(&self) -> PostgresInbox {
        PostgresInbox::new(self.pool.clone())
    }

    async fn effect(&self, transaction: &mut Transaction<'static, sqlx::Postgres>, text: &str) {
        let insert = sqlx::query("INSERT INTO effect VALUES ($1)").bind(text);
        insert.execute(&mut **transaction).await.unwrap();
    }

    async fn say(&self, transaction: &mut Transaction<'static, sqlx::Postgres>, sql: &'static str) {
        sqlx::Executor::execute(&mut **transaction, sqlx::raw_sql(sql)).await.unwrap();
    }

    async fn age(&self, consumer: &str, days: i64) {
        let sql =
            "UPDATE headwater_inbox SET handled_at = handled_at - $2 * interval '1 day' WHERE consumer = $1";
        sqlx::query(sql).bind(consumer).bind(days).execute(&self.pool).await.unwrap();
    }

    async fn effects(&self, text: &str) -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM effect WHERE text = $1").bind(text);
        count.fetch_one(&self.pool).await.unwrap()
    }

    fn concurrent(&self) -> bool {
        true
    }
}

headwater_testkit::inbox_suite!(OnPostgres::new().await);

/// A transaction that nobody waits for any more is not in the next one's way: that may be the service's own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_is_given_up_while_it_begins_is_rolled_back() {
    let factory = OnPostgres::new().await;
    let proxy = Proxy::start(("127.0.0.1", Postgres::shared().await.unwrap().port())).await.unwrap();
    let options = PgPoolOptions::new().max_connections(1).test_before_acquire(false);
    let pool = options.connect(&factory.database.url_through(&proxy)).await.unwrap();
    let inbox = PostgresInbox::new(pool.clone());
    proxy.hold();
    let mut begun = Box::pin(inbox.begin("c", &[]));
    // It has the pool's one connection then, and its BEGIN is on the way.
    while pool.num_idle() > 0 {
        assert!(futures::poll!(&mut begun).is_pending());
        tokio::task::yield_now().await;
    }
    drop(begun);
    proxy.release();
    let mut transactions = Vec::new();
    for _ in 0..2 {
        let ask = sqlx::query_scalar::<_, String>("SELECT pg_current_xact_id()::text");
        transactions.push(tools::within(ask.fetch_one(&pool)).await.unwrap());
    }
    assert_ne!(transactions[0], transactions[1], "each statement is a transaction of its own");
}

/// The index of an earlier version took no long key, and a question for a key does not go by it. Consumers set events
/// aside while it is mended.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_an_earlier_version_is_found_and_mended() {
    let factory = OnPostgres::new().await;
    let url = ConnectOptions::parse(factory.database.url()).unwrap();
    let park = |key: &str| {
        format!(
            "INSERT INTO headwater_parked (consumer, stream, partition, \"offset\", event_id, key, type, headers, time, state) \
             VALUES ('c', 's', 0, 0, gen_random_uuid(), {key}, 't', '[]', now(), 'parked')"
        )
    };
    assert_eq!(to_mend(&url, None).await.unwrap(), []);
    let earlier = "DROP INDEX headwater_parked_key; \
         CREATE INDEX headwater_parked_key ON headwater_parked (consumer, stream, key, seq)";
    factory.database.execute(earlier).await.unwrap();
    let long = "(SELECT string_agg(sha256(n::text::bytea), NULL) FROM generate_series(1, 200) AS n)";
    assert!(factory.database.execute(&park(long)).await.is_err());
    let found = to_mend(&url, None).await.unwrap();
    assert!(found.len() == 1 && found[0].message.contains("headwater_parked_key"), "{found:?}");
    let (_, steps) = found[0].hint.as_ref().unwrap().split_once(":\n").unwrap();
    for step in steps.split_terminator(";\n").map(str::to_owned) {
        let mut begun = factory.pool.begin().await.unwrap();
        begun.execute(AssertSqlSafe(park("'k'"))).await.unwrap();
        let pool = factory.pool.clone();
        let running = tokio::spawn(async move { pool.execute(AssertSqlSafe(step)).await });
        let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() \
             AND wait_event_type = 'Lock'";
        let somebody_waits = async || -> bool {
            tools::within(sqlx::query_scalar(waits).fetch_one(&factory.pool)).await.unwrap()
        };
        while !running.is_finished() && !somebody_waits().await {}
        factory.database.execute(&format!("SET lock_timeout = '5s'; {}", park("'k'"))).await.unwrap();
        begun.commit().await.unwrap();
        running.await.unwrap().unwrap();
    }
    assert_eq!(to_mend(&url, None).await.unwrap(), []);
    factory.database.execute(&park(long)).await.unwrap();
}

/// Tables that are missing are told apart from a server that is away.
#[tokio::test]
async fn missing_tables_are_named_with_what_to_do() {
    let database = Postgres::shared().await.unwrap().create_database().await.unwrap();
    let inbox = PostgresInbox::new(PgPool::connect(database.url()).await.unwrap());
    let error = inbox.cursor("c", "s", 0).await.unwrap_err();
    assert!(!error.is_retryable(), "{error}");
    assert!(error.hint_text().unwrap().contains("headwater init"), "{error}");
    database.execute(&format!("CREATE SCHEMA app; {}", script("app"))).await.unwrap();
    let inbox = PostgresInbox::in_schema(PgPool::connect(database.url()).await.unwrap(), "app");
    assert_eq!(inbox.cursor("c", "s", 0).await.unwrap(), None);
}

/// PostgreSQL answers the COMMIT of a transaction in which a statement failed with a rollback, and no error.
#[tokio::test]
async fn a_failure_that_a_handler_kept_to_itself_does_not_commit() {
    let factory = OnPostgres::new().await;
    let (inbox, names) = (factory.inbox(), tools::Names::new());
    let records = [names.record(1, Some("a"))];
    for settlement in [Settlement::default(), tools::marks(&names, 2)] {
        let (mut transaction, _) = inbox.begin(&names.consumer, &tools::arrivals(&records)).await.unwrap();
        let failed = sqlx::query("SELECT 1 / 0").execute(&mut *transaction).await;
        assert!(failed.is_err());
        let error = inbox.commit(transaction, &names.consumer, &settlement).await.unwrap_err();
        assert!(!error.is_retryable(), "it is the event's: {error}");
        assert_eq!(tools::states(&inbox, &names.consumer, &records).await, [Taken::New]);
    }
}

/// A member that stands still in the middle of a handler does not hold up for ever who has its partitions now.
#[tokio::test]
async fn a_transaction_that_nobody_goes_on_with_is_ended() {
    let factory = OnPostgres::new().await;
    let (inbox, names) = (factory.inbox().bounded(Duration::from_millis(10)), tools::Names::new());
    let records = [names.record(1, Some("a"))];
    let (stands, _) = inbox.begin(&names.consumer, &tools::arrivals(&records)).await.unwrap();
    assert_eq!(tools::states(&factory.inbox(), &names.consumer, &records).await, [Taken::New]);
    let error = inbox.commit(stands, &names.consumer, &Settlement::default()).await.unwrap_err();
    assert!(error.is_retryable(), "it is no fault of the event: {error}");
}

#[tokio::test]
async fn a_bound_of_the_services_own_stays_where_it_is_shorter() {
    let factory = OnPostgres::new().await;
    let show = "SELECT current_setting('statement_timeout') || ' ' || \
         current_setting('idle_in_transaction_session_timeout')";
    let pool = PgPoolOptions::new().max_connections(1).connect(factory.database.url()).await.unwrap();
    pool.execute("SET statement_timeout = '1min'; SET idle_in_transaction_session_timeout = '2h'")
        .await
        .unwrap();
    for (handler, found) in [(29, "30s 30s"), (89, "1min 90s"), (7199, "1min 2h")] {
        let inbox = PostgresInbox::new(pool.clone()).bounded(Duration::from_secs(handler));
        let (mut transaction, _) = inbox.begin("c", &[]).await.unwrap();
        let bounds: String = sqlx::query_scalar(show).fetch_one(&mut *transaction).await.unwrap();
        assert_eq!(bounds, found);
        inbox.rollback(transaction).await.unwrap();
    }
    let own: String = sqlx::query_scalar(show).fetch_one(&pool).await.unwrap();
    assert_eq!(own, "1min 2h", "they are the transaction's");
    // In every unit that the server shows.
    for (timeout, found) in [("1500ms", "1500ms 2h"), ("3d", "3d 2h"), ("0", "10d 2h")] {
        pool.execute(sqlx::AssertSqlSafe(format!("SET statement_timeout = '{timeout}'"))).await.unwrap();
        let inbox = PostgresInbox::new(pool.clone()).bounded(Duration::from_secs(863_999));
        let (mut transaction, _) = inbox.begin("c", &[]).await.unwrap();
        let bounds: String = sqlx::query_scalar(show).fetch_one(&mut *transaction).await.unwrap();
        assert_eq!(bounds, found);
        inbox.rollback(transaction).await.unwrap();
    }
}

/// Sequential scans of a table so far; what this session has counted is written first.
async fn scans(factory: &OnPostgres, table: &str) -> i64 {
    let mut connection = factory.database.connect().await.unwrap();
    let sql = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = $1";
    sqlx::query_scalar(sql).bind(table).fetch_one(&mut connection).await.unwrap()
}

/// Everything that happens all the time goes by an index, whatever the tables hold.
#[tokio::test]
async fn nothing_reads_a_whole_table() {
    let factory = OnPostgres::new().await;
    factory
        .database
        .execute(
            "INSERT INTO headwater_inbox SELECT 'c', gen_random_uuid(), now() - n * interval '1 second' \
                 FROM generate_series(1, 100000) AS n;
             INSERT INTO headwater_parked (consumer, stream, partition, \"offset\", event_id, key, type, headers, time, state) \
                 SELECT 'c', 's', 0, n, gen_random_uuid(), convert_to('key-' || n / 1000, 'UTF8'), 't', '[]', now(), \
                     CASE n % 1000 WHEN 0 THEN 'parked' ELSE 'waiting' END \
                 FROM generate_series(0, 99999) AS n;
             INSERT INTO headwater_cursor SELECT 'c', 's' || n, 0, 0 FROM generate_series(1, 2000) AS n",
        )
        .await
        .unwrap();
    factory.database.execute("VACUUM ANALYZE").await.unwrap();
    let tables = ["headwater_inbox", "headwater_parked", "headwater_cursor"];
    let mut before = Vec::new();
    for table in tables {
        before.push(scans(&factory, table).await);
    }
    let (inbox, names) = (factory.inbox(), tools::Names::new());
    // More than five times each: by then the server may have chosen a plan for good.
    for n in 0..8 {
        let records: Vec<_> = (n * 100..n * 100 + 100).map(|n| names.record(n, Some("key-1"))).collect();
        let (transaction, taken) = inbox.begin("c", &tools::arrivals(&records)).await.unwrap();
        assert_eq!(taken, [Taken::New; 100]);
        inbox.commit(transaction, "c", &tools::marks(&names, n + 1)).await.unwrap();
        // A row more grows old each second.
        let cleaned = inbox.clean("c", Duration::from_secs(99_000)).await.unwrap();
        assert!(if n == 0 { cleaned == 1000 } else { cleaned < 1000 }, "{cleaned}");
        assert_eq!(inbox.due("c", 10).await.unwrap(), []);
        assert_eq!(inbox.cursor("c", &names.stream, 2).await.unwrap(), Some(n + 1));
        let due = Due { stream: Arc::from("s"), key: Some(Bytes::from_static(b"key-1")), sequence: 0 };
        assert!(inbox.head("c", &due).await.unwrap().is_none(), "it is parked");
    }
    let (transaction, _) = inbox.begin("c", &[]).await.unwrap();
    inbox.commit(transaction, "c", &Settlement::default()).await.unwrap();
    // A session that ends has written what it counted.
    factory.pool.close().await;
    for (table, before) in tables.iter().zip(before) {
        assert_eq!(scans(&factory, table).await, before, "{table}");
    }
}
