//! How fast the embedded bus is here: `cargo run --release -p headwater-connect --example embedded_rate [DIR]`.
//!
//! Prints, for 600-byte events over 8 partitions: events a second and CPU an event of publishing and of
//! reading, the time from commit to consumer, and what an idle reader costs.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use headwater_connect::embedded::{EmbeddedBus, EmbeddedConfig};
use headwater_core::ports::{Bus, Delivery, Opened, Published, Start, Subscribe, Subscription};
use headwater_core::{Checkpoint, Event, EventId, Position, Retention, StreamSpec};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "target/embedded-rate".into());
    let dir = Path::new(&dir);
    for (batch, count) in [(1, 20_000), (100, 300_000), (1000, 1_000_000), (10_000, 1_000_000)] {
        let bus = fresh(dir).await?;
        let (start, cpu) = (Instant::now(), cpu_seconds()?);
        publish(&bus, batch, count).await?;
        report(&format!("publish, batches of {batch}"), count, start, cpu)?;
        if count == 1_000_000 {
            let (start, cpu) = (Instant::now(), cpu_seconds()?);
            read(&bus, count).await?;
            report("read", count, start, cpu)?;
        }
    }
    let bus = fresh(dir).await?;
    latency("in the same process", &bus, &bus).await?;
    let beside: Arc<dyn Bus> = Arc::new(EmbeddedBus::open_reader(dir, EmbeddedConfig::default()).await?);
    latency("polling, as another process", &bus, &beside).await?;
    for (name, reader) in [("the same", &bus), ("another", &beside)] {
        for group in [None, Some("idle".to_owned())] {
            let kind = if group.is_some() { "a group member" } else { "a reader" };
            let mut subscription = reader.subscribe(subscribe(group)).await?;
            let cpu = cpu_seconds()?;
            let _ = tokio::time::timeout(Duration::from_secs(10), async {
                while subscription.next().await.is_ok() {}
            })
            .await;
            println!("idle, {kind} in {name} process: {:.2} % of a core", (cpu_seconds()? - cpu) * 10.0);
        }
    }
    Ok(())
}

fn subscribe(group: Option<String>) -> Subscribe {
    Subscribe { streams: vec!["orders".into()], group, start: Start::End }
}

async fn fresh(dir: &Path) -> Result<Arc<dyn Bus>> {
    if dir.exists() {
        std::fs::remove_dir_all(dir)?;
    }
    let bus = EmbeddedBus::open(dir, EmbeddedConfig::default()).await?;
    let spec = StreamSpec { name: "orders".into(), partitions: 8, retention: Retention::default() };
    bus.ensure(&spec).await?;
    Ok(Arc::new(bus))
}

fn event(stream: &Arc<str>, kind: &Arc<str>, payload: &Bytes, n: u64) -> Event {
    Event {
        id: EventId::derive(n as i64, &[b"rate", &n.to_be_bytes()]),
        stream: Arc::clone(stream),
        partition: Some(((n * 2_654_435_761) >> 16) as u32 % 8),
        kind: Arc::clone(kind),
        key: Some(Bytes::copy_from_slice(&n.to_be_bytes())),
        payload: Some(payload.clone()),
        headers: Default::default(),
        time: now(),
        position: Position::of(1, [n, 0, 0]),
    }
}

/// Publishes `count` events, 16 batches in flight.
async fn publish(bus: &Arc<dyn Bus>, batch: u64, count: u64) -> Result<()> {
    let (stream, kind, payload) = ("orders".into(), "update".into(), Bytes::from(vec![b'x'; 560]));
    let Opened { writer, .. } = bus.writer("rate").await?;
    let mut in_flight = std::collections::VecDeque::new();
    for from in (0..count).step_by(batch as usize) {
        let events = (from..from + batch).map(|n| event(&stream, &kind, &payload, n)).collect();
        let position = Position::of(1, [from + batch, 0, 0]);
        let at = Checkpoint { source: "rate".into(), position, state: serde_json::json!({"lsn": from}) };
        let Published::Accepted(accepted) = writer.publish(events, Some(at)).await? else {
            return Err("rejected".into());
        };
        in_flight.push_back(accepted);
        if in_flight.len() > 16
            && let Some(oldest) = in_flight.pop_front()
        {
            oldest.durable().await?;
        }
    }
    for accepted in in_flight {
        accepted.durable().await?;
    }
    Ok(())
}

async fn read(bus: &Arc<dyn Bus>, count: u64) -> Result<()> {
    let all = Subscribe { start: Start::Beginning, ..subscribe(None) };
    let mut subscription = bus.subscribe(all).await?;
    let mut read = 0;
    while read < count {
        read += batch(&mut *subscription).await?.len() as u64;
    }
    Ok(())
}

/// The times of the events of the next batch.
async fn batch(subscription: &mut dyn Subscription) -> Result<Vec<i64>> {
    loop {
        if let Delivery::Batch { records, .. } = subscription.next().await? {
            return Ok(records.iter().map(|record| record.event.time).collect());
        }
    }
}

/// 500 events a second for 10 seconds, one by one; the time of each until a consumer has it.
async fn latency(name: &str, bus: &Arc<dyn Bus>, reader: &Arc<dyn Bus>) -> Result<()> {
    const EVENTS: usize = 5_000;
    let mut subscription = reader.subscribe(subscribe(None)).await?;
    let Opened { writer, .. } = bus.writer("latency").await?;
    let publisher = tokio::spawn({
        async move {
            let (stream, kind, payload) = ("orders".into(), "update".into(), Bytes::from(vec![b'x'; 560]));
            let mut tick = tokio::time::interval(Duration::from_millis(2));
            for n in 0..EVENTS as u64 {
                tick.tick().await;
                let published = writer.publish(vec![event(&stream, &kind, &payload, n)], None).await;
                if let Ok(Published::Accepted(accepted)) = published {
                    let _ = accepted.durable().await;
                }
            }
        }
    });
    let cpu = cpu_seconds()?;
    let mut times = Vec::new();
    while times.len() < EVENTS {
        let published = batch(&mut *subscription).await?;
        times.extend(published.iter().map(|time| (now() - time) as f64 / 1000.0));
    }
    publisher.await?;
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or_default();
    let (p50, p99, cpu) = (at(0.5), at(0.99), (cpu_seconds()? - cpu) * 10.0);
    println!("publish to consumer, {name}: p50 {p50:.2} ms, p99 {p99:.2} ms, {cpu:.1} % of a core");
    Ok(())
}

fn report(what: &str, count: u64, start: Instant, cpu: f64) -> Result<()> {
    let (rate, cpu) = (count as f64 / start.elapsed().as_secs_f64(), cpu_seconds()? - cpu);
    println!("{what}: {rate:.0} events/s, {:.2} us CPU an event", cpu * 1e6 / count as f64);
    Ok(())
}

fn now() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_micros() as i64
}

/// User and system time of this process, from fields 14 and 15 of proc_pid_stat(5), in 1/100 s.
fn cpu_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(") ").ok_or("no stat")?;
    let ticks: Vec<f64> =
        fields.split(' ').skip(11).take(2).map(str::parse).collect::<std::result::Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}
