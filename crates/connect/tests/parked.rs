//! The parked store keeps order, counts its bytes, and takes each change once.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use headwater_connect::parked::SqliteParkedStore;
use headwater_core::ports::{HoldsBack, Parked, ParkedStore};
use headwater_core::{EventId, Kind, Position};
use headwater_testkit::disk::SmallDisk;

async fn open(dir: &Path, budget: u64) -> SqliteParkedStore {
    SqliteParkedStore::open(dir, budget).await.unwrap()
}

fn key(key: &str) -> HoldsBack {
    HoldsBack::Key(key.as_bytes().to_vec().into())
}

fn parked(n: u8, order_key: Option<&str>) -> Parked {
    Parked {
        id: EventId::from_bytes([n; 16]),
        source: "shop".into(),
        stream: "orders".into(),
        holds: order_key.map_or(HoldsBack::Stream, key),
        position: Position::of(1, [u64::from(n)]),
        reason: format!("reason {n}"),
        change: vec![n; 100].into(),
        parked_at: i64::from(n),
    }
}

#[tokio::test]
async fn keeps_the_order_of_the_source_in_each_key_and_tells_keys_apart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 1 << 20).await;
    let first = vec![parked(9, Some("a")), parked(3, Some("b")), parked(7, None), parked(1, Some("a"))];
    store.park(first).await.unwrap();
    let other = Parked { source: "other".into(), ..parked(2, Some("a")) };
    store.park(vec![other.clone(), parked(5, Some("a"))]).await.unwrap();
    drop(store);
    let store = open(dir.path(), 1 << 20).await;
    let of_a = store.list("shop", "orders", &key("a"), 1 << 20).await.unwrap();
    assert_eq!(of_a, [parked(1, Some("a")), parked(5, Some("a")), parked(9, Some("a"))]);
    assert_eq!(store.list("shop", "orders", &key("a"), 0).await.unwrap(), [parked(1, Some("a"))]);
    assert_eq!(store.list("shop", "orders", &HoldsBack::Stream, 1 << 20).await.unwrap(), [parked(7, None)]);
    assert_eq!(store.list("other", "orders", &key("a"), 1 << 20).await.unwrap(), [other]);
    let most = async |count: usize| store.list("shop", "orders", &key("a"), count * 300).await;
    assert_eq!(most(2).await.unwrap(), [parked(1, Some("a")), parked(5, Some("a"))], "as many as fit");
    let usage = store.usage().await.unwrap();
    let lines: Vec<_> =
        usage.iter().map(|line| (&*line.source, line.holds.clone(), line.count, &*line.reason)).collect();
    assert_eq!(
        lines,
        [
            ("shop", key("b"), 1, "reason 3"),
            ("shop", HoldsBack::Stream, 1, "reason 7"),
            ("shop", key("a"), 3, "reason 1"),
            ("other", key("a"), 1, "reason 2"),
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
    assert_eq!(store.list("shop", "orders", &key("a"), 0).await.unwrap(), [parked(1, Some("a"))]);
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
    store
        .remove("shop", "orders", &[EventId::from_bytes([1; 16]), EventId::from_bytes([77; 16])])
        .await
        .unwrap();
    store.park(vec![parked(3, Some("a"))]).await.unwrap();
    assert_eq!(store.list("shop", "orders", &key("a"), 1 << 20).await.unwrap(), [parked(3, Some("a"))]);
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
    assert!(store.list("shop", "orders", &key("a"), usize::MAX).await.unwrap() == all);
}

#[tokio::test]
async fn no_key_an_empty_key_and_the_whole_stream_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 1 << 20).await;
    let holds = [HoldsBack::Nothing, key(""), HoldsBack::Stream];
    let all: Vec<Parked> =
        (1..).zip(&holds).map(|(n, holds)| Parked { holds: holds.clone(), ..parked(n, None) }).collect();
    store.park(all.clone()).await.unwrap();
    for (holds, one) in holds.iter().zip(all) {
        assert_eq!(store.list("shop", "orders", holds, 1 << 20).await.unwrap(), [one]);
    }
}

/// A UUID that an outbox row brought along may come from two sources of one database, or for two streams.
#[tokio::test]
async fn one_id_is_parked_once_for_each_source_and_stream() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 1 << 20).await;
    let ours = parked(1, Some("a"));
    let source = Parked { source: "other".into(), ..ours.clone() };
    let stream = Parked { stream: "invoices".into(), ..ours.clone() };
    store.park(vec![ours.clone(), source.clone(), stream.clone()]).await.unwrap();
    store.remove("shop", "orders", &[ours.id]).await.unwrap();
    assert_eq!(store.list("shop", "orders", &key("a"), 0).await.unwrap(), []);
    assert_eq!(store.list("other", "orders", &key("a"), 0).await.unwrap(), [source]);
    assert_eq!(store.list("shop", "invoices", &key("a"), 0).await.unwrap(), [stream]);
}

/// The file as it was before it had a version, and had positions.
const VERSION_1: &str = "
    CREATE TABLE parked (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, source TEXT NOT NULL,
        stream TEXT NOT NULL, order_key BLOB, reason TEXT NOT NULL, parked_at INTEGER NOT NULL,
        bytes INTEGER NOT NULL, change BLOB NOT NULL
    ) STRICT;
    CREATE INDEX parked_by_key ON parked (source, stream, order_key, seq);
    CREATE TABLE total (bytes INTEGER NOT NULL) STRICT;
    INSERT INTO total SELECT 0;
    CREATE TRIGGER parked_added AFTER INSERT ON parked
    BEGIN UPDATE total SET bytes = bytes + new.bytes; END;
    CREATE TRIGGER parked_removed AFTER DELETE ON parked
    BEGIN UPDATE total SET bytes = bytes - old.bytes; END;
    INSERT INTO parked (id, source, stream, order_key, reason, parked_at, bytes, change) VALUES
        (x'00000000000000000000000000000009', 'shop', 'orders', x'61', 'too large', 1, 300, x'01'),
        (x'00000000000000000000000000000003', 'shop', 'orders', x'61', 'waits', 2, 300, x'02'),
        (x'00000000000000000000000000000004', 'shop', 'orders', x'', 'no key', 3, 300, x'03'),
        (x'00000000000000000000000000000005', 'shop', 'orders', NULL, 'held', 4, 300, x'04');";

#[tokio::test]
async fn a_file_of_an_earlier_version_is_brought_up_with_all_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let file = rusqlite::Connection::open(dir.path().join("parked.db")).unwrap();
    file.execute_batch(VERSION_1).unwrap();
    let store = open(dir.path(), 1500).await;
    let new = parked(1, Some("a"));
    store.park(vec![new.clone()]).await.unwrap();
    let changes = async |holds: &HoldsBack| {
        let listed = store.list("shop", "orders", holds, 1 << 20).await.unwrap();
        listed.iter().map(|one| one.change[0]).collect::<Vec<_>>()
    };
    assert_eq!(changes(&key("a")).await, [1, 2, new.change[0]], "what was parked before stays before");
    assert_eq!((changes(&HoldsBack::Nothing).await, changes(&HoldsBack::Stream).await), (vec![3], vec![4]));
    let error = store.park(vec![parked(2, Some("a"))]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Full, "its bytes are counted still");
    drop(store);
    let usage = open(dir.path(), 1500).await.usage().await.unwrap();
    assert_eq!(usage.iter().map(|line| line.count).sum::<u64>(), 5, "it is brought up once");

    file.pragma_update(None, "user_version", 3).unwrap();
    let error = SqliteParkedStore::open(dir.path(), 1500).await.err().unwrap();
    assert!(error.to_string().contains("a newer headwater wrote it"), "{error}");
}
