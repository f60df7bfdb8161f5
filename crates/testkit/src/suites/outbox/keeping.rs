//! What becomes of rows that are done, and that they cost nothing.

use std::time::Duration;

use headwater_core::ports::{ClaimedRow, NewEvent, OutboxStore, Outcome, ShelfFilter};

use super::Factory;
use super::tools::*;

/// No lock is held for long, and nothing goes that is not done.
pub async fn what_is_done_goes_after_its_retention_in_small_batches<F: Factory>(factory: &F) {
    factory.add_done(2_500).await;
    publish(factory, &[event("a", 1), event("b", 2), event("c", 3)]).await;
    lease(factory, "r").await;
    let rows = claim(factory).await;
    settle(factory, "r", &[settled(&rows[0], parked()), settled(&rows[1], retry(LONG))]).await;
    let store = factory.store();
    assert_eq!(within(store.clean(LONG)).await.unwrap(), 0, "they are too young");
    let mut batches = Vec::new();
    while batches.last() != Some(&0) {
        batches.push(within(store.clean(Duration::ZERO)).await.unwrap());
    }
    assert_eq!(batches.iter().sum::<u64>(), 2_500);
    assert!(batches.iter().all(|batch| *batch <= 1_000), "{batches:?}");
    let mut left = factory.states().await;
    left.sort();
    assert_eq!(left, ["new", "parked", "retrying"]);
}

/// So many rows are done.
pub(super) const MANY: u64 = 1_000_000;

/// What is published is never read again, however much of it there is.
pub async fn no_statement_walks_what_is_done<F: Factory>(factory: &F) {
    factory.add_done(MANY).await;
    let events: Vec<NewEvent> = (0..50).map(|n| event(&format!("k{n}"), n)).collect();
    publish(factory, &events).await;
    let before = factory.rows_read().await;
    lease(factory, "a").await;
    let rows = resume(factory).await.rows;
    assert_eq!(rows.len(), 50);
    let outcome = |n: usize| match n % 3 {
        0 => Outcome::Published,
        1 => retry(Duration::ZERO),
        _ => parked(),
    };
    let told: Vec<_> = rows.iter().enumerate().map(|(n, row)| settled(row, outcome(n))).collect();
    settle(factory, "a", &told).await;
    let again: Vec<ClaimedRow> = resume(factory).await.rows;
    assert_eq!(again.len(), 17, "those that are tried again");
    let shelf = factory.shelf("shop");
    assert_eq!(within(shelf.list(&ShelfFilter::default())).await.unwrap().len(), 33);
    assert_eq!(within(shelf.show(&ShelfFilter::default())).await.unwrap().len(), 33);
    assert_eq!(within(shelf.retry(&ShelfFilter::default())).await.unwrap(), 33);
    drop(shelf);
    let store = factory.store();
    assert_eq!(within(store.clean(LONG)).await.unwrap(), 0);
    let cleaned = within(store.clean(Duration::ZERO)).await.unwrap();
    assert!((1..=1_000).contains(&cleaned), "{cleaned}");
    drop(store);
    let read = factory.rows_read().await - before;
    assert!(read < 15_000, "{read} rows were read: some statement walks all that is done");
}
