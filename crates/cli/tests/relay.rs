//! An outbox on PostgreSQL that is emptied by query, onto the embedded bus.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::{PATIENCE, Place, program};
use headwater_core::Record;
use headwater_core::ports::{Delivery, Subscription};
use headwater_testkit::servers::{Database, Postgres};
use sqlx::{AssertSqlSafe, Connection, Row};

/// A database with an outbox, and a config that relays it.
struct Service {
    database: Database,
    place: Place,
}

impl Service {
    async fn new(more: &str) -> Self {
        let database = Postgres::shared().await.unwrap().create_database().await.unwrap();
        let made = std::process::Command::new(program()).args(["init", database.url()]).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let source = format!(
            "[source.shop]\nkind = \"postgres\"\nurl = \"{}\"\noutbox = \"public.outbox\"\nrelay = true\n",
            database.url()
        );
        Self { database, place: Place::new(&format!("{more}\n{source}")) }
    }

    async fn publish(&self, keys: impl Iterator<Item = (String, u64)>) {
        let call = |(key, n): (String, u64)| {
            format!("SELECT headwater_publish('orders', 'Placed', '{key}', '{{\"n\": {n}}}');")
        };
        self.database.execute(&keys.map(call).collect::<String>()).await.unwrap();
    }

    async fn count(&self, state: &str) -> i64 {
        let mut connection = self.database.connect().await.unwrap();
        let sql = format!("SELECT count(*) FROM outbox WHERE state = '{state}'");
        sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut connection).await.unwrap().get(0)
    }

    async fn until_settled(&self, how_many: i64) {
        let deadline = Instant::now() + PATIENCE;
        while self.count("published").await < how_many {
            assert!(Instant::now() < deadline, "not all settled within {PATIENCE:?}");
            tokio::task::yield_now().await;
        }
    }
}

/// The `n` of each event, by key, as they arrive, until there are `how_many`.
async fn read(events: &mut dyn Subscription, how_many: usize) -> BTreeMap<String, Vec<u64>> {
    let mut read: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let deadline = Instant::now() + PATIENCE;
    while read.values().map(Vec::len).sum::<usize>() < how_many {
        assert!(Instant::now() < deadline, "only {read:?}");
        let Ok(delivery) = tokio::time::timeout(Duration::from_millis(200), events.next()).await else {
            continue;
        };
        if let Delivery::Batch { records, .. } = delivery.unwrap() {
            for Record { event, .. } in records {
                let payload: serde_json::Value =
                    serde_json::from_slice(event.payload.as_deref().unwrap()).unwrap();
                let key = String::from_utf8(event.key.unwrap().to_vec()).unwrap();
                read.entry(key).or_default().push(payload["payload"]["n"].as_u64().unwrap());
            }
        }
    }
    read
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_is_published_once_in_order_and_settled() {
    let service = Service::new("[stream.orders]\npartitions = 4").await;
    service.publish((0..100).map(|n| (format!("k{}", n % 7), n))).await;
    let headwater = service.place.run().await;
    let mut events = service.place.read(&["orders"]).await;
    service.publish((100..300).map(|n| (format!("k{}", n % 7), n))).await;
    let mut connection = service.database.connect().await.unwrap();
    let mut rolled_back = connection.begin().await.unwrap();
    sqlx::query("SELECT headwater_publish('orders', 'Placed', 'k0', '{\"n\": 9999}')")
        .execute(&mut *rolled_back)
        .await
        .unwrap();
    rolled_back.rollback().await.unwrap();
    let read = read(&mut *events, 300).await;
    for (key, numbers) in &read {
        let first: u64 = key[1..].parse().unwrap();
        assert_eq!(*numbers, (first..300).step_by(7).collect::<Vec<_>>(), "{key}");
    }
    service.until_settled(300).await;
    let status = service.place.status().await;
    assert_eq!(status["relays"][0]["lanes"], 8, "{status}");
    assert_eq!(status["relays"][0]["events"], 300, "{status}");
    assert_eq!(headwater.stop(PATIENCE).await.unwrap().code(), Some(0));
    let mut connection = service.database.connect().await.unwrap();
    let held = "SELECT count(*) FROM outbox_lease WHERE relay IS NOT NULL";
    let held: i64 = sqlx::query(held).fetch_one(&mut connection).await.unwrap().get(0);
    assert_eq!(held, 0, "a stop gives the lanes back");
}

/// Invariant 4: a sequence drawn early and committed late, while rows with higher ones were published.
#[tokio::test(flavor = "multi_thread")]
async fn what_commits_late_is_published_all_the_same() {
    let service = Service::new("[stream.orders]\npartitions = 4").await;
    let mut early = Vec::new();
    for n in 0..5 {
        let mut connection = service.database.connect().await.unwrap();
        let sql = format!("BEGIN; SELECT headwater_publish('orders', 'Placed', 'late{n}', '{{\"n\": {n}}}')");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        early.push(connection);
    }
    let headwater = service.place.run().await;
    let mut events = service.place.read(&["orders"]).await;
    service.publish((0..500).map(|n| (format!("k{}", n % 50), n))).await;
    assert_eq!(read(&mut *events, 500).await.len(), 50);
    service.until_settled(500).await;
    for mut connection in early {
        sqlx::raw_sql("COMMIT").execute(&mut connection).await.unwrap();
    }
    let late = read(&mut *events, 5).await;
    assert!(late.keys().all(|key| key.starts_with("late")), "{late:?}");
    headwater.stop(PATIENCE).await.unwrap();
}
