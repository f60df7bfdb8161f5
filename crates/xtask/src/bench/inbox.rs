//! Handled events a second: a consumer whose handler writes one row, against the same rows written plainly.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use headwater::{Consumer, Failure, Handled, Handler, Received, StopToken};
use headwater_connect::embedded::{EmbeddedBus, EmbeddedConfig};
use headwater_connect::postgres::inbox::{PostgresInbox, script};
use headwater_core::ports::{Bus, Published};
use headwater_core::{Event, EventId, Position, Retention, StreamSpec, partition_of};
use headwater_testkit::servers::{Database, Postgres};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgPool, Transaction};

use super::report::{Case, median};
use super::{Handling, process};

const PARTITIONS: u32 = 8;
const KEYS: u64 = 1000;
const WORKERS: u64 = 8;

/// How many events share a transaction, in the consumer and in its baseline, and one of how many fails the first
/// two times.
const RUNS: [(&str, usize, Option<usize>, &str); 3] = [
    ("inbox 100", 100, None, ">= 5000 events/s"),
    ("inbox 100, 1 % fail", 100, Some(100), ""),
    ("inbox 1", 1, None, ""),
];

type Tx = Transaction<'static, sqlx::Postgres>;

#[derive(Clone, Default)]
struct Write {
    handled: Arc<AtomicU64>,
    fails: Option<usize>,
}

impl Handler<Tx> for Write {
    async fn handle(&self, tx: &mut Tx, event: &Received) -> Handled {
        write(tx, event.key().unwrap_or_default(), &event.record.event.payload.clone().unwrap_or_default())
            .await?;
        if self.fails.is_some_and(|one| event.attempt < 2 && event.record.offset % one as u64 == 7) {
            return Err(Failure::retry("told to"));
        }
        self.handled.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

async fn write(tx: &mut Tx, key: &str, payload: &[u8]) -> sqlx::Result<()> {
    let insert = sqlx::query("INSERT INTO effect (key, payload) VALUES ($1, $2)").bind(key).bind(payload);
    insert.execute(&mut **tx).await.map(drop)
}

/// A consumer on the embedded bus and PostgreSQL, which waits for its disk at each commit.
pub async fn inbox(how: &Handling) -> Vec<Case> {
    let settings = Postgres::settings().set("fsync", "on").set("shared_buffers", "256MB");
    let server = settings.start().await.expect("PostgreSQL starts");
    let mut cases = Vec::new();
    for (name, batch, fails, goal) in RUNS {
        let events = if batch == 1 { how.events / 10 } else { how.events };
        let (mut rates, mut baseline, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..how.rounds {
            baseline.push(plainly(&database(&server).await, events, batch as u64).await);
            let (rate, used) = consumed(&database(&server).await, events, batch, fails).await;
            rates.push(rate);
            cpu.push(used);
        }
        let ratios = rates.iter().zip(&baseline).map(|(rate, base)| rate / base).collect();
        let mut case = Case::new(name, "events/s", goal);
        case.rate = median(rates);
        case.baseline = Some("the rows without an inbox".into());
        case.baseline_rate = Some(median(baseline));
        case.ratio = Some(median(ratios));
        case.cpu_s = Some(median(cpu));
        cases.push(case);
    }
    cases
}

async fn database(server: &Postgres) -> Database {
    let database = server.create_database().await.expect("a database");
    let effect = "CREATE TABLE effect (id bigserial PRIMARY KEY, key text NOT NULL, payload bytea NOT NULL)";
    database.execute(&format!("{effect}; {}", script("public"))).await.expect("the tables");
    database
}

async fn pool(database: &Database) -> PgPool {
    let options = PgPoolOptions::new().max_connections(WORKERS as u32 + 2).test_before_acquire(false);
    options.connect(database.unix_url()).await.expect("a pool")
}

/// The rows in as many transactions on as many connections.
async fn plainly(database: &Database, events: u64, batch: u64) -> f64 {
    let (pool, began) = (pool(database).await, Instant::now());
    let worker = |worker: u64| {
        let pool = pool.clone();
        async move {
            let (mine, mut at) = (events / WORKERS, 0);
            while at < mine {
                let mut tx = pool.begin().await?;
                for n in at..(at + batch).min(mine) {
                    write(&mut tx, &format!("key-{}", (worker + n) % KEYS), &payload(n)).await?;
                }
                tx.commit().await?;
                at += batch;
            }
            Ok::<_, sqlx::Error>(())
        }
    };
    let workers: Vec<_> = (0..WORKERS).map(|number| tokio::spawn(worker(number))).collect();
    for worker in workers {
        worker.await.expect("no panic").expect("the rows are written");
    }
    events as f64 / began.elapsed().as_secs_f64()
}

/// From the start of the consumer until every effect is committed: events a second, and CPU seconds.
async fn consumed(database: &Database, events: u64, batch: usize, fails: Option<usize>) -> (f64, f64) {
    let dir = tempfile::tempdir().expect("a directory");
    let bus = EmbeddedBus::open(dir.path(), EmbeddedConfig::default()).await.expect("a bus");
    let bus: Arc<dyn Bus> = Arc::new(bus);
    publish(&bus, events).await;
    let (pool, handler, stop) = (pool(database).await, Write { fails, ..Write::default() }, StopToken::new());
    let consumer = Consumer::builder("bench")
        .bus(bus)
        .streams(["bench"])
        .inbox(PostgresInbox::new(pool.clone()))
        .concurrency(WORKERS as usize)
        .batch(batch);
    let consumer = consumer.build().expect("a consumer");
    let (began, before) = (Instant::now(), cpu());
    let running = tokio::spawn(consumer.run(handler.clone(), stop.clone()));
    while handler.handled.load(Ordering::Relaxed) < events || count(&pool).await < events as i64 {
        assert!(!running.is_finished(), "the consumer ended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    running.await.expect("no panic").expect("it stops in good order");
    let (seconds, used) = (began.elapsed().as_secs_f64(), cpu() - before);
    assert_eq!(count(&pool).await, events as i64, "each effect once");
    (events as f64 / seconds, used)
}

async fn count(pool: &PgPool) -> i64 {
    let count = sqlx::query_scalar("SELECT count(*) FROM effect").fetch_one(pool).await;
    count.expect("a count")
}

async fn publish(bus: &Arc<dyn Bus>, events: u64) {
    let stream: Arc<str> = "bench".into();
    let spec =
        StreamSpec { name: Arc::clone(&stream), partitions: PARTITIONS, retention: Retention::default() };
    bus.ensure(&spec).await.expect("a stream");
    let writer = bus.writer("bench").await.expect("a writer").writer;
    let numbers: Vec<u64> = (0..events).collect();
    for chunk in numbers.chunks(1000) {
        let batch = chunk.iter().map(|n| event(&stream, *n)).collect();
        match writer.publish(batch, None).await.expect("the bus takes events") {
            Published::Accepted(accepted) => drop(accepted.durable().await.expect("durable")),
            Published::Rejected { rejections, .. } => panic!("{rejections:?}"),
        }
    }
}

fn event(stream: &Arc<str>, n: u64) -> Event {
    let key = format!("key-{}", n % KEYS);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock");
    let time = i64::try_from(since.as_micros()).expect("a time");
    Event {
        id: EventId::derive(time, &[&n.to_be_bytes()]),
        stream: Arc::clone(stream),
        partition: Some(partition_of(key.as_bytes(), PARTITIONS)),
        kind: "Placed".into(),
        key: Some(Bytes::from(key)),
        payload: Some(Bytes::from(payload(n))),
        headers: Default::default(),
        time,
        position: Position::ZERO,
    }
}

/// About 200 bytes.
fn payload(n: u64) -> Vec<u8> {
    format!("{{\"id\":{n},\"note\":\"{}\"}}", "order placed by web checkout ".repeat(6)).into_bytes()
}

/// CPU seconds of this process.
fn cpu() -> f64 {
    process::cpu_of(std::process::id()).unwrap_or(0.0)
}
