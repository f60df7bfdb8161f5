//! The parked store keeps order, counts its bytes, and takes each change once.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use headwater_connect::parked::SqliteParkedStore;
use headwater_core::ports::{Parked, ParkedStore};
use headwater_core::{EventId, Kind};
use headwater_testkit::disk::SmallDisk;

async fn open(dir: &Path, budget: u64) -> SqliteParkedStore {
    SqliteParkedStore::open(dir, budget).await.unwrap()
}

fn parked(n: u8, order_key: Option<&str>) -> Parked {
    Parked {
        id: EventId::from_bytes([n; 16]),
        source: "shop".into(),
        stream: "orders".into(),
        order_key: order_key.map(|key| key.as_bytes().to_vec().into()),
        reason: format!("reason {n}"),
        change: vec![n; 100].into(),
        parked_at: i64::from(n),
    }
}

#[tokio::test]
async fn keeps_the_order_of_each_key_and_tells_keys_apart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 1 << 20).await;
    let first = vec![parked(9, Some("a")), parked(3, Some("b")), parked(7, None), parked(1, Some("a"))];
    store.park(first).await.unwrap();
    let other = Parked { source: "other".into(), ..parked(2, Some("a")) };
    store.park(vec![other.clone(), parked(5, Some("a"))]).await.unwrap();
    drop(store);
    let store = open(dir.path(), 1 << 20).await;
    let of_a = store.list("shop", "orders", Some(b"a"), 1 << 20).await.unwrap();
    assert_eq!(of_a, [parked(9, Some("a")), parked(1, Some("a")), parked(5, Some("a"))]);
    assert_eq!(store.list("shop", "orders", Some(b"a"), 0).await.unwrap(), [parked(9, Some("a"))]);
    assert_eq!(store.list("shop", "orders", None, 1 << 20).await.unwrap(), [parked(7, None)]);
    assert_eq!(store.list("other", "orders", Some(b"a"), 1 << 20).await.unwrap(), [other]);
    let most = |count: usize| store.list("shop", "orders", Some(b"a"), count * 300);
    assert_eq!(most(2).await.unwrap(), [parked(9, Some("a")), parked(1, Some("a"))], "as many as fit");
    let usage = store.usage().await.unwrap();
    let lines: Vec<_> = usage
        .iter()
        .map(|line| (&*line.source, line.order_key.as_deref(), line.count, &*line.reason))
        .collect();
    assert_eq!(
        lines,
        [
            ("shop", Some(&b"a"[..]), 3, "reason 9"),
            ("shop", Some(&b"b"[..]), 1, "reason 3"),
            ("shop", None, 1, "reason 7"),
            ("other", Some(&b"a"[..]), 1, "reason 2"),
        ]
    );
}

#[tokio::test]
async fn what_is_parked_is_counted_while_somebody_parks() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 1 << 20).await;
    let other = Parked { source: "other".into(), ..parked(3, Some("a")) };
    store.park(vec![parked(1, Some("a")), parked(2, None), other]).await.unwrap();
    let writing = rusqlite::Connection::open(dir.path().join("parked.db")).unwrap();
    writing.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let counts = store.counts().await.unwrap();
    let counts: Vec<_> = counts.iter().map(|count| (&*count.source, &*count.stream, count.count)).collect();
    assert_eq!(counts, [("other", "orders", 1), ("shop", "orders", 2)]);
}

#[tokio::test]
async fn parking_again_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 1 << 20).await;
    store.park(vec![parked(1, Some("a")), parked(2, Some("a"))]).await.unwrap();
    let before = store.usage().await.unwrap();
    let again = Parked { reason: "another".into(), parked_at: 99, ..parked(1, Some("a")) };
    store.park(vec![again.clone(), again]).await.unwrap();
    assert_eq!(store.usage().await.unwrap(), before);
    assert_eq!(store.list("shop", "orders", Some(b"a"), 0).await.unwrap(), [parked(1, Some("a"))]);
}

#[tokio::test]
async fn over_the_budget_nothing_is_added_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 800).await;
    store.park(vec![parked(1, Some("a")), parked(2, Some("b"))]).await.unwrap();
    let before = store.usage().await.unwrap();
    let error = store.park(vec![parked(3, Some("a")), parked(4, Some("a"))]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Full);
    assert!(error.hint_text().unwrap().contains("`budget` of [parked]"), "{error}");
    assert_eq!(store.usage().await.unwrap(), before);
    store.park(vec![parked(1, Some("a"))]).await.unwrap(); // is there already: needs no room
    store.remove(&[EventId::from_bytes([1; 16]), EventId::from_bytes([77; 16])]).await.unwrap();
    store.park(vec![parked(3, Some("a"))]).await.unwrap();
    assert_eq!(store.list("shop", "orders", Some(b"a"), 1 << 20).await.unwrap(), [parked(3, Some("a"))]);
}

#[tokio::test]
async fn on_a_full_disk_nothing_is_added_and_nothing_lost_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path(), 4) else { return };
    let store = open(dir.path(), 1 << 30).await;
    store.park(vec![parked(1, Some("a"))]).await.unwrap();
    let before = store.usage().await.unwrap();
    let filler = disk.fill();
    let large = Parked { change: vec![2; 1 << 20].into(), ..parked(2, Some("a")) };
    let error = store.park(vec![large.clone(), parked(3, Some("a"))]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Full, "{error}");
    assert!(error.hint_text().is_some() && error.is_retryable(), "{error}");
    assert_eq!(store.usage().await.unwrap(), before);
    drop(filler);
    store.park(vec![large.clone(), parked(3, Some("a"))]).await.unwrap();
    drop(store);
    let store = open(dir.path(), 1 << 30).await;
    let all = [parked(1, Some("a")), large, parked(3, Some("a"))];
    assert!(store.list("shop", "orders", Some(b"a"), usize::MAX).await.unwrap() == all);
}
