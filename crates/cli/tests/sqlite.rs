//! `headwater run` on SQLite: tables that are altered, copies that are put back, an outbox of one's own.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::Value;
use support::{PATIENCE, Shop, json, until};

/// The events of a stream from its beginning, once there are so many.
fn events(shop: &Shop, stream: &str, count: usize) -> Vec<Value> {
    let limit = count.to_string();
    let tail = ["tail", stream, "--from", "beginning", "--json", "--limit", &limit, "-c", "CONFIG"];
    let ended = shop.headwater(&tail);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.out.lines().map(json).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_table_has_its_triggers_made_anew_and_the_log_says_so() {
    let shop = Shop::new();
    let headwater = shop.run().await;
    shop.sql("ALTER TABLE orders ADD COLUMN note");
    until("the log says so", || {
        headwater.log_tail().contains(
            "table \"orders\" was altered: its triggers are made anew for definition 2; rows changed since are read again",
        )
    });
    shop.sql("DROP TRIGGER headwater_delete_orders");
    until("the log says so", || headwater.log_tail().contains("triggers of table \"orders\" were gone"));
    shop.sql("INSERT INTO orders VALUES (1, 'new', NULL)");
    assert_eq!(events(&shop, "orders", 1)[0]["type"], "create");
    headwater.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_put_back_stops_it_until_a_snapshot_is_asked_for() {
    let shop = Shop::new();
    shop.sql("INSERT INTO orders VALUES (1, 'old')");
    let mut headwater = shop.run().await;
    events(&shop, "orders", 1);
    shop.sql(&format!("VACUUM INTO '{}'", shop.path().join("copy.db").display()));
    shop.sql("INSERT INTO orders VALUES (2, 'lost'), (3, 'lost')");
    events(&shop, "orders", 3);
    let restored = std::process::Command::new("sqlite3")
        .args(["-bail", "-cmd", ".timeout 10000", "shop.db", ".restore copy.db"])
        .current_dir(shop.path())
        .output()
        .unwrap();
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    shop.sql("INSERT INTO orders VALUES (4, 'after')");
    let mut ended = None;
    until("it ends", || {
        ended = headwater.ended();
        ended.is_some()
    });
    assert_eq!(ended.unwrap().code(), Some(3));
    let log = headwater.log_tail();
    assert!(log.contains("replaced by another copy"), "{log}");
    assert!(log.contains("headwater snapshot --source shop"), "{log}");
    assert_eq!(shop.headwater(&["snapshot", "CONFIG", "--source", "shop"]).code, Some(0));
    let headwater = shop.run().await;
    let told = events(&shop, "orders", 6);
    // Reads of what is there now, and the change that the copy's own triggers wrote down.
    assert!(told.iter().any(|event| event["payload"]["after"]["state"] == "after"), "{told:?}");
    headwater.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_of_ones_own_with_a_time() {
    let shop = Shop::new();
    shop.sql(
        "CREATE TABLE events (number INTEGER PRIMARY KEY, topic TEXT NOT NULL, subject TEXT, name TEXT, body, \
         meta TEXT, at TEXT NOT NULL)",
    );
    let text = std::fs::read_to_string(shop.config()).unwrap().replace(
        "outbox = \"outbox\"",
        "outbox = { table = \"events\", id = \"number\", aggregatetype = \"topic\", aggregateid = \"subject\", \
         type = \"name\", payload = \"body\", headers = \"meta\", timestamp = \"at\" }",
    );
    std::fs::write(
        shop.config(),
        text + "[outbox]\nstream = \"{aggregatetype}_events\"\n[stream.order_events]\n",
    )
    .unwrap();
    let headwater = shop.run().await;
    shop.sql(
        "INSERT INTO events VALUES (7, 'order', 'o-1', 'OrderPlaced', '{\"total\": 19.90}', '{\"trace\": \"t1\"}', \
         '2024-05-17T10:00:00.5Z'); DELETE FROM events",
    );
    let event = &events(&shop, "order_events", 1)[0];
    assert_eq!((&event["type"], &event["key"]), (&"OrderPlaced".into(), &"o-1".into()));
    assert_eq!(event["headers"], serde_json::json!({ "contract-version": "1", "trace": "t1" }));
    let payload = &event["payload"];
    assert_eq!(payload["payload"], serde_json::json!({ "total": 19.90 }));
    assert_eq!(payload["occurred_at"], "2024-05-17T10:00:00.500000Z", "{payload}");
    assert_eq!(
        (&payload["source"]["table"], &payload["source"]["connector"]),
        (&"events".into(), &"sqlite".into())
    );
    headwater.stop(PATIENCE).await.unwrap();
}

/// As docs/configuration.md tells to do it.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_is_dropped_by_a_migration_that_begins_with_what_init_prints() {
    let shop = Shop::new();
    shop.sql("ALTER TABLE orders ADD COLUMN note; INSERT INTO orders VALUES (1, 'old', 'x')");
    let headwater = shop.run().await;
    events(&shop, "orders", 1);
    let url = format!("sqlite://{}", shop.path().join("shop.db").display());
    let printed = shop.headwater(&["init", &url, "--remove", "--tables", "orders", "--print"]);
    assert_eq!(printed.code, Some(0), "{printed:?}");
    shop.sql(&format!("BEGIN; {} ALTER TABLE orders DROP COLUMN note; COMMIT", printed.out));
    until("the triggers are made anew", || {
        headwater.log_tail().contains("triggers of table \"orders\" were gone")
    });
    events(&shop, "orders", 2);
    shop.sql("UPDATE orders SET status = 'new'");
    let told = events(&shop, "orders", 3);
    assert_eq!(told.iter().map(|event| &event["type"]).collect::<Vec<_>>(), ["read", "read", "update"]);
    headwater.stop(PATIENCE).await.unwrap();
}
