//! `headwater check` and `headwater init`.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use headwater_testkit::servers::Kafka;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use serde_json::Value;
use support::{PATIENCE, Shop, headwater, until};

#[test]
fn a_wrong_config_is_2_and_all_of_it_is_said() {
    let shop = Shop::new();
    shop.write_config("[bus]\nkind = \"kafak\"\n[stream.x]\nfrom = \"shop.orders\"\ncolumn = \"*\"\n");
    let ended = shop.headwater(&["check", "CONFIG"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(
        ended.err.contains("line 13: bus: unknown kind \"kafak\": did you mean \"kafka\"?"),
        "{}",
        ended.err
    );
    assert!(
        ended.err.contains("line 16: stream.x: unknown key \"column\": did you mean \"columns\"?"),
        "{}",
        ended.err
    );
    let ended = shop.headwater(&["check", "CONFIG", "--json"]);
    let report: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((ended.code, &report["ok"]), (Some(2), &false.into()));
    assert_eq!(report["findings"][0]["where"], "config");
    assert_eq!(shop.headwater(&["run", "CONFIG"]).code, Some(2));
}

#[test]
fn a_condition_that_does_not_compile_is_2() {
    let shop = Shop::new();
    shop.write_config("[stream.paid]\nfrom = \"shop.orders\"\ncolumns = \"*\"\nwhere = 'after.status =='\n");
    let ended = shop.headwater(&["check", "CONFIG", "--json"]);
    let report: Value = serde_json::from_str(&ended.out).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let errors: Vec<&Value> = findings.iter().filter(|finding| finding["severity"] == "error").collect();
    assert_eq!((ended.code, errors.len()), (Some(2), 1), "{report}");
    assert_eq!(errors[0]["where"], "streams");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_its_table_cannot_feed_is_2_and_run_says_so_at_once() {
    let shop = Shop::new();
    shop.write_config(
        "[stream.paid]\nfrom = \"shop.orders\"\ncolumns = [\"id\", \"statu\"]\nwhere = 'after.id > 1'\n\
         [stream.keyed]\nfrom = \"shop.orders\"\ncolumns = \"*\"\nkey = \"uuid\"\n",
    );
    let ended = shop.headwater(&["check", "CONFIG", "--json"]);
    let report: Value = serde_json::from_str(&ended.out).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let errors: Vec<&Value> = findings.iter().filter(|finding| finding["severity"] == "error").collect();
    assert_eq!((ended.code, errors.len()), (Some(2), 2), "{report:#}");
    assert!(errors.iter().all(|error| error["where"] == "streams"), "{report:#}");
    let said = |error: &Value| format!("{} {}", error["message"], error["hint"]);
    let (keyed, paid) = (said(errors[0]), said(errors[1]));
    assert!(keyed.contains("stream keyed: table main.orders has no column \\\"uuid\\\""), "{keyed}");
    assert!(paid.contains("stream paid") && paid.contains("did you mean \\\"status\\\"?"), "{paid}");
    let headwater = shop.run().await;
    until("the log says so before any change", || {
        let log = headwater.log_tail();
        log.contains("stream keyed: table main.orders has no column") && log.contains("stream paid: table")
    });
    headwater.stop(PATIENCE).await.unwrap();
}

#[test]
fn a_database_that_is_not_there_is_3() {
    let shop = Shop::new();
    std::fs::remove_file(shop.path().join("shop.db")).unwrap();
    let ended = shop.headwater(&["check", "CONFIG"]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.out.contains("error  source.shop"), "{}", ended.out);
    assert!(ended.out.ends_with("\nnot ready: 1 error\n"), "{}", ended.out);
    assert!(!shop.path().join("data").exists(), "check changes nothing");
}

#[test]
fn a_server_that_is_not_there_is_3_and_says_what_to_look_at() {
    let shop = Shop::new();
    let port = headwater_testkit::servers::free_port();
    let source =
        format!("kind = \"postgres\"\nurl = \"postgres://u@127.0.0.1:{port}/d\"\ntables = [\"t\"]\n");
    std::fs::write(shop.config(), format!("[source.away]\n{source}[http]\nlisten = \"off\"\n")).unwrap();
    let ended = shop.headwater(&["check", "CONFIG"]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.out.contains("does PostgreSQL run there?"), "{}", ended.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_before_and_while_it_runs() {
    let shop = Shop::new();
    let ended = shop.headwater(&["check", "CONFIG"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!shop.path().join("data").exists(), "check changes nothing");
    let headwater = shop.run().await;
    let ended = shop.headwater(&["check", "CONFIG"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.contains("answers on 127.0.0.1:"), "{}", ended.out);
    assert!(ended.out.contains("is in use: process"), "{}", ended.out);
    headwater.stop(PATIENCE).await.unwrap();
}

#[test]
fn a_port_that_is_taken_is_2_as_with_run() {
    let shop = Shop::new();
    let _taken = std::net::TcpListener::bind(&shop.listen).unwrap();
    let ended = shop.headwater(&["check", "CONFIG"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.out.contains("another process has this port"), "{}", ended.out);
    assert_eq!(shop.headwater(&["run", "CONFIG"]).code, Some(2));
}

/// What only the connectors know of a config is found by asking them.
#[test]
fn a_setting_that_its_connector_refuses_is_2_as_with_run() {
    let shop = Shop::new();
    shop.write_config("[bus]\nkind = \"kafka\"\nbootstrap = \"127.0.0.1:1\"\noptions = { acks = \"1\" }\n");
    let ended = shop.headwater(&["check", "CONFIG"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert_eq!(shop.headwater(&["run", "CONFIG"]).code, Some(2));
}

#[test]
fn a_missing_config_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let ended = headwater(dir.path(), &["check"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.starts_with("error: cannot read the config headwater.toml"), "{}", ended.err);
    assert!(ended.err.contains("hint: name the file"), "{}", ended.err);
    assert_eq!(headwater(dir.path(), &["frobnicate"]).code, Some(2));
    assert!(headwater(dir.path(), &["--version"]).out.starts_with("headwater 0."));
}

#[test]
fn init_installs_prints_and_removes() {
    let shop = Shop::new();
    let url = format!("sqlite://{}", shop.path().join("shop.db").display());
    let printed = shop.headwater(&["init", &url, "--tables", "orders", "--print"]);
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert!(printed.out.contains("CREATE TRIGGER"), "{}", printed.out);
    let objects = || {
        let database = rusqlite::Connection::open(shop.path().join("shop.db")).unwrap();
        let count = "SELECT count(*) FROM sqlite_schema WHERE type = 'trigger'";
        database.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!(objects(), 0, "--print changes nothing");
    let made = shop.headwater(&["init", &url, "--tables", "orders"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    assert!(objects() > 0);
    let again = shop.headwater(&["init", &url, "--tables", "orders"]);
    assert_eq!(again.out, "nothing to do: all is there\n");
    let removed = shop.headwater(&["init", &url, "--remove"]);
    assert_eq!(removed.code, Some(0), "{removed:?}");
    assert_eq!(objects(), 0);
    shop.sql("INSERT INTO orders VALUES (1, 'still works')");
    let wrong = shop.headwater(&["init", "mysql://h/d"]);
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
}

/// What would lose how far sources have come is said before anything is published.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_positions_that_forgets_is_3_and_says_how_to_mend_it() {
    let brokers = Kafka::shared().await.unwrap().brokers();
    let topic = format!("positions-{:x}", rand::random::<u64>());
    let shop = Shop::new();
    shop.write_config(&format!(
        "[bus]\nkind = \"kafka\"\nbrokers = [\"{brokers}\"]\npositions_topic = \"{topic}\"\n"
    ));
    let bus = async || {
        let ended = shop.headwater(&["check", "CONFIG", "--json"]);
        let report: Value = serde_json::from_str(&ended.out).unwrap();
        let findings = report["findings"].as_array().unwrap().clone();
        (ended.code, findings.into_iter().filter(|found| found["where"] == "bus").collect::<Vec<_>>())
    };
    let (code, found) = bus().await;
    assert_eq!(code, Some(0), "{found:?}");
    assert!(found[1]["message"].as_str().unwrap().contains("is made by the first run"), "{found:?}");
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
    let made = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set("cleanup.policy", "delete");
    admin.create_topics([&made], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
    let (code, found) = bus().await;
    assert_eq!((code, &found[1]["severity"]), (Some(3), &"error".into()), "{found:?}");
    let said = format!("{} {}", found[1]["message"], found[1]["hint"]);
    assert!(said.contains("cleanup.policy is delete") && said.contains("kafka-configs.sh"), "{said}");
}
