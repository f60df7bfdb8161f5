//! A transaction of any size goes through a fixed amount of memory (invariant 7).

#![allow(clippy::unwrap_used)] // clippy.toml knows tests by their attribute only

mod common;

use common::{PATIENCE, Place};
use headwater_core::ports::{Delivery, Subscription};
use headwater_testkit::servers::Postgres;

/// How many rows of 2 kB the transaction has: 160 MB, and more as JSON.
const ROWS: usize = 80_000;

/// What the process may ever have held.
const MEMORY: u64 = 120 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_larger_than_the_memory_it_may_take_arrives_whole() {
    let server = Postgres::settings().set("logical_decoding_work_mem", "1MB").start().await.unwrap();
    let database = server.create_database().await.unwrap();
    database.execute("create table page (id int primary key, text text not null)").await.unwrap();
    database.execute("alter table page alter text set storage external").await.unwrap();
    let place = Place::new(&format!(
        "[source.books]\nkind = \"postgres\"\nurl = \"{}\"\ntables = [\"page\"]\n\
         [stream.pages]\nfrom = \"books.page\"\ncolumns = \"*\"\n",
        database.url()
    ));
    let headwater = place.run().await;
    let fill = format!("insert into page select n, repeat('x', 2000) from generate_series(1, {ROWS}) n");
    database.execute(&fill).await.unwrap();
    let mut events = place.read(&["pages"]).await;
    let mut arrived = 0;
    while arrived < ROWS {
        arrived += count(&mut *events).await;
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", headwater.pid().unwrap())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak << 10 <= MEMORY, "{peak} KiB at the most, through {ROWS} rows in one transaction");
    headwater.stop(PATIENCE).await.unwrap();
}

/// How many events the next batch has.
async fn count(events: &mut dyn Subscription) -> usize {
    match tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap() {
        Delivery::Batch { records, .. } => records.len(),
        _ => 0,
    }
}
