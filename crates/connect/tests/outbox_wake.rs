//! Relays are told of rows.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use headwater_connect::postgres::outbox::{PostgresOutboxStore, PostgresWaker, install};
use headwater_connect::postgres::url::ConnectOptions;
use headwater_core::ports::OutboxStore;
use headwater_testkit::servers::Postgres;
use sqlx::PgPool;

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_pauses_is_woken() {
    let database = Postgres::shared().await.unwrap().create_database().await.unwrap();
    let url = ConnectOptions::parse(database.url()).unwrap();
    install(&url, "public.outbox").await.unwrap();
    let store = PostgresOutboxStore::new(&url, "public.outbox");
    let waker = PostgresWaker::new(PgPool::connect(database.url()).await.unwrap(), "public.outbox");
    // It listens once it is known that its sessions are its own.
    store.check().await.unwrap();
    let began = Instant::now();
    let pause = store.wait(Duration::from_secs(3600));
    tokio::pin!(pause);
    // It may not listen yet when it is told the first times.
    while tokio::time::timeout(Duration::from_millis(20), &mut pause).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(60), "it was told, and pauses");
        waker.wake();
    }
    // What was said while it did not pause is not forgotten.
    waker.wake();
    assert!(store.wait(Duration::from_secs(3600)).await);
}
