//! How far a snapshot is: on a terminal, in the log, and in `headwater status`.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::Path;

use headwater_testkit::binary::Headwater;
use support::{PATIENCE, PROGRAM, Shop, until};

/// A shop whose snapshot goes only as far as little memory allows while nothing can be published.
fn shop() -> Shop {
    let shop = Shop::new();
    shop.write_config("[runtime]\nin_flight_bytes = \"128KiB\"\nbatch_bytes = \"16KiB\"\n");
    let rows = "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 5000)";
    shop.sql(&format!("INSERT INTO orders {rows} SELECT id, 'placed' FROM n"));
    shop
}

/// Asks for a snapshot that comes no further than its middle until what is returned is dropped.
fn hold_a_snapshot(shop: &Shop) -> Vec<rusqlite::Connection> {
    let locks = shop.lock_bus();
    let asked = shop.headwater(&["snapshot", "CONFIG", "--source", "shop"]);
    assert_eq!(asked.code, Some(0), "{asked:?}");
    locks
}

/// `script` is a terminal to the program that it runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_a_bar() {
    let shop = shop();
    let run = format!("stty cols 120; exec {PROGRAM} run {}", shop.config_text());
    let arguments = ["-qfec", &run, "/dev/null"];
    let mut headwater = Headwater::start(Path::new("script"), &arguments, &shop.path().join("run.log"));
    headwater.ready(&shop.listen, PATIENCE).await.unwrap();
    let locks = hold_a_snapshot(&shop);
    let mut bar = None;
    until("a bar shows that some rows were read", || {
        let drawn = headwater.log_tail();
        let bars = drawn.split(['\r', '\n']).filter(|line| line.contains("shop: main.orders "));
        bar = bars.map(str::to_owned).find(|bar| bar.contains("█") && bar.contains("░"));
        bar.is_some()
    });
    let bar = bar.unwrap();
    let (_, figures) = bar.trim_end().rsplit_once("░ ").unwrap();
    let (rows, of) = figures.split_once('/').unwrap();
    assert!((1..5000).contains(&rows.replace(',', "").parse().unwrap()), "{bar}");
    assert_eq!(of, "5,000 rows", "how fast it goes cannot be told yet: {bar}");
    drop(locks);
    let status = headwater.stop(PATIENCE).await.unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_the_log_say_how_far_it_is() {
    let shop = shop();
    let headwater = shop.run().await;
    let locks = hold_a_snapshot(&shop);
    let mut text = String::new();
    until("the status shows that some rows were read", || {
        text = shop.headwater(&["status", "CONFIG"]).out;
        let row = text.lines().find(|line| line.starts_with("main.orders "));
        row.is_some_and(|row| !row.contains(" 0 "))
    });
    let cells = |start: &str| -> Vec<&str> {
        let line = text.lines().find(|line| line.starts_with(start));
        line.unwrap_or_else(|| panic!("{text}")).split_whitespace().collect()
    };
    assert_eq!(cells("SNAPSHOT OF"), ["SNAPSHOT", "OF", "ROWS", "OF", "ABOUT", "DONE"]);
    let [_, rows, about] = cells("main.orders ")[..] else { panic!("{text}") };
    assert!((1..5000).contains(&rows.replace(',', "").parse().unwrap()), "{text}");
    assert_eq!(about, "5,000");
    assert_eq!(cells("shop ")[1], "snapshot");
    until("it is logged", || headwater.log_tail().contains("reading the tables as they are"));
    assert!(!headwater.log_tail().contains("every table was read"), "{}", headwater.log_tail());
    drop(locks);
    until("its end is logged", || headwater.log_tail().contains("every table was read, in "));
    assert!(!shop.headwater(&["status", "CONFIG"]).out.contains("main.orders"));
    headwater.stop(PATIENCE).await.unwrap();
}
