//! Retention is stopped before each of its steps, as by a kill: what readers see stays right, and the
//! next run ends what this one began.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use headwater_core::ports::{Bus, Start};
use headwater_core::{Error, Event, Kind, Record, Retention, StreamSpec};
use headwater_testkit::suites::bus::tools::{Reader, event, payloads, publish, spec, texts};

use super::retention::Retainer;
use super::{EmbeddedBus, EmbeddedConfig};

const HOUR: i64 = 3_600_000_000;

/// Some segments with a compacted stream, one that is kept for an hour, and one that is kept.
async fn fill(dir: &Path) {
    let config = EmbeddedConfig {
        segment_bytes: 30_000,
        retain_interval: Duration::from_hours(24),
        ..EmbeddedConfig::default()
    };
    let bus: Arc<dyn Bus> = Arc::new(EmbeddedBus::open(dir, config).await.unwrap());
    let compact = Retention { compact: true, ..Retention::default() };
    let short = Retention { max_age: Some(Duration::from_hours(1)), ..Retention::default() };
    for (name, retention) in [("compact", compact), ("short", short), ("long", Retention::default())] {
        bus.ensure(&StreamSpec { retention, ..spec(name, 1) }).await.unwrap();
    }
    let keyed = |n: u64| Event {
        key: Some((n % 37).to_string().into_bytes().into()),
        ..event(&"compact".into(), 0, n)
    };
    for batch in 0..20_u64 {
        let mut events: Vec<Event> = (batch * 100..batch * 100 + 100).map(keyed).collect();
        events.extend((batch * 5..batch * 5 + 5).map(|n| event(&"short".into(), 0, n)));
        // The long-lived stream keeps only some of the segments.
        let numbers = if batch < 10 { batch * 5..batch * 5 + 5 } else { 0..0 };
        events.extend(numbers.map(|n| event(&"long".into(), 0, n)));
        publish(&bus, events, None).await;
    }
}

pub(super) async fn read(dir: &Path, stream: &str, last: u64) -> Vec<Record> {
    let bus: Arc<dyn Bus> = Arc::new(EmbeddedBus::open_reader(dir, EmbeddedConfig::default()).await.unwrap());
    let mut reader = Reader::open(&bus, &stream.into(), None, Start::Beginning).await;
    let mut records: Vec<Record> = Vec::new();
    while records.last().is_none_or(|record| record.offset < last) {
        records.extend(reader.take_some().await);
    }
    assert!(records.is_sorted_by(|a, b| a.offset < b.offset));
    records
}

/// What must hold whenever a kill comes.
async fn check(dir: &Path) {
    let newest: BTreeMap<_, _> = read(dir, "compact", 1999)
        .await
        .into_iter()
        .map(|record| (record.event.key.unwrap(), record.offset))
        .collect();
    assert_eq!(newest.len(), 37);
    assert!(
        newest.values().all(|offset| *offset >= 2000 - 37),
        "an old event stands for its key: {newest:?}"
    );
    assert_eq!(payloads(&read(dir, "long", 49).await), texts(0, 0..50));
}

fn stopped() -> Error {
    Error::new(Kind::Internal, "stopped here")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_step_of_retention_loses_nothing() {
    let origin = tempfile::tempdir().unwrap();
    fill(origin.path()).await;
    let now = crate::store::now() + 2 * HOUR;
    let mut reached = Vec::new();
    for stop_at in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let bus = dir.path().join("bus");
        std::fs::create_dir(&bus).unwrap();
        for entry in std::fs::read_dir(origin.path().join("bus")).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), bus.join(entry.file_name())).unwrap();
        }
        let config = EmbeddedConfig::default();
        let mut steps = Vec::new();
        let run = Retainer::new(bus.clone(), config.clone()).retain(now, &mut |step| {
            steps.push(step);
            if steps.len() > stop_at { Err(stopped()) } else { Ok(()) }
        });
        check(dir.path()).await;
        // The next process sees only what is on disk.
        Retainer::new(bus.clone(), config).retain(now, &mut |_| Ok(())).unwrap();
        check(dir.path()).await;
        let left = super::segment::list(&bus).unwrap().len();
        assert!(left < super::segment::list(&origin.path().join("bus")).unwrap().len());
        for entry in std::fs::read_dir(&bus).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let Some(log) = name.strip_suffix("-wal") else { continue };
            assert!(bus.join(log).exists(), "{name} was left behind");
        }
        if run.is_ok() {
            break;
        }
        reached.extend(steps.get(stop_at).copied());
    }
    for step in
        ["move a chunk", "drop a segment", "drop a segment's log", "rewrite a segment", "forget deletions"]
    {
        assert!(reached.contains(&step), "no run was stopped at \"{step}\": {reached:?}");
    }
}
