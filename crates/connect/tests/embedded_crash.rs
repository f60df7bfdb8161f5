//! The embedded bus under kills, a full disk and a second process.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use headwater_connect::embedded::{EmbeddedBus, EmbeddedConfig};
use headwater_core::ports::{Bus, Opened, Published, Start, Writer};
use headwater_core::{Event, Kind, Record, Retention, StreamSpec};
use headwater_testkit::disk::SmallDisk;
use headwater_testkit::suites::bus::tools::{
    Reader, accept, checkpoint, event, events, kind, publish, spec, within, writer,
};

async fn open(dir: &Path) -> Arc<dyn Bus> {
    let config =
        EmbeddedConfig { segment_bytes: 300_000, lease: Duration::from_secs(2), ..EmbeddedConfig::default() };
    Arc::new(EmbeddedBus::open(dir, config).await.unwrap())
}

async fn open_reader(dir: &Path) -> Arc<dyn Bus> {
    Arc::new(EmbeddedBus::open_reader(dir, EmbeddedConfig::default()).await.unwrap())
}

/// All there is in a stream.
async fn read(bus: &Arc<dyn Bus>, stream: &str) -> Vec<Record> {
    let status = within(bus.status()).await.unwrap();
    let count = status.streams.iter().find(|status| &*status.stream == stream).unwrap().events;
    let mut reader = Reader::open(bus, &stream.into(), None, Start::Beginning).await;
    reader.take(usize::try_from(count).unwrap()).await
}

#[tokio::test]
async fn a_second_writer_is_refused_by_name_and_a_reader_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let bus = open(dir.path()).await;
    within(bus.ensure(&spec("s", 1))).await.unwrap();
    let error = EmbeddedBus::open(dir.path(), EmbeddedConfig::default()).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    let reader = open_reader(dir.path()).await;
    assert_eq!(kind(reader.writer("a").await), Kind::Refused);
    assert_eq!(kind(reader.ensure(&spec("other", 1)).await), Kind::Refused);
    drop(bus);
    open(dir.path()).await;
}

#[tokio::test]
async fn a_reader_of_an_empty_directory_is_told_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let error = EmbeddedBus::open_reader(dir.path(), EmbeddedConfig::default()).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.hint_text().unwrap().contains("headwater run"));
}

#[tokio::test]
async fn people_can_read_the_files_with_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let bus = open(dir.path()).await;
    within(bus.ensure(&spec("a", 2))).await.unwrap();
    within(bus.ensure(&spec("b", 2))).await.unwrap();
    publish(&bus, vec![event(&"b".into(), 1, 5)], Some(checkpoint("shop", 5))).await;
    let file = rusqlite::Connection::open(dir.path().join("bus/segment-00000001.db")).unwrap();
    let row: (String, u32, u64, String, String, String, String) = file
        .query_row("SELECT stream, partition, offset, time, kind, key, payload FROM events", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?))
        })
        .unwrap();
    let text = |text: &str| text.to_owned();
    let time = text("2023-11-14T22:13:20.005Z");
    assert_eq!(row, (text("b"), 1, 0, time, text("create"), text("key-5"), text("1/5")));
}

/// Events of sizes from nothing to some pages.
fn sized(stream: &Arc<str>, partition: u32, n: u64) -> Event {
    let size = (n * 7919 % 13) as usize;
    let size = if n.is_multiple_of(50) { 40_000 } else { size * 100 };
    let payload = format!("{partition}/{n}/{}", "x".repeat(size));
    Event { payload: Some(payload.into_bytes().into()), ..event(stream, partition, n) }
}

/// Not a test of its own: the process that the next one kills. It publishes for ever, in batches whose
/// checkpoint counts them, and says which are durable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by a_kill_loses_nothing_durable"]
async fn publishes_until_killed() {
    let Ok(dir) = std::env::var("HEADWATER_TEST_DIR") else { return };
    let bus = open(Path::new(&dir)).await;
    let stream = spec("s", 3).name;
    within(bus.ensure(&spec("s", 3))).await.unwrap();
    let Opened { writer, checkpoint: stored } = within(bus.writer("a")).await.unwrap();
    let mut batch = stored.map_or(0, |checkpoint| checkpoint.position.numbers()[0]);
    let mut in_flight = std::collections::VecDeque::new();
    loop {
        batch += 1;
        let numbers = (batch - 1) * 10..batch * 10;
        let events = numbers.flat_map(|n| (0..3).map(move |partition| (partition, n)));
        let events = events.map(|(partition, n)| sized(&stream, partition, n)).collect();
        in_flight.push_back((batch, accept(&*writer, events, Some(checkpoint("a", batch))).await));
        if in_flight.len() > 5 {
            let (batch, accepted) = in_flight.pop_front().unwrap();
            within(accepted.durable()).await.unwrap();
            println!("durable {batch}");
        }
    }
}

fn start_publisher(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "publishes_until_killed", "--ignored", "--nocapture"])
        .env("HEADWATER_TEST_DIR", dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Lets it publish until it said `count` times that a batch is durable, then kills it; the last it said.
fn kill_after(mut publisher: Child, count: usize) -> u64 {
    let lines = BufReader::new(publisher.stdout.take().unwrap()).lines().map_while(Result::ok);
    let durable = lines.filter_map(|line| line.rsplit_once("durable ")?.1.trim().parse::<u64>().ok());
    let mut last = 0;
    for (at, batch) in durable.enumerate() {
        last = batch;
        if at == count {
            publisher.kill().unwrap();
        }
    }
    publisher.wait().unwrap();
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_loses_nothing_durable() {
    let dir = tempfile::tempdir().unwrap();
    let mut most = 0;
    for round in 0..10_usize {
        let count = rand::random_range(1..40 + round * 10);
        let (path, killed) = (dir.path().to_owned(), tokio::task::spawn_blocking);
        let durable = within(killed(move || kill_after(start_publisher(&path), count))).await.unwrap();
        assert!(durable > most, "the publisher got nowhere");
        let bus = open_reader(dir.path()).await;
        let stored = within(bus.status()).await.unwrap().checkpoints.remove(0);
        let batches = stored.position.numbers()[0];
        assert_eq!(stored, checkpoint("a", batches));
        assert!(batches >= durable, "{durable} batches were durable, the checkpoint says {batches}");
        let records = read(&bus, "s").await;
        assert_eq!(records.len() as u64, batches * 30, "the checkpoint says {batches} batches");
        for partition in 0..3 {
            let of = records.iter().filter(|record| record.event.partition == Some(partition));
            for (n, record) in of.enumerate() {
                let expected = sized(&"s".into(), partition, n as u64);
                assert!(record.event == expected, "event {n} of partition {partition} is another");
            }
        }
        most = batches;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_fails_what_comes_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path(), 6) else { return };
    let filler = dir.path().join("filler");
    let mut filled = 3 << 20;
    std::fs::write(&filler, vec![0; filled]).unwrap();
    let bus = open(dir.path()).await;
    let stream = spec("s", 1).name;
    within(bus.ensure(&spec("s", 1))).await.unwrap();
    let mut batch = 0;
    let mut writer = writer(&bus, "a").await;
    for _ in 0..3 {
        let failed = within(publish_until_full(&*writer, &stream, batch)).await;
        // Everything of this source is held off, with the same reason.
        let later = within(writer.publish(events(&stream, 0, 0..1), Some(checkpoint("a", 99_999)))).await;
        assert_eq!(kind(later), Kind::Full);
        let stored = loop {
            match within(bus.writer("a")).await {
                Ok(opened) => {
                    writer = opened.writer;
                    break opened.checkpoint.unwrap();
                }
                // A segment was begun just then, and there is no room even to open it: make some.
                Err(error) => {
                    assert_eq!(error.kind(), Kind::Full);
                    filled -= 1 << 16;
                    std::fs::write(&filler, vec![0; filled]).unwrap();
                }
            }
        };
        assert_eq!(stored, checkpoint("a", failed), "what failed left nothing, what came before is there");
        let records = read(&bus, "s").await;
        assert_eq!(records.len() as u64, failed * 20);
        batch = failed;
    }
    std::fs::remove_file(&filler).unwrap();
    for batch in batch..batch + 10 {
        let events = (batch * 20..batch * 20 + 20).map(|n| sized(&stream, 0, n)).collect();
        publish(&bus, events, Some(checkpoint("a", batch + 1))).await;
    }
    let records = read(&bus, "s").await;
    let expected: Vec<Event> = (0..(batch + 10) * 20).map(|n| sized(&stream, 0, n)).collect();
    assert!(records.iter().map(|record| &record.event).eq(&expected));
    drop(bus);
    drop(disk);
}

/// Publishes batches from `batch` on, two in flight, until one fails; which did.
async fn publish_until_full(writer: &dyn Writer, stream: &Arc<str>, mut batch: u64) -> u64 {
    loop {
        let make = |batch: u64| (batch * 20..batch * 20 + 20).map(|n| sized(stream, 0, n)).collect();
        let first = within(writer.publish(make(batch), Some(checkpoint("a", batch + 1)))).await;
        let second = within(writer.publish(make(batch + 1), Some(checkpoint("a", batch + 2)))).await;
        for published in [first, second] {
            let durable = match published {
                Ok(Published::Accepted(accepted)) => within(accepted.durable()).await,
                Ok(Published::Rejected { rejections, .. }) => panic!("rejected: {rejections:?}"),
                Err(error) => Err(error),
            };
            match durable {
                Ok(_) => batch += 1,
                Err(error) => {
                    assert_eq!(error.kind(), Kind::Full, "{error}");
                    assert!(error.hint_text().is_some());
                    return batch;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_on_a_full_disk_harms_no_segment() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path(), 6) else { return };
    let bus = Arc::new(EmbeddedBus::open(dir.path(), EmbeddedConfig::default()).await.unwrap());
    let as_bus: Arc<dyn Bus> = bus.clone();
    let max_age = Some(Duration::from_hours(1));
    let short = StreamSpec { retention: Retention { max_age, ..Retention::default() }, ..spec("short", 1) };
    within(as_bus.ensure(&short)).await.unwrap();
    within(as_bus.ensure(&spec("long", 1))).await.unwrap();
    let long: Arc<str> = "long".into();
    publish(&as_bus, events(&short.name, 0, 0..10), None).await;
    publish(&as_bus, (0..1000).map(|n| sized(&long, 0, n)).collect(), None).await;
    // Closes the segment; later the short-lived stream's events are past their time in it.
    let hour = 3_600_000_000;
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now = i64::try_from(since.as_micros()).unwrap();
    within(bus.retain(now + 2 * hour)).await.unwrap();
    let filler = std::fs::File::create(dir.path().join("filler")).unwrap();
    let zeros = [0; 4096];
    while std::io::Write::write_all(&mut &filler, &zeros).is_ok() {}
    let mut failures = 0;
    while let Err(error) = within(bus.retain(now + 4 * hour)).await {
        assert_eq!(error.kind(), Kind::Full, "{error}");
        assert_eq!(read(&open_reader(dir.path()).await, "long").await.len(), 1000);
        failures += 1;
        let length = filler.metadata().unwrap().len();
        filler.set_len(length.checked_sub(1 << 17).expect("there is room by now")).unwrap();
    }
    assert!(failures > 3, "the disk was never full");
    assert_eq!(read(&as_bus, "short").await.len(), 0);
    let records = read(&as_bus, "long").await;
    let expected: Vec<Event> = (0..1000).map(|n| sized(&long, 0, n)).collect();
    assert!(records.iter().map(|record| &record.event).eq(&expected));
    drop((bus, as_bus));
    drop(disk);
}
