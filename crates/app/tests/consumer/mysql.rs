//! A service on MySQL or MariaDB: it consumes, and publishes about what it did in the same transaction.

use std::sync::Arc;
use std::time::Duration;

use headwater::connect::mysql::inbox::{MySqlInbox, SCRIPT};
use headwater::connect::mysql::outbox::{MySqlOutbox, install};
use headwater::connect::mysql::url::ConnectOptions;
use headwater::{Event, Handled, Outbox, Received, StopToken};
use headwater_testkit::servers::MySql;
use sqlx::{MySqlPool, Transaction};

use super::common::{Service, builder};

async fn forward(tx: &mut Transaction<'static, sqlx::MySql>, event: &Received) -> Handled {
    let (key, n) = (event.key().map(str::to_owned), event.json::<i64>()?);
    let insert = sqlx::query("INSERT INTO effect (`key`, n) VALUES (?, ?)");
    insert.bind(&key).bind(n).execute(&mut **tx).await?;
    let forward = Event::new("handled", "Handled").key(key.unwrap_or_default()).payload(&n);
    Outbox::new(MySqlOutbox::new("outbox")).publish(tx, forward).await?;
    Ok(())
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
