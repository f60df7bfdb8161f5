//! `headwater demo`, as the README says it.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use headwater_testkit::binary::Headwater;
use serde_json::Value;
use support::{PATIENCE, PROGRAM, headwater, until};

#[test]
fn fifty_events_and_none_is_lost_then_it_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let ended = headwater(dir.path(), &["demo", "--events", "50", "--rate", "100"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let last = ended.out.lines().last().unwrap();
    assert!(last.contains(", lost 0 (") && last.contains("commit to consumer p50 "), "{last}");
    for file in ["shop.db", "headwater.toml", "bus"] {
        assert!(dir.path().join("headwater-demo").join(file).exists(), "{file}");
    }
    assert!(!ended.out.contains('\x1b'), "plain in a pipe");
    assert_eq!(ended.err, "", "nothing to warn of");

    let ended = headwater(dir.path(), &["demo", "--events", "20", "--rate", "100", "--json"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let mut lines: Vec<Value> = ended.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let summary = lines.pop().unwrap();
    assert_eq!((&summary["lost"], summary["events"].as_u64()), (&0.into(), Some(lines.len() as u64)));
    assert!(lines.len() >= 20, "{summary}");
    assert!(lines.iter().all(|event| event["type"] != "read"), "the snapshot is not taken again");
    assert!(summary["p99_ms"].is_f64(), "{summary}");
}

#[test]
fn what_never_arrives_is_exit_code_1() {
    let dir = tempfile::tempdir().unwrap();
    let ended = headwater(dir.path(), &["demo", "--events", "20", "--rate", "100"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    // A row that no trigger saw.
    let shop = rusqlite::Connection::open(dir.path().join("headwater-demo/shop.db")).unwrap();
    let triggers: Vec<(String, String)> = {
        let mut found = shop
            .prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'customers'")
            .unwrap();
        found.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
    };
    assert!(!triggers.is_empty());
    for (name, _) in &triggers {
        shop.execute_batch(&format!("DROP TRIGGER \"{name}\"")).unwrap();
    }
    shop.execute_batch("INSERT INTO customers VALUES (99, 'Unseen', 'unseen@example.com')").unwrap();
    for (_, sql) in &triggers {
        shop.execute_batch(sql).unwrap();
    }
    drop(shop);
    let ended = headwater(dir.path(), &["demo", "--events", "5", "--rate", "100"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.out.contains("customers 99: never arrived: "), "{}", ended.out);
    assert!(ended.out.lines().last().unwrap().contains("lost 1"), "{}", ended.out);
}

#[test]
fn a_shop_that_cannot_trade_ends_the_demo() {
    let dir = tempfile::tempdir().unwrap();
    let ended = headwater(dir.path(), &["demo", "--events", "5", "--rate", "100"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let shop = rusqlite::Connection::open(dir.path().join("headwater-demo/shop.db")).unwrap();
    let refuse = "CREATE TRIGGER closed BEFORE INSERT ON orders BEGIN SELECT raise(ABORT, 'closed'); END";
    shop.execute_batch(refuse).unwrap();
    drop(shop);
    let ended = headwater(dir.path(), &["demo", "--events", "1000000", "--rate", "100"]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.err.contains("closed"), "{}", ended.err);
}

/// What `headwater demo` suggests to try, as it prints it.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_from_a_second_terminal_arrives_with_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("headwater-demo");
    let log = dir.path().join("demo.log");
    let arguments = ["demo", "--rate", "5", "--dir", place.to_str().unwrap()];
    let demo = Headwater::start(std::path::Path::new(PROGRAM), &arguments, &log);
    let printed = || std::fs::read_to_string(&log).unwrap_or_default();
    until("an order arrives", || printed().lines().any(|line| line.contains("OrderPlaced")));
    let suggested = printed().lines().find(|line| line.starts_with("  sqlite3 ")).map(str::to_owned).unwrap();
    let output = std::process::Command::new("sh").args(["-c", &suggested]).output().unwrap();
    assert!(output.status.success(), "{suggested}: {}", String::from_utf8_lossy(&output.stderr));
    let line = || printed().lines().find(|line| line.contains("→ me@example.com")).map(str::to_owned);
    until("the change arrives", || line().is_some());
    let line = line().unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    // When, which stream, what, which key, and how long it took.
    assert_eq!(words[1..4], ["customers", "update", "1"], "{line}");
    assert!(words[4].starts_with(|c: char| c.is_ascii_digit()), "{line}");
    assert!(line.contains("email: ") && line.ends_with("→ me@example.com"), "{line}");
    let status = demo.stop(PATIENCE).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", printed());
    assert!(printed().lines().last().unwrap().contains("lost 0"), "{}", printed());
}
