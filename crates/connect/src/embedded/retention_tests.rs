//! What retention does when a part of it fails, and when the clock was wrong.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use headwater_core::ports::Bus;
use headwater_core::{Error, Event, Kind, Retention, StreamSpec};
use headwater_testkit::suites::bus::tools::{event, payloads, publish, spec, texts};

use super::crash_tests::read;
use super::retention::Retainer;
use super::writer::Command;
use super::{EmbeddedBus, EmbeddedConfig, segment};
use crate::store::now;

const HOUR: i64 = 3_600_000_000;

const SHORT: Retention =
    Retention { max_age: Some(Duration::from_hours(1)), max_bytes: None, compact: false };
const COMPACT: Retention = Retention { max_age: None, max_bytes: None, compact: true };

/// Each batch in a segment of its own, of which the last is empty.
async fn fill(dir: &Path, streams: &[(&str, Retention)], batches: Vec<Vec<Event>>) -> Retainer {
    let config = EmbeddedConfig { segment_bytes: 1, ..EmbeddedConfig::default() };
    let bus: Arc<dyn Bus> = Arc::new(EmbeddedBus::open(dir, config.clone()).await.unwrap());
    for (name, retention) in streams {
        bus.ensure(&StreamSpec { retention: *retention, ..spec(name, 1) }).await.unwrap();
    }
    for events in batches {
        publish(&bus, events, None).await;
    }
    Retainer::new(dir.join("bus"), config)
}

fn keyed(n: u64, key: &str) -> Event {
    Event { key: Some(key.to_owned().into_bytes().into()), ..event(&"compact".into(), 0, n) }
}

fn plain(stream: &str, n: u64) -> Event {
    event(&stream.into(), 0, n)
}

/// The newest offset of each key of the compacted stream.
async fn keys(dir: &Path, last: u64) -> BTreeMap<String, u64> {
    let records = read(dir, "compact", last).await.into_iter();
    let key = |event: Event| String::from_utf8(event.key.unwrap().to_vec()).unwrap();
    records.map(|record| (key(record.event), record.offset)).collect()
}

fn full() -> Error {
    Error::new(Kind::Full, "no room for it")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_in_one_segment_keeps_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let bus = dir.path().join("bus");
    let batches = vec![
        vec![plain("short", 0), plain("long", 0)],
        vec![plain("short", 1), keyed(0, "a")],
        vec![plain("short", 2)],
        vec![plain("short", 3), keyed(1, "a")],
    ];
    let streams = [("short", SHORT), ("long", Retention::default()), ("compact", COMPACT)];
    let mut retainer = fill(dir.path(), &streams, batches).await;
    let mut moves = 0;
    let retained = retainer.retain(now() + 2 * HOUR, &mut |step| match step {
        "move a chunk" => {
            moves += 1;
            Err(full())
        }
        "rewrite a segment" => Err(Error::new(Kind::Unavailable, "not the first")),
        _ => Ok(()),
    });
    assert_eq!(retained.unwrap_err().kind(), Kind::Unavailable, "the first of the errors");
    assert_eq!(moves, 1, "what is newer must not be moved before what is older");
    assert_eq!(segment::list(&bus).unwrap(), [1, 2, 4, 5]);
    assert_eq!(keys(dir.path(), 1).await, [("a".to_owned(), 1)].into());
    retainer.retain(now() + 2 * HOUR, &mut |_| Ok(())).unwrap();
    assert_eq!(segment::list(&bus).unwrap(), [1, 5]);
    assert_eq!(keys(dir.path(), 1).await, [("a".to_owned(), 1)].into());
    assert_eq!(payloads(&read(dir.path(), "long", 0).await), texts(0, 0..1));
}

#[tokio::test(flavor = "multi_thread")]
async fn old_segments_go_though_no_new_one_can_be_begun() {
    let dir = tempfile::tempdir().unwrap();
    let mut retainer = fill(dir.path(), &[("short", SHORT)], vec![vec![plain("short", 0)]]).await;
    let (writer, commands) = channel();
    let refuse = std::thread::spawn(move || match commands.recv() {
        Ok(Command::Roll { reply, .. }) => reply.send(Err(full())).unwrap(),
        _ => panic!("it asks for a new segment first"),
    });
    let done = tokio::task::spawn_blocking(move || retainer.once(&writer, now() + 2 * HOUR)).await.unwrap();
    assert_eq!(done.unwrap_err().kind(), Kind::Full);
    refuse.join().unwrap();
    assert_eq!(segment::list(&dir.path().join("bus")).unwrap(), [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_the_clock_loses_no_key() {
    for step in [-10 * HOUR, 10 * HOUR] {
        let dir = tempfile::tempdir().unwrap();
        let bus = dir.path().join("bus");
        let retention = Retention { compact: true, ..SHORT };
        let batches = vec![vec![keyed(0, "a")], vec![keyed(1, "b")], vec![keyed(2, "c")]];
        let mut retainer = fill(dir.path(), &[("compact", retention)], batches).await;
        let third = rusqlite::Connection::open(segment::path(&bus, 3)).unwrap();
        third.execute("UPDATE segment SET begun_at = begun_at + ?", [step]).unwrap();
        drop(third);
        let all = [("a".to_owned(), 0), ("b".to_owned(), 1), ("c".to_owned(), 2)].into();
        for later in [HOUR / 2, 2 * HOUR, 4 * HOUR] {
            retainer.retain(now() + later, &mut |_| Ok(())).unwrap();
            assert_eq!(keys(dir.path(), 2).await, all);
        }
        assert_eq!(segment::list(&bus).unwrap(), [4], "and keeps nothing for ever");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_kill_left_of_making_a_segment_anew_goes() {
    let dir = tempfile::tempdir().unwrap();
    let bus = dir.path().join("bus");
    let mut retainer = fill(dir.path(), &[("short", SHORT)], vec![vec![plain("short", 0)]]).await;
    let draft = |number| segment::path(&bus, number).with_extension("db.new");
    let log = bus.join("segment-00000001.db.new-wal");
    for file in [&draft(1), &draft(2), &draft(3), &log] {
        std::fs::write(file, "half of it").unwrap();
    }
    retainer.retain(now(), &mut |_| Ok(())).unwrap();
    assert!(!draft(1).exists() && !log.exists() && !draft(2).exists());
    assert!(draft(3).exists(), "the writer is at it");
    assert_eq!(segment::list(&bus).unwrap(), [1, 2]);
}
