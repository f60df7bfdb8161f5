//! What the embedded bus lets go, and what it keeps.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use headwater_connect::embedded::{EmbeddedBus, EmbeddedConfig};
use headwater_core::ports::{Bus, Delivery, Start};
use headwater_core::{Event, Record, Retention, StreamSpec};
use headwater_testkit::suites::bus::tools::{
    Reader, begin, checkpoint, event, events, payloads, publish, spec, texts,
};

const HOUR: i64 = 3_600_000_000;

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_micros()).unwrap()
}

/// A bus whose segments end after some 50 events, and which lets nothing go by itself.
async fn open(dir: &Path) -> (Arc<EmbeddedBus>, Arc<dyn Bus>) {
    let config = EmbeddedConfig {
        segment_bytes: 6_000,
        retain_interval: Duration::from_hours(24),
        ..EmbeddedConfig::default()
    };
    let bus = Arc::new(EmbeddedBus::open(dir, config).await.unwrap());
    (Arc::clone(&bus), bus)
}

async fn make(bus: &Arc<dyn Bus>, name: &str, retention: Retention) -> Arc<str> {
    let spec = StreamSpec { retention, ..spec(name, 1) };
    bus.ensure(&spec).await.unwrap();
    spec.name
}

fn by_age() -> Retention {
    Retention { max_age: Some(Duration::from_hours(1)), ..Retention::default() }
}

fn segments(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir.join("bus")).unwrap().map(|entry| entry.unwrap().file_name());
    names
        .filter(|name| {
            name.to_str().unwrap().starts_with("segment-") && name.to_str().unwrap().ends_with(".db")
        })
        .count()
}

/// All there is in a stream, read by a new reader.
async fn read(bus: &Arc<dyn Bus>, stream: &Arc<str>) -> Vec<Record> {
    let status = bus.status().await.unwrap();
    let count = status.streams.iter().find(|status| status.stream == *stream).unwrap().events;
    let mut reader = Reader::open(bus, stream, None, Start::Beginning).await;
    reader.take(usize::try_from(count).unwrap()).await
}

/// Reads until the event at `offset` has come.
async fn read_to(reader: &mut Reader, offset: u64) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    while records.last().is_none_or(|last| last.offset < offset) {
        if let Delivery::Batch { records: more, .. } = reader.next().await {
            records.extend(more);
        }
    }
    assert!(records.is_sorted_by(|a, b| a.offset < b.offset));
    records
}

#[tokio::test]
async fn a_new_segment_is_begun_and_readers_cross_over() {
    let dir = tempfile::tempdir().unwrap();
    let (_, bus) = open(dir.path()).await;
    let stream = make(&bus, "s", Retention::default()).await;
    let beside: Arc<dyn Bus> =
        Arc::new(EmbeddedBus::open_reader(dir.path(), EmbeddedConfig::default()).await.unwrap());
    let mut live = Reader::open(&beside, &stream, None, Start::Beginning).await;
    for batch in 0..50 {
        let numbers = batch * 10..batch * 10 + 10;
        publish(&bus, events(&stream, 0, numbers.clone()), Some(checkpoint("a", batch))).await;
        assert_eq!(payloads(&live.take(10).await), texts(0, numbers));
    }
    assert!(segments(dir.path()) > 8, "{}", segments(dir.path()));
    assert_eq!(payloads(&read(&bus, &stream).await), texts(0, 0..500));
    assert_eq!(begin(&bus, "a").await.unwrap(), Some(checkpoint("a", 49)));
    assert_eq!(begin(&bus, "b").await.unwrap(), None);
    let mut reader = Reader::open(&bus, &stream, None, Start::Time(event(&stream, 0, 333).time)).await;
    assert_eq!(payloads(&reader.take(167).await), texts(0, 333..500));
}

#[tokio::test]
async fn whole_segments_go_when_all_in_them_is_old() {
    let dir = tempfile::tempdir().unwrap();
    let (embedded, bus) = open(dir.path()).await;
    let stream = make(&bus, "s", by_age()).await;
    let mut slow = Reader::open(&bus, &stream, Some("slow"), Start::Beginning).await;
    for batch in 0..20 {
        publish(&bus, events(&stream, 0, batch * 10..batch * 10 + 10), Some(checkpoint("a", batch))).await;
    }
    let before = segments(dir.path());
    assert!(before > 2);
    embedded.retain(now() + HOUR / 2).await.unwrap();
    assert_eq!(segments(dir.path()), before);
    embedded.retain(now() + 2 * HOUR).await.unwrap(); // closes the last one, too
    embedded.retain(now() + 4 * HOUR).await.unwrap();
    assert_eq!(segments(dir.path()), 1);
    assert_eq!(read(&bus, &stream).await.len(), 0);
    assert_eq!(begin(&bus, "a").await.unwrap(), Some(checkpoint("a", 19)), "checkpoints stay");
    publish(&bus, events(&stream, 0, 200..210), None).await;
    let records = read(&bus, &stream).await;
    assert_eq!(payloads(&records), texts(0, 200..210));
    assert_eq!(records[0].offset, 200, "offsets are never given twice");
    // What was read ahead comes first, then what is left; `read_to` checks that offsets rise.
    read_to(&mut slow, 209).await;
}

#[tokio::test]
async fn rows_go_from_segments_that_others_keep() {
    let dir = tempfile::tempdir().unwrap();
    let (embedded, bus) = open(dir.path()).await;
    let (short, long) = (make(&bus, "short", by_age()).await, make(&bus, "long", Retention::default()).await);
    for n in 0..200 {
        publish(&bus, vec![event(&short, 0, n), event(&long, 0, n)], None).await;
    }
    let size = || -> u64 {
        let entries = std::fs::read_dir(dir.path().join("bus")).unwrap();
        entries.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    };
    let (count, bytes) = (segments(dir.path()), size());
    embedded.retain(now() + 2 * HOUR).await.unwrap();
    embedded.retain(now() + 4 * HOUR).await.unwrap();
    assert!(segments(dir.path()) >= count);
    assert!(size() <= bytes, "{} > {bytes}", size());
    assert_eq!(read(&bus, &short).await.len(), 0);
    assert_eq!(payloads(&read(&bus, &long).await), texts(0, 0..200));
}

#[tokio::test]
async fn the_oldest_go_when_a_stream_is_too_large() {
    let dir = tempfile::tempdir().unwrap();
    let (embedded, bus) = open(dir.path()).await;
    let limit = Retention { max_bytes: Some(20_000), ..Retention::default() };
    let stream = make(&bus, "s", limit).await;
    for n in 0..1000 {
        publish(&bus, events(&stream, 0, n..n + 1), None).await;
    }
    embedded.retain(now()).await.unwrap();
    let records = read(&bus, &stream).await;
    let bytes: usize = records.iter().map(|record| record.event.size()).sum();
    assert!((20_000..32_000).contains(&bytes), "{bytes} bytes are left");
    assert_eq!(payloads(&records), texts(0, 1000 - records.len() as u64..1000));
}

#[tokio::test]
async fn a_changed_retention_counts_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let (embedded, bus) = open(dir.path()).await;
    let stream = make(&bus, "s", Retention::default()).await;
    for n in 0..200 {
        publish(&bus, events(&stream, 0, n..n + 1), None).await;
    }
    embedded.retain(now() + 2 * HOUR).await.unwrap();
    assert_eq!(read(&bus, &stream).await.len(), 200);
    make(&bus, "s", by_age()).await;
    drop((embedded, bus));
    let (embedded, bus) = open(dir.path()).await;
    embedded.retain(now() + 2 * HOUR).await.unwrap();
    embedded.retain(now() + 4 * HOUR).await.unwrap();
    assert_eq!(read(&bus, &stream).await.len(), 0);
}

fn keyed(stream: &Arc<str>, n: u64, key: u64) -> Event {
    Event { key: Some(format!("key-{key}").into_bytes().into()), ..event(stream, 0, n) }
}

fn by_key(records: &[Record]) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
    let pair = |record: &Record| {
        let event = &record.event;
        (event.key.as_ref().unwrap().to_vec(), event.payload.as_ref().map(|payload| payload.to_vec()))
    };
    records.iter().map(pair).collect()
}

#[tokio::test]
async fn a_compacted_stream_keeps_the_newest_of_each_key() {
    let dir = tempfile::tempdir().unwrap();
    let (embedded, bus) = open(dir.path()).await;
    let stream = make(&bus, "s", Retention { compact: true, ..Retention::default() }).await;
    let mut behind = Reader::open(&bus, &stream, None, Start::Beginning).await;
    for n in 0..500 {
        let tombstone = n == 470;
        let event = keyed(&stream, n, if tombstone { 1 } else { n % 20 });
        let payload = event.payload.clone().filter(|_| !tombstone);
        publish(&bus, vec![Event { payload, ..event }], None).await;
        if n % 100 == 99 {
            embedded.retain(now()).await.unwrap();
        }
    }
    let all = read_to(&mut behind, 499).await;
    embedded.retain(now() + HOUR).await.unwrap();
    let records = read(&bus, &stream).await;
    assert!(records.len() < 100, "{} records are left", records.len());
    assert!(records.is_sorted_by(|a, b| a.offset < b.offset));
    assert_eq!(by_key(&records), by_key(&all));
    assert!(records.iter().all(|record| record.offset == record.event.position.numbers()[0]));
}

#[tokio::test]
async fn deletions_are_forgotten_after_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let (embedded, bus) = open(dir.path()).await;
    let stream = make(&bus, "s", Retention { compact: true, ..Retention::default() }).await;
    let tombstone = Event { payload: None, ..keyed(&stream, 1, 1) };
    publish(&bus, vec![keyed(&stream, 0, 1), tombstone], None).await;
    publish(&bus, (2..100).map(|n| keyed(&stream, n, 2)).collect(), None).await;
    let keys = async || by_key(&read(&bus, &stream).await).into_values().collect::<Vec<_>>();
    embedded.retain(now()).await.unwrap();
    assert_eq!(keys().await, [None, Some(b"0/99".to_vec())]);
    embedded.retain(now() + 23 * HOUR).await.unwrap();
    assert_eq!(keys().await, [None, Some(b"0/99".to_vec())]);
    embedded.retain(now() + 25 * HOUR).await.unwrap();
    assert_eq!(keys().await, [Some(b"0/99".to_vec())]);
}

#[tokio::test]
async fn a_segment_made_anew_is_not_mixed_with_the_log_of_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let (embedded, bus) = open(dir.path()).await;
    let (short, long) = (make(&bus, "short", by_age()).await, make(&bus, "long", Retention::default()).await);
    publish(&bus, vec![event(&short, 0, 0), event(&long, 0, 0)], None).await;
    // Somebody looks at the file while it is written, and keeps it open: its log stays.
    let path = dir.path().join("bus/segment-00000001.db");
    let log = dir.path().join("bus/segment-00000001.db-wal");
    let held = rusqlite::Connection::open(&path).unwrap();
    let count = |file: &rusqlite::Connection| -> i64 {
        file.query_row("SELECT count(*) FROM event", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(count(&held), 2);
    publish(&bus, events(&long, 0, 1..100), None).await;
    assert!(log.exists());
    embedded.retain(now() + 4 * HOUR).await.unwrap();
    assert!(!log.exists(), "the log of a file that is no more");
    assert_eq!(count(&rusqlite::Connection::open(&path).unwrap()), 100);
    drop(held);
    assert_eq!(count(&rusqlite::Connection::open(&path).unwrap()), 100);
    assert_eq!(payloads(&read(&bus, &long).await), texts(0, 0..100));
}
