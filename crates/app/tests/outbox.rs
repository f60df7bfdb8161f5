//! Publishing as services do it: from tasks, in a transaction with other changes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use headwater::connect::postgres::outbox::{PostgresOutbox, install};
use headwater::connect::postgres::url::ConnectOptions;
use headwater::{Event, Kind, Outbox};
use headwater_testkit::servers::Postgres;
use sqlx::{Executor, PgPool, Row};

async fn order(pool: &PgPool, outbox: &Outbox<PostgresOutbox>, id: i64) -> headwater::Result<()> {
    let mut tx = pool.begin().await.unwrap();
    sqlx::query("INSERT INTO orders VALUES ($1)").bind(id).execute(&mut *tx).await.unwrap();
    let placed = |id| Event::new("orders", "OrderPlaced").key(id).payload(&serde_json::json!({ "id": id }));
    outbox.publish(&mut tx, placed(id)).await?;
    outbox.publish_all(&mut tx, [placed(id), Event::new("audit", "Seen").traceparent("00-1-2-01")]).await?;
    tx.commit().await.unwrap();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_written_with_the_change_in_any_task() {
    let database = Postgres::shared().await.unwrap().create_database().await.unwrap();
    let url = ConnectOptions::parse(database.url()).unwrap();
    install(&url, "public.outbox").await.unwrap();
    database.execute("CREATE TABLE orders (id bigint PRIMARY KEY)").await.unwrap();
    let pool = PgPool::connect(database.url()).await.unwrap();
    let outbox = Outbox::new(PostgresOutbox::new("public.outbox"));
    let tasks = (1..=3).map(|id| {
        let (pool, outbox) = (pool.clone(), outbox.clone());
        tokio::spawn(async move { order(&pool, &outbox, id).await })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap().unwrap();
    }
    let count = "SELECT (SELECT count(*) FROM orders), count(*), count(*) FILTER (WHERE key = '2'), \
                 count(*) FILTER (WHERE headers->>'traceparent' = '00-1-2-01' AND key IS NULL) FROM outbox";
    let row = pool.fetch_one(count).await.unwrap();
    let counts: [i64; 4] = std::array::from_fn(|at| row.get(at));
    assert_eq!(counts, [3, 9, 2, 3]);
}

/// A stream without a name that a bus takes is said where it is written, and the transaction goes on.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_published_is_said_at_once() {
    let database = Postgres::shared().await.unwrap().create_database().await.unwrap();
    let pool = PgPool::connect(database.url()).await.unwrap();
    let outbox = Outbox::new(PostgresOutbox::new("public.outbox"));
    let mut tx = pool.begin().await.unwrap();
    let refused = outbox.publish(&mut tx, Event::new("or/ders", "Placed")).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Config);
    tx.execute("SELECT 1").await.unwrap();
    // The outbox was never made.
    let refused = outbox.publish(&mut tx, Event::new("orders", "Placed")).await.unwrap_err();
    assert!(refused.to_string().contains("headwater init URL --outbox public.outbox"), "{refused}");
}
