//! Publishing on SQLite, as services do it.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use headwater::connect::sqlite::outbox::{SqliteOutbox, SqliteOutboxStore, install};
use headwater::core::ports::{Claim, ClaimLimit, OutboxStore as _};
use headwater::{Event, Kind, Outbox};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

#[tokio::test]
async fn events_are_published_with_the_change_and_not_without() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("service.db");
    let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let options = options.busy_timeout(Duration::from_secs(30));
    let pool = SqlitePoolOptions::new().connect_with(options).await.unwrap();
    sqlx::query("CREATE TABLE orders (id INTEGER PRIMARY KEY, state TEXT)").execute(&pool).await.unwrap();
    assert!(install(&path, "outbox").unwrap());
    let outbox = Outbox::new(SqliteOutbox::new("outbox"));

    for (id, commits) in [(41, false), (42, true)] {
        let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
        sqlx::query("INSERT INTO orders VALUES (?, 'placed')").bind(id).execute(&mut *tx).await.unwrap();
        let placed = Event::new("orders", "OrderPlaced").key(id).payload(&serde_json::json!({ "id": id }));
        outbox.publish(&mut tx, placed.traceparent("00-1")).await.unwrap();
        let rest = [Event::new("orders", "OrderPaid").key(id), Event::new("mail", "Wanted")];
        outbox.publish_all(&mut tx, rest).await.unwrap();
        let refused = outbox.publish(&mut tx, Event::new("or/ders", "x")).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Config);
        if commits {
            tx.commit().await.unwrap();
        } else {
            tx.rollback().await.unwrap();
        }
    }
    let claim = Claim { lane: 0, above: 0, known: Vec::new(), retries: false, resume: false };
    let limit = ClaimLimit { rows: 100, bytes: 1 << 20 };
    let rows = SqliteOutboxStore::new(&path, "outbox").claim(&[claim], limit).await.unwrap().rows;
    let said: Vec<_> = rows.iter().map(|row| (&*row.stream, row.key.as_deref())).collect();
    assert_eq!(said, [("orders", Some("42")), ("orders", Some("42")), ("mail", None)]);
    let headers: String =
        sqlx::query_scalar("SELECT headers FROM outbox LIMIT 1").fetch_one(&pool).await.unwrap();
    assert_eq!(headers, r#"{"traceparent":"00-1"}"#);
}
