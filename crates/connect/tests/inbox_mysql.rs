//! The inbox on MySQL and MariaDB does what every inbox must, and never reads a whole table.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use headwater_connect::mysql::inbox::{MySqlInbox, SCRIPT, install};
use headwater_connect::mysql::url::ConnectOptions;
use headwater_core::ports::{Backlog, Due, Inbox, Settlement, Shelf, ShelfFilter, Taken};
use headwater_testkit::servers::{MySql, MySqlDatabase};
use headwater_testkit::suites::inbox::{Factory, tools};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::{Executor, MySqlPool, Row, Transaction};

struct OnMySql {
    pool: MySqlPool,
    database: MySqlDatabase,
}

impl OnMySql {
    async fn new() -> Self {
        Self::on(MySql::shared().await.unwrap()).await
    }

    async fn on(server: &MySql) -> Self {
        let database = server.create_database().await.unwrap();
        let url = ConnectOptions::parse(database.url()).unwrap();
        assert!(install(&url).await.unwrap());
        assert!(!install(&url).await.unwrap(), "it is there");
        server.client(&database, SCRIPT).unwrap();
        database.execute("CREATE TABLE effect (text varchar(255) NOT NULL)").await.unwrap();
        let pool = MySqlPoolOptions::new().max_connections(5).connect(database.url()).await.unwrap();
        Self { pool, database }
    }
}

impl Factory for OnMySql {
    type Inbox = MySqlInbox;

    fn inbox(&self) -> MySqlInbox {
        MySqlInbox::new(self.pool.clone())
    }

    async fn effect(&self, transaction: &mut Transaction<'static, sqlx::MySql>, text: &str) {
        let insert = sqlx::query("INSERT INTO effect VALUES (?)").bind(text);
        insert.execute(&mut **transaction).await.unwrap();
    }

    async fn say(&self, transaction: &mut Transaction<'static, sqlx::MySql>, sql: &'static str) {
        sqlx::Executor::execute(&mut **transaction, sqlx::raw_sql(sql)).await.unwrap();
    }

    async fn age(&self, consumer: &str, days: i64) {
        let sql = "UPDATE headwater_inbox SET handled_at = handled_at - INTERVAL ? DAY WHERE consumer = ?";
        sqlx::query(sql).bind(days).bind(consumer).execute(&self.pool).await.unwrap();
    }

    async fn effects(&self, text: &str) -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM effect WHERE text = ?").bind(text);
        count.fetch_one(&self.pool).await.unwrap()
    }

    fn concurrent(&self) -> bool {
        true
    }
}

headwater_testkit::inbox_suite!(OnMySql::new().await);

/// Tables that are missing are told apart from a server that is away.
#[tokio::test]
async fn missing_tables_are_named_with_what_to_do() {
    let database = MySql::shared().await.unwrap().create_database().await.unwrap();
    let inbox = MySqlInbox::new(MySqlPool::connect(database.url()).await.unwrap());
    let error = inbox.cursor("c", "s", 0).await.unwrap_err();
    assert!(!error.is_retryable(), "{error}");
    assert!(error.hint_text().unwrap().contains("headwater init"), "{error}");
}

/// The victim of a deadlock is rolled back whole, and the session goes on outside any transaction.
#[tokio::test]
async fn a_deadlock_that_a_handler_kept_to_itself_does_not_commit() {
    let factory = OnMySql::new().await;
    factory.database.execute("CREATE TABLE t (id int primary key, n int)").await.unwrap();
    factory.database.execute("INSERT INTO t VALUES (1, 0), (2, 0)").await.unwrap();
    let (inbox, names) = (factory.inbox(), tools::Names::new());
    let records = [names.record(1, Some("a"))];
    let mut other = factory.database.connect().await.unwrap();
    // The server ends the one that has written less: the consumer's.
    let begin = "START TRANSACTION; INSERT INTO effect SELECT 'x' FROM information_schema.columns; \
         UPDATE t SET n = 1 WHERE id = 2";
    other.execute(begin).await.unwrap();
    let (mut transaction, _) = inbox.begin(&names.consumer, &tools::arrivals(&records)).await.unwrap();
    transaction.execute("UPDATE t SET n = 2 WHERE id = 1").await.unwrap();
    let waits = tokio::spawn(async move { other.execute("UPDATE t SET n = 1 WHERE id = 1; COMMIT").await });
    let failed = transaction.execute("UPDATE t SET n = 2 WHERE id = 2").await;
    assert!(failed.is_err(), "a deadlock");
    waits.await.unwrap().unwrap();
    let error = inbox.commit(transaction, &names.consumer, &tools::marks(&names, 2)).await.unwrap_err();
    assert!(error.to_string().contains("ended the transaction"), "{error}");
    assert_eq!(tools::states(&inbox, &names.consumer, &records).await, [Taken::New]);
    assert_eq!(
        inbox.cursor(&names.consumer, &names.stream, 2).await.unwrap(),
        None,
        "it stayed where it was"
    );
}

/// What bounds a session, that both servers know.
const BOUNDS: &str = "SELECT CONCAT_WS(' ', @@SESSION.innodb_lock_wait_timeout, @@SESSION.lock_wait_timeout, \
     @@SESSION.wait_timeout)";

/// The sessions are the service's: they are bounded while a handler has them.
#[tokio::test]
async fn a_bound_of_the_services_own_comes_back() {
    let factory = OnMySql::new().await;
    let pool = MySqlPoolOptions::new().max_connections(1).connect(factory.database.url()).await.unwrap();
    let own = "SET SESSION innodb_lock_wait_timeout = 7, lock_wait_timeout = 70, wait_timeout = 700 \
         /*M!100600 , max_statement_time = 0.25 */";
    pool.execute(own).await.unwrap();
    let short =
        "SELECT CAST(COALESCE(NULL /*M!100600 , @@SESSION.max_statement_time */, 0.25) AS CHAR) LIKE '0.25%'";
    for (handler, found) in [(5, "6 6 6"), (49, "7 50 50"), (5, "6 6 6"), (1000, "7 70 700")] {
        let inbox = MySqlInbox::new(pool.clone()).bounded(Duration::from_secs(handler));
        for commits in [true, false] {
            let (mut transaction, _) = inbox.begin("c", &[]).await.unwrap();
            let bounds: String = sqlx::query_scalar(BOUNDS).fetch_one(&mut *transaction).await.unwrap();
            assert_eq!(bounds, found);
            match commits {
                true => inbox.commit(transaction, "c", &Settlement::default()).await.unwrap(),
                false => inbox.rollback(transaction).await.unwrap(),
            }
            let own: String = sqlx::query_scalar(BOUNDS).fetch_one(&pool).await.unwrap();
            assert_eq!(own, "7 70 700");
            assert!(sqlx::query_scalar::<_, bool>(short).fetch_one(&pool).await.unwrap());
        }
        // Cut off, it is known all the same what it was.
        drop(inbox.begin("c", &[]).await.unwrap());
    }
}

/// A pool of one connection, and how long its sessions wait for others.
async fn alone(factory: &OnMySql) -> (MySqlPool, String) {
    let pool = MySqlPoolOptions::new().max_connections(1).connect(factory.database.url()).await.unwrap();
    let own = sqlx::query_scalar(BOUNDS).fetch_one(&pool).await.unwrap();
    (pool, own)
}

/// A statement of a handler that was given up has an answer that nobody has read yet.
#[tokio::test]
async fn a_session_is_as_it_was_after_a_statement_that_was_cut_off() {
    let factory = OnMySql::new().await;
    factory.database.execute("CREATE TABLE t (id int primary key); INSERT INTO t VALUES (1)").await.unwrap();
    let mut holder = factory.database.connect().await.unwrap();
    holder.execute("START TRANSACTION; UPDATE t SET id = 2").await.unwrap();
    let (pool, own) = alone(&factory).await;
    let inbox = MySqlInbox::new(pool.clone()).bounded(Duration::from_millis(10));
    for commits in [false, true] {
        let (mut transaction, _) = inbox.begin("c", &[]).await.unwrap();
        let waits = transaction.execute("UPDATE t SET id = 3");
        assert!(
            tokio::time::timeout(Duration::from_millis(100), waits).await.is_err(),
            "it waits for a lock"
        );
        match commits {
            true => assert!(inbox.commit(transaction, "c", &Settlement::default()).await.is_err()),
            false => inbox.rollback(transaction).await.unwrap(),
        }
        let now: String = sqlx::query_scalar(BOUNDS).fetch_one(&pool).await.unwrap();
        assert_eq!(now, own);
    }
}

/// Another member has the event, or what is set aside cannot be read.
#[tokio::test]
async fn a_session_is_as_it_was_after_events_that_could_not_be_taken() {
    let factory = OnMySql::new().await;
    let (pool, own) = alone(&factory).await;
    let inbox = MySqlInbox::new(pool.clone()).bounded(Duration::from_millis(10));
    let names = tools::Names::new();
    let (taken, aside) = ([names.record(1, Some("a"))], names.record(2, Some("b")));
    tools::set_aside(&factory.inbox(), &names, &[(&aside, true)]).await;
    factory.database.execute("UPDATE headwater_parked SET state = 'waiting', headers = '{}'").await.unwrap();
    let (other, _) = factory.inbox().begin(&names.consumer, &tools::arrivals(&taken)).await.unwrap();
    assert!(inbox.begin(&names.consumer, &tools::arrivals(&taken)).await.is_err(), "another has it");
    let now: String = sqlx::query_scalar(BOUNDS).fetch_one(&pool).await.unwrap();
    assert_eq!(now, own);
    factory.inbox().rollback(other).await.unwrap();
    let due = Due { stream: names.stream, key: aside.event.key, sequence: 0 };
    assert!(inbox.head(&names.consumer, &due).await.is_err(), "these are no headers");
    let now: String = sqlx::query_scalar(BOUNDS).fetch_one(&pool).await.unwrap();
    assert_eq!(now, own);
}

/// A member that stands still in the middle of a handler does not hold up for ever who has its partitions now.
#[tokio::test]
async fn a_transaction_that_nobody_goes_on_with_is_ended() {
    let factory = OnMySql::new().await;
    let (inbox, names) = (factory.inbox().bounded(Duration::from_millis(10)), tools::Names::new());
    let records = [names.record(1, Some("a"))];
    let (stands, _) = inbox.begin(&names.consumer, &tools::arrivals(&records)).await.unwrap();
    assert_eq!(tools::states(&factory.inbox(), &names.consumer, &records).await, [Taken::New]);
    let error = inbox.commit(stands, &names.consumer, &Settlement::default()).await.unwrap_err();
    assert!(error.is_retryable(), "it is no fault of the event: {error}");
}

/// An event is set aside, and that is not committed yet.
#[tokio::test]
async fn what_is_let_go_waits_for_nothing_that_is_being_set_aside() {
    let factory = OnMySql::new().await;
    let (inbox, names) = (factory.inbox(), tools::Names::new());
    let records = [names.record(1, Some("a")), names.record(2, Some("b"))];
    tools::set_aside(&inbox, &names, &[(&records[0], true)]).await;
    let mut other = factory.database.connect().await.unwrap();
    let held = "START TRANSACTION; INSERT INTO headwater_parked (consumer, stream, `partition`, `offset`, event_id, type, \
         headers, time, state, parked_at) VALUES ('x', 's', 0, 0, UNHEX(REPEAT('78', 16)), 't', '[]', 0, 'parked', now())";
    other.execute(held).await.unwrap();
    let all = ShelfFilter::default();
    let retry = Shelf::retry(&inbox, &all);
    let done = tokio::time::timeout(Duration::from_secs(20), retry).await;
    assert_eq!(done.expect("it waits for a lock").unwrap(), 1);
}

/// Everything that happens all the time goes by an index, whatever the tables hold.
#[tokio::test]
async fn nothing_reads_a_whole_table() {
    let server = MySql::start().await.unwrap();
    let factory = OnMySql::on(&server).await;
    let numbers = "CREATE TABLE d (n int); INSERT INTO d VALUES (0),(1),(2),(3),(4),(5),(6),(7),(8),(9); \
         CREATE TABLE n AS SELECT a.n + 10 * b.n + 100 * c.n + 1000 * d.n + 10000 * e.n AS n FROM d a, d b, d c, d, d e";
    factory.database.execute(numbers).await.unwrap();
    let fill = "INSERT INTO headwater_inbox SELECT 'c', UNHEX(MD5(n)), UTC_TIMESTAMP(6) - INTERVAL n SECOND, 0 FROM n; \
         INSERT INTO headwater_parked (consumer, stream, `partition`, `offset`, event_id, `key`, key_hash, type, headers, \
             time, state, parked_at) \
         SELECT 'c', 's', 0, n, UNHEX(MD5(n)), CONCAT('key-', n DIV 1000), UNHEX(SHA2(CONCAT('key-', n DIV 1000), 256)), \
             't', '[]', 0, IF(n % 1000 = 0, 'parked', 'waiting'), UTC_TIMESTAMP(6) FROM n ORDER BY n; \
         ANALYZE TABLE headwater_inbox, headwater_parked";
    let fill = fill.replace("UNHEX(MD5(n))", "UNHEX(LPAD(HEX(n), 32, '0'))");
    factory.database.execute(&fill).await.unwrap();
    let read = async || -> i64 {
        let sql = "show global status where variable_name in ('Handler_read_rnd_next', 'Handler_read_next', \
             'Handler_read_key', 'Handler_read_prev', 'Handler_read_first')";
        let rows = factory.pool.fetch_all(sql).await.unwrap();
        rows.iter().map(|row| row.get::<String, _>(1).parse::<i64>().unwrap()).sum()
    };
    let before = read().await;
    let (inbox, names) = (factory.inbox(), tools::Names::new());
    for n in 0..4 {
        let records: Vec<_> = (n * 100..n * 100 + 100).map(|n| names.record(n, Some("key-1"))).collect();
        let (transaction, taken) = inbox.begin("c", &tools::arrivals(&records)).await.unwrap();
        assert_eq!(taken, [Taken::New; 100]);
        inbox.commit(transaction, "c", &tools::marks(&names, n + 1)).await.unwrap();
        let cleaned = inbox.clean("c", Duration::from_secs(99_000)).await.unwrap();
        assert!(if n < 2 { cleaned == 500 } else { cleaned < 500 }, "{cleaned}");
        let due = Due { stream: Arc::from("s"), key: Some(Bytes::from_static(b"key-1")), sequence: 0 };
        assert!(inbox.head("c", &due).await.unwrap().is_none(), "it is parked");
    }
    let (transaction, _) = inbox.begin("c", &[]).await.unwrap();
    inbox.commit(transaction, "c", &Settlement::default()).await.unwrap();
    let walked = read().await - before;
    // From key to key or all of its index: that is the server's choice, by what it knows of the table.
    assert_eq!(inbox.due("c", 10).await.unwrap(), []);
    assert!(walked < 20_000, "{walked} rows were read: some statement walks a table");
}
