//! A service on MySQL or MariaDB: it consumes, and publishes about what it did in the same transaction.

use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater::connect::mysql::inbox::{MySqlInbox, SCRIPT};
use headwater::connect::mysql::outbox::{MySqlOutbox, install};
use headwater::connect::mysql::url::ConnectOptions;
use headwater::{Event, Handled, Handler, Outbox, Received, StopToken};
use headwater_testkit::servers::MySql;
use sqlx::{Executor, MySqlPool, Transaction};

use super::common::{PATIENCE, Service, builder};

async fn forward(tx: &mut Transaction<'static, sqlx::MySql>, event: &Received) -> Handled {
    let (key, n) = (event.key().map(str::to_owned), event.json::<i64>()?);
    let insert = sqlx::query("INSERT INTO effect (`key`, n) VALUES (?, ?)");
    insert.bind(&key).bind(n).execute(&mut **tx).await?;
    let forward = Event::new("handled", "Handled").key(key.unwrap_or_default()).payload(&n);
    Outbox::new(MySqlOutbox::new("outbox")).publish(tx, forward).await?;
    Ok(())
}

/// The statement that is its for the key `bad`.
struct Says(&'static str);

impl Handler<Transaction<'static, sqlx::MySql>> for Says {
    async fn handle(&self, tx: &mut Transaction<'static, sqlx::MySql>, event: &Received) -> Handled {
        let says = if event.key() == Some("bad") { self.0 } else { "INSERT INTO effect VALUES (1)" };
        tx.execute(says).await?;
        Ok(())
    }
}

async fn is_given_up(statement: &'static str) {
    let mut service = Service::new().await;
    let database = MySql::shared().await.unwrap().create_database().await.unwrap();
    database.execute(SCRIPT).await.unwrap();
    let tables = "CREATE TABLE effect (n int); CREATE TABLE locked (id int PRIMARY KEY); INSERT INTO locked VALUES (1)";
    database.execute(tables).await.unwrap();
    let mut holder = database.connect().await.unwrap();
    holder.execute("START TRANSACTION; SELECT * FROM locked FOR UPDATE").await.unwrap();
    let pool = MySqlPool::connect(database.url()).await.unwrap();
    let stop = StopToken::new();
    let builder = builder(Arc::clone(&service.bus), &service.stream, service.inbox());
    let builder = builder.attempts(2).concurrency(1).handler_timeout(Duration::from_millis(300));
    let consumer = builder.inbox(MySqlInbox::new(pool.clone())).build().unwrap();
    let running = tokio::spawn(consumer.run(Says(statement), stop.clone()));
    service.publish(&["a", "bad", "b"], 3).await;
    // MariaDB 10.6 takes numbers that are put together for bytes.
    let count = "SELECT CONVERT(CONCAT_WS(' ', (SELECT COUNT(*) FROM effect), (SELECT COUNT(*) FROM headwater_parked), \
         (SELECT COUNT(*) FROM information_schema.processlist WHERE db = DATABASE() AND info LIKE ?)) USING utf8mb4)";
    let deadline = Instant::now() + PATIENCE;
    loop {
        let counted = sqlx::query_scalar::<_, String>(count).bind(statement).fetch_one(&pool).await.unwrap();
        if counted == "6 3 0" {
            break;
        }
        assert!(Instant::now() < deadline && !running.is_finished(), "{counted}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_waits_for_a_lock_is_given_up_on_mysql() {
    is_given_up("UPDATE locked SET id = 2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_never_ends_is_given_up_on_mysql() {
    is_given_up("SELECT SLEEP(3600)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_consumes_and_publishes_on_mysql() {
    let mut service = Service::new().await;
    let database = MySql::shared().await.unwrap().create_database().await.unwrap();
    database.execute(SCRIPT).await.unwrap();
    install(&ConnectOptions::parse(database.url()).unwrap(), "outbox").await.unwrap();
    let table = "CREATE TABLE effect (seq bigint AUTO_INCREMENT PRIMARY KEY, `key` varchar(9), n bigint)";
    database.execute(table).await.unwrap();
    let pool = MySqlPool::connect(database.url()).await.unwrap();
    let stop = StopToken::new();
    let consumer = builder(Arc::clone(&service.bus), &service.stream, service.inbox());
    let consumer = consumer.inbox(MySqlInbox::new(pool.clone())).build().unwrap();
    let running = tokio::spawn(consumer.run(forward, stop.clone()));
    service.publish(&["a", "b", "c"], 200).await;
    let all: Vec<i64> = (0..200).collect();
    for (key, table) in ["a", "b", "c"].into_iter().flat_map(|key| [(key, "effect"), (key, "outbox")]) {
        let n = if table == "effect" { "n" } else { "CAST(payload AS SIGNED)" };
        let sql = format!("SELECT {n} FROM {table} WHERE `key` = ? ORDER BY seq");
        loop {
            let asked = sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(sql.as_str())).bind(key);
            let found = asked.fetch_all(&pool).await.unwrap();
            assert!(!running.is_finished() && all.starts_with(&found), "{table}, {key}: {found:?}");
            if found == all {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    stop.cancel();
    running.await.unwrap().unwrap();
}
