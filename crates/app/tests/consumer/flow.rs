//! When all goes well.

use std::sync::Arc;
use std::time::Duration;

use headwater::connect::sqlite::inbox::{SCRIPT, SqliteInbox};
use headwater::{Handled, Received, StopToken};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{Sqlite, Transaction};

use super::common::{Record, Service, Tx, builder, write};

fn keys(count: usize) -> Vec<String> {
    (0..count).map(|key| format!("key-{key}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_key_is_handled_in_order_by_many_workers() {
    let mut service = Service::new().await;
    let keys = keys(50);
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    service.publish(&keys, 20).await;
    let running = service.run(service.builder(), Record::default());
    service.publish(&keys, 20).await;
    service.check().await;
    running.stop().await.unwrap();
    assert_eq!(service.lag().await, 0, "the group's cursor follows");
    let cursors = "SELECT sum(\"offset\")::bigint FROM headwater_cursor";
    assert_eq!(service.count(cursors).await, 2000, "so does the database's");
    assert_eq!(service.count("SELECT count(*) FROM headwater_inbox").await, 2000);
}

/// A plain function, with one event in each transaction.
#[tokio::test(flavor = "multi_thread")]
async fn an_async_function_is_a_handler() {
    async fn handle(tx: &mut Tx, event: &Received) -> Handled {
        write(tx, event.key().unwrap_or_default(), event.json()?).await?;
        Ok(())
    }
    let mut service = Service::new().await;
    service.publish(&["a", "b"], 50).await;
    let stop = StopToken::new();
    let consumer = service.builder().batch(1).concurrency(2).build().unwrap();
    let running = tokio::spawn(consumer.run(handle, stop.clone()));
    service.check().await;
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stopped_goes_on_where_it_stood() {
    let mut service = Service::new().await;
    for _ in 0..5 {
        service.publish(&["a", "b", "c"], 200).await;
        let running = service.run(service.builder().batch(10), Record::default());
        let some = service.count("SELECT count(*) FROM effect").await;
        service.until(&format!("SELECT (count(*) > {some})::int::bigint FROM effect"), 1).await;
        running.stop().await.unwrap();
    }
    let running = service.run(service.builder(), Record::default());
    service.check().await;
    running.stop().await.unwrap();
}

/// Times that no clock can tell.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_take_for_ever_overflows_nothing() {
    let mut service = Service::new().await;
    let record = Record::default();
    record.fail("a", 0);
    let builder = service.builder().backoff(Duration::from_millis(20), Duration::MAX);
    let builder = builder.drain_timeout(Duration::MAX).handler_timeout(Duration::MAX);
    let running = service.run(builder, record.clone());
    service.publish(&["a", "b"], 5).await;
    service.effects(5).await;
    record.mend();
    service.check().await;
    running.stop().await.unwrap();
    let running = service.run(service.builder().backoff(Duration::MAX, Duration::MAX), record.clone());
    record.fail("a", 5);
    service.publish(&["a", "b"], 1).await;
    service.effects(11).await;
    running.stop().await.unwrap();
}

/// The database's cursor counts, not the group's: a database that was restored from a backup is served again.
#[tokio::test(flavor = "multi_thread")]
async fn the_databases_cursor_is_the_truth() {
    let mut service = Service::new().await;
    service.publish(&["a"], 100).await;
    let running = service.run(service.builder(), Record::default());
    service.check().await;
    running.stop().await.unwrap();
    let restore = "DELETE FROM effect WHERE n >= 40; UPDATE headwater_cursor SET \"offset\" = 40 WHERE \"offset\" > 0; \
         DELETE FROM headwater_inbox";
    service.database.execute(restore).await.unwrap();
    let running = service.run(service.builder(), Record::default());
    service.check().await;
    running.stop().await.unwrap();
    // Ahead of the group: what was done there is not read again.
    service.publish(&["a"], 100).await;
    let ahead = "UPDATE headwater_cursor SET \"offset\" = 200 WHERE \"offset\" > 0; \
         INSERT INTO effect (key, n) SELECT 'a', n FROM generate_series(100, 199) AS n";
    service.database.execute(ahead).await.unwrap();
    service.publish(&["a"], 1).await;
    let running = service.run(service.builder(), Record::default());
    service.check().await;
    running.stop().await.unwrap();
}

/// What events keep their order by may be another thing than their key.
#[tokio::test(flavor = "multi_thread")]
async fn order_may_go_by_something_else() {
    let mut service = Service::new().await;
    let record = Record::default();
    record.fail("a", 2);
    let builder = service.builder().attempts(1).order_by(|_| Some("all".into()));
    let running = service.run(builder, record);
    service.publish(&["a"], 3).await;
    service.until("SELECT count(*) FROM headwater_parked", 1).await;
    service.publish(&["b"], 3).await;
    service.until("SELECT count(*) FROM headwater_parked WHERE state = 'waiting'", 3).await;
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_works_on_sqlite() {
    async fn handle(tx: &mut Transaction<'static, Sqlite>, event: &Received) -> Handled {
        let insert = sqlx::query("INSERT INTO effect (key, n) VALUES (?, ?)");
        insert.bind(event.key().map(str::to_owned)).bind(event.json::<i64>()?).execute(&mut **tx).await?;
        Ok(())
    }
    let mut service = Service::new().await;
    let options = SqliteConnectOptions::new()
        .filename(service.dir.path().join("service.db"))
        .create_if_missing(true)
        .journal_mode(sqlx::sqlite::SqliteJournalMode::Wal)
        .busy_timeout(Duration::from_secs(30));
    let pool = SqlitePoolOptions::new().max_connections(5).connect_with(options).await.unwrap();
    sqlx::raw_sql(SCRIPT).execute(&pool).await.unwrap();
    let table = "CREATE TABLE effect (seq INTEGER PRIMARY KEY, key TEXT, n INTEGER)";
    sqlx::query(table).execute(&pool).await.unwrap();
    let stop = StopToken::new();
    let consumer = builder(Arc::clone(&service.bus), &service.stream, service.inbox());
    let consumer = consumer.inbox(SqliteInbox::new(pool.clone())).build().unwrap();
    let running = tokio::spawn(consumer.run(handle, stop.clone()));
    service.publish(&["a", "b", "c"], 200).await;
    loop {
        let sql = "SELECT key, group_concat(n) FROM (SELECT * FROM effect ORDER BY seq) GROUP BY key";
        let found: Vec<(String, String)> = sqlx::query_as(sql).fetch_all(&pool).await.unwrap();
        let all: Vec<String> = (0..200).map(|n| n.to_string()).collect();
        let all = ["a", "b", "c"].map(|key| (key.to_owned(), all.join(",")));
        if found == all {
            break;
        }
        assert!(!running.is_finished() && found.iter().all(|(_, list)| all[0].1.starts_with(list.as_str())));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    running.await.unwrap().unwrap();
}
