//! The commands on PostgreSQL: init, check, run, status, tail, with an outbox and with messages.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use headwater_testkit::servers::{Database, Postgres};
use serde_json::Value;
use support::{PATIENCE, Shop, json, until};

async fn database() -> Database {
    Postgres::shared().await.unwrap().create_database().await.unwrap()
}

fn configure(shop: &Shop, database: &Database) {
    let (url, listen, name) = (database.url(), &shop.listen, database.name());
    let text = format!(
        "[source.shop]\nkind = \"postgres\"\nurl = \"{url}\"\ntables = [\"public.orders\"]\noutbox = \"public.outbox\"\n\
         slot = \"{name}\"\n\
         [stream.orders]\nfrom = \"shop.public.orders\"\ncolumns = {{ id = \"id\", status = \"state\" }}\n\
         [outbox]\nstream = \"{{aggregatetype}}_events\"\n[http]\nlisten = \"{listen}\"\n"
    );
    std::fs::write(shop.config(), text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn init_makes_the_tables_of_an_inbox_where_it_is_asked_to() {
    let (shop, database) = (Shop::new(), database().await);
    let path = shop.path().join("shop.db");
    let made = "made the tables of the inbox: headwater_inbox, headwater_cursor, headwater_parked\n";
    for url in [database.url().to_owned(), format!("sqlite://{}", path.display())] {
        let init = ["init", url.as_str(), "--no-outbox", "--inbox"];
        let printed = shop.headwater(&[&init[..], &["--print"]].concat());
        assert!(printed.out.contains("headwater_parked"), "{printed:?}");
        let out = shop.headwater(&init).out;
        assert!(out.ends_with(made), "{out}");
        assert_eq!(shop.headwater(&init).out, "nothing to do: all is there\n");
    }
    database.execute("SELECT consumer FROM headwater_inbox").await.unwrap();
    shop.sql("DELETE FROM headwater_inbox");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_inbox_of_another_schema_has_parked_is_shown() {
    let (shop, database) = (Shop::new(), database().await);
    let park = "INSERT INTO app.headwater_parked (consumer, stream, partition, \"offset\", event_id, type, headers, time, state) \
         VALUES ('features', 'orders', 0, 0, gen_random_uuid(), 'Placed', '[]', now(), 'parked')";
    let init = ["init", database.url(), "--no-outbox", "--inbox", "--inbox-schema", "app"];
    let missing = shop.headwater(&init);
    assert!(missing.code != Some(0) && missing.err.contains("the schema has to be there"), "{missing:?}");
    database.execute("CREATE SCHEMA app").await.unwrap();
    assert!(shop.headwater(&init).out.starts_with("made the tables of the inbox"));
    database.execute(park).await.unwrap();
    let file = format!("sqlite://{}", shop.path().join("shop.db").display());
    let elsewhere = shop.headwater(&["init", &file, "--inbox", "--inbox-schema", "app"]);
    assert!(elsewhere.code == Some(2) && elsewhere.err.contains("PostgreSQL only"), "{elsewhere:?}");
    let parked = ["parked", "--inbox", database.url()];
    let elsewhere = shop.headwater(&parked);
    assert!(elsewhere.code != Some(0) && elsewhere.err.contains("headwater_parked"), "{elsewhere:?}");
    let there = shop.headwater(&[&parked[..], &["--inbox-schema", "app"]].concat());
    assert!(there.code == Some(0) && there.out.contains("features"), "{there:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn init_makes_the_outbox_once() {
    let (shop, database) = (Shop::new(), database().await);
    let url = database.url();
    let printed = shop.headwater(&["init", url, "--print"]);
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert!(printed.out.contains("CREATE TABLE \"public\".\"outbox\" (\n"), "{}", printed.out);
    assert_eq!(shop.headwater(&["init", url]).out, "made the outbox table outbox\n");
    assert_eq!(shop.headwater(&["init", url]).out, "nothing to do: all is there\n");
    database
        .execute("INSERT INTO outbox (stream, key, type, payload) VALUES ('order', '1', 'OrderPlaced', '{}')")
        .await
        .unwrap();
    let refused = shop.headwater(&["init", url, "--remove"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    let refused = shop.headwater(&["init", url, "--tables", "orders"]);
    assert!(refused.err.contains("captured from the log"), "{refused:?}");
    let (user_and_host, _) = url.split_at(url.rfind('/').unwrap());
    let refused = shop.headwater(&["init", &format!("{user_and_host}/nowhere")]);
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(refused.err.contains("\"nowhere\" does not exist"), "{refused:?}");
}

/// `init` leaves them as they are, and says what its owner may do; so does `check` of a source of that database.
#[tokio::test(flavor = "multi_thread")]
async fn indexes_of_an_earlier_version_are_spoken_of() {
    let (shop, database) = (Shop::new(), database().await);
    let init = ["init", database.url(), "--inbox"];
    shop.headwater(&init);
    configure(&shop, &database);
    let check = ["check", "CONFIG"];
    assert!(!shop.headwater(&check).out.contains("index"));
    let earlier = "CREATE TABLE orders (id int PRIMARY KEY, state text); \
         DROP INDEX headwater_parked_key, outbox_heads; CREATE INDEX outbox_heads ON outbox (lane); \
         CREATE INDEX headwater_parked_key ON headwater_parked (consumer, stream, key, seq)";
    database.execute(earlier).await.unwrap();
    for command in [&init[..], &check] {
        let said = shop.headwater(command);
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(said.out.contains("DROP INDEX CONCURRENTLY \"public\".\"outbox_heads\";"), "{said:?}");
        let renames =
            "ALTER INDEX \"public\".\"headwater_parked_key_new\" RENAME TO \"headwater_parked_key\";";
        assert!(said.out.contains(renames), "{said:?}");
        assert!(!said.out.contains("nothing to do"), "{said:?}");
    }
    let json = shop.headwater(&[&init[..], &["--json"]].concat());
    let json: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(
        (json["done"].as_array().unwrap().len(), json["findings"].as_array().unwrap().len()),
        (0, 2),
        "{json}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_its_table_cannot_feed_is_found_before_anything_is_made() {
    let (shop, database) = (Shop::new(), database().await);
    database
        .execute("CREATE TABLE orders (id int PRIMARY KEY, state text, total numeric, twice int GENERATED ALWAYS AS (id * 2) STORED)")
        .await
        .unwrap();
    let check = |streams: &str| {
        let (url, listen, name) = (database.url(), &shop.listen, database.name());
        let text = format!(
            "[source.shop]\nkind = \"postgres\"\nurl = \"{url}\"\ntables = [\"public.*\"]\nslot = \"{name}\"\n\
             [http]\nlisten = \"{listen}\"\n{streams}"
        );
        std::fs::write(shop.config(), text).unwrap();
        shop.headwater(&["check", "CONFIG"])
    };
    let fits = "[stream.orders]\nfrom = \"shop.orders\"\ncolumns = [\"id\", \"state\", \"total\"]\n";
    let ended = check(fits);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let ended = check(&fits.replace("total", "totle"));
    assert_eq!(ended.code, Some(2), "{ended:?}");
    let says = ["table public.orders has no column \"totle\"", "did you mean \"total\"?"];
    assert!(says.iter().all(|says| ended.out.contains(says)), "{}", ended.out);
    let ended = check(&fits.replace("shop.orders", "shop.oders"));
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.out.contains("did you mean \"shop.public.orders\"?"), "{}", ended.out);
    // What a delete does not say cannot be the order key.
    let ended = check(&format!("{fits}order_key = \"state\"\n"));
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.out.contains("REPLICA IDENTITY FULL"), "{}", ended.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_changes_its_type_is_logged_and_goes_on() {
    let (shop, database) = (Shop::new(), database().await);
    configure(&shop, &database);
    assert_eq!(shop.headwater(&["init", database.url()]).code, Some(0));
    database.execute("CREATE TABLE orders (id int PRIMARY KEY, state text)").await.unwrap();
    let headwater = shop.run().await;
    // A table that is rewritten while it is read is read again.
    until("the snapshot is over", || {
        json(&shop.headwater(&["status", "CONFIG", "--json"]).out)["sources"][0]["phase"] == "streaming"
    });
    database
        .execute(
            "INSERT INTO orders VALUES (1, '7'); ALTER TABLE orders ALTER state TYPE int USING state::int;
             INSERT INTO orders VALUES (2, 8)",
        )
        .await
        .unwrap();
    let tail = ["tail", "orders", "-c", "CONFIG", "--from", "beginning", "--limit", "2", "--json"];
    let events: Vec<Value> = shop.headwater(&tail).out.lines().map(json).collect();
    let status = |key: &str| {
        let event = events.iter().find(|event| event["key"] == key).unwrap();
        event["payload"]["after"]["status"].clone()
    };
    assert_eq!((status("1"), status("2")), ("7".into(), 8.into()));
    let log = headwater.log_tail();
    let line = log.lines().find(|line| line.contains("a column changed its type")).expect("it is logged");
    for part in ["orders", "public.orders", "state", "Text", "Int32"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    headwater.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_outbox_and_messages_arrive() {
    let (shop, database) = (Shop::new(), database().await);
    configure(&shop, &database);
    assert_eq!(shop.headwater(&["init", database.url()]).code, Some(0));
    database
        .execute("CREATE TABLE orders (id int PRIMARY KEY, state text); INSERT INTO orders VALUES (1, 'old')")
        .await
        .unwrap();
    let checked = shop.headwater(&["check", "CONFIG"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let headwater = shop.run().await;
    database
        .execute(
            "BEGIN; UPDATE orders SET state = 'paid' WHERE id = 1;
             INSERT INTO outbox (stream, key, type, payload) VALUES ('order', '1', 'OrderPaid', '{\"a\": 1}');
             DELETE FROM outbox; COMMIT;
             SELECT pg_logical_emit_message(true, 'headwater', '{\"id\": \"4d47e190-0402-4048-bc2c-89dd54343cdc\", \
             \"aggregatetype\": \"order\", \"aggregateid\": \"1\", \"type\": \"OrderThanked\", \"payload\": {}}')",
        )
        .await
        .unwrap();
    let tail = |stream: &str, limit: &str| {
        let ended = shop.headwater(&[
            "tail",
            stream,
            "-c",
            "CONFIG",
            "--from",
            "beginning",
            "--limit",
            limit,
            "--json",
        ]);
        ended.out.lines().map(json).collect::<Vec<Value>>()
    };
    let kinds = |events: &[Value]| {
        events.iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let orders = tail("orders", "2");
    assert_eq!(kinds(&orders), ["read", "update"]);
    assert_eq!(orders[1]["payload"]["after"], serde_json::json!({ "id": 1, "status": "paid" }));
    until("the outbox's stream is there", || {
        json(&shop.headwater(&["status", "CONFIG", "--json"]).out)["sources"][0]["events"] == 4
    });
    let events = tail("order_events", "2");
    assert_eq!(kinds(&events), ["OrderPaid", "OrderThanked"]);
    assert_eq!(events[1]["id"], "4d47e190-0402-4048-bc2c-89dd54343cdc");
    let stopped = headwater.stop(PATIENCE).await.unwrap();
    assert_eq!(stopped.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_of_ones_own_with_a_time() {
    let (shop, database) = (Shop::new(), database().await);
    configure(&shop, &database);
    let text = std::fs::read_to_string(shop.config()).unwrap().replace(
        "outbox = \"public.outbox\"",
        "outbox = { table = \"events\", id = \"number\", aggregatetype = \"topic\", aggregateid = \"subject\", \
         type = \"name\", payload = \"body\", headers = \"meta\", timestamp = \"at\" }",
    );
    std::fs::write(shop.config(), text + "[stream.order_events]\n").unwrap();
    database
        .execute(
            "CREATE TABLE orders (id int PRIMARY KEY, state text);
             CREATE TABLE events (number uuid PRIMARY KEY, topic text NOT NULL, subject bigint, name text, \
                 body jsonb, meta jsonb, at timestamptz NOT NULL)",
        )
        .await
        .unwrap();
    let headwater = shop.run().await;
    let (row, message) = ("4d47e190-0402-4048-bc2c-89dd54343cdc", "5d47e190-0402-4048-bc2c-89dd54343cdc");
    let sql = format!(
        "INSERT INTO events VALUES ('{row}', 'order', 7, 'OrderPlaced', '{{\"total\": 19.90}}', \
             '{{\"trace\": \"t1\"}}', '2024-05-17 12:00:00.5+02'); \
         SELECT pg_logical_emit_message(true, 'headwater', '{{\"number\": \"{message}\", \"topic\": \"order\", \
             \"subject\": 7, \"name\": \"OrderPlaced\", \"body\": {{\"total\": 19.90}}, \
             \"meta\": {{\"trace\": \"t1\"}}, \"at\": \"2024-05-17T12:00:00.5+02:00\"}}')"
    );
    database.execute(&sql).await.unwrap();
    let tail = ["tail", "order_events", "-c", "CONFIG", "--from", "beginning", "--limit", "2", "--json"];
    let events: Vec<Value> = shop.headwater(&tail).out.lines().map(json).collect();
    for (event, id) in events.iter().zip([row, message]) {
        assert_eq!((&event["id"], &event["type"]), (&id.into(), &"OrderPlaced".into()), "{event}");
        assert_eq!(event["key"], "7");
        assert_eq!(event["headers"], serde_json::json!({ "contract-version": "1", "trace": "t1" }));
        let payload = &event["payload"];
        assert_eq!(payload["payload"].to_string(), r#"{"total":19.9}"#);
        assert_eq!(payload["occurred_at"], "2024-05-17T10:00:00.500000Z", "{payload}");
        assert_eq!(payload["source"]["table"], "events");
    }
    assert_eq!(events.len(), 2);
    headwater.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_to_mend() {
    let server = Postgres::settings().set("wal_level", "replica").start().await.unwrap();
    let (shop, database) = (Shop::new(), server.create_database().await.unwrap());
    configure(&shop, &database);
    let checked = shop.headwater(&["check", "CONFIG", "--json"]);
    assert_eq!(checked.code, Some(3), "{checked:?}");
    assert!(checked.out.contains("wal_level"), "{}", checked.out);
    // Who may not connect is told so, without a password.
    let (_, host) = database.url().split_once('@').unwrap();
    let text = std::fs::read_to_string(shop.config()).unwrap();
    std::fs::write(shop.config(), text.replace(database.url(), &format!("postgres://nobody:hunter2@{host}")))
        .unwrap();
    let checked = shop.headwater(&["check", "CONFIG"]);
    assert_eq!(checked.code, Some(3), "{checked:?}");
    assert!(checked.out.contains("nobody") && !checked.out.contains("hunter2"), "{}", checked.out);
}
