//! From the start of one service's transaction to another service's handler, by query and over Kafka, at a steady
//! pace.
//!
//! Service A changes several rows of several tables and publishes one event in the same transaction; a relay of
//! its own process brings it to Kafka; service B handles it in a transaction of its own database. The databases
//! wait for their disks at each commit, unless told otherwise.

mod mysql;
mod postgres;
mod sqlite;

use std::future::Future;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use headwater::{Consumer, Event, Handler, StopToken};
use headwater_core::ports::Backlog;
use headwater_core::{Retention, StreamSpec};
use headwater_testkit::servers::Kafka;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{MissedTickBehavior, interval};

use super::report::{Case, percentile};
use super::{child, relay};

/// How the bench of messaging runs.
#[derive(Args, Clone)]
pub struct Messaging {
    /// How long each case runs
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Transactions a second, a case for each; SQLite only up to 500
    #[arg(long, default_values_t = [500, 2000])]
    rate: Vec<u64>,
    /// Which database both services have; all when left out
    #[arg(long)]
    database: Vec<Engine>,
    /// Databases that do not wait for their disks
    #[arg(long)]
    no_fsync: bool,
    /// With Kafka's transactions
    #[arg(long)]
    transactions: bool,
    /// End with one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// A database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    Postgres,
    Mariadb,
    Sqlite,
}

const PARTITIONS: u32 = 8;
const KEYS: u64 = 5000;

/// Seconds that are not measured.
const WARM: u64 = 5;

/// Connections of service A; those of service B, two of which are for what its consumer does besides.
const CLIENTS: u32 = 16;
const HANDLERS: u32 = 6;

/// Service A.
trait Orders: Clone + Send + Sync + 'static {
    /// Changes rows and publishes in one transaction.
    fn place(
        &self,
        id: i64,
        item: i32,
        placed: impl FnOnce() -> Event + Send,
    ) -> impl Future<Output = ()> + Send;
}

/// Live at each rate, on each database.
pub async fn messaging(how: &Messaging) -> Vec<Case> {
    // In so short a run the compiler that makes the fastest code takes more of two cores than it saves.
    let kafka = Kafka::settings().java("-XX:TieredStopAtLevel=1").start().await.expect("Kafka starts");
    let all = [Engine::Postgres, Engine::Mariadb, Engine::Sqlite];
    let engines = if how.database.is_empty() { all.to_vec() } else { how.database.clone() };
    let mut cases = Vec::new();
    for engine in engines {
        for rate in &how.rate {
            match engine {
                Engine::Postgres => cases.push(postgres::live(how, *rate, &kafka).await),
                Engine::Mariadb => cases.push(mysql::live(how, *rate, &kafka).await),
                Engine::Sqlite if *rate <= 500 => cases.push(sqlite::live(how, *rate, &kafka).await),
                Engine::Sqlite => {}
            }
        }
    }
    cases
}

/// What one case is about.
struct Live<'a> {
    how: &'a Messaging,
    name: &'a str,
    rate: u64,
    kafka: &'a Kafka,
    /// Service A's database.
    url: &'a str,
    /// How many transactions A, and B, may have open at once.
    clients: u32,
    handlers: usize,
}

impl Live<'_> {
    /// Runs it: service A's transactions, and service B's handler, which says when it has an event.
    async fn run<O, I, H>(&self, orders: O, inbox: I, handler: impl FnOnce(Arrivals) -> H) -> Case
    where
        O: Orders,
        I: Backlog,
        H: Handler<I::Transaction>,
    {
        let Self { how, name, rate, kafka, .. } = *self;
        let stream = format!("orders-{name}-{rate}");
        // Kafka lets a new group wait for three seconds.
        let (warm, total) = ((rate * WARM) as usize, rate * (how.seconds + WARM));
        let job = relay::Job::new(self.url, &kafka.brokers(), &stream, total, how.transactions);
        let retention = Retention::default();
        let spec = StreamSpec { name: stream.as_str().into(), partitions: PARTITIONS, retention };
        let bus = relay::bus(&kafka.brokers(), &stream, false).await;
        bus.ensure(&spec).await.expect("a stream");
        let relaying = tokio::spawn(async move { child::start("relay-child", &job).await });
        let ((sender, mut latencies), stop) = (unbounded_channel(), StopToken::new());
        let consumer = Consumer::builder("features").bus(bus).streams([stream.as_str()]).inbox(inbox);
        let consumer = consumer.concurrency(self.handlers).build().expect("a consumer");
        let consuming = tokio::spawn(consumer.run(handler(Arrivals(sender)), stop.clone()));
        let attained = self.place(&orders, &stream, total).await;
        let mut measured = arrived(&mut latencies, warm, total as usize).await;
        stop.cancel();
        consuming.await.expect("no panic").expect("the consumer ran");
        let outcome = relaying.await.expect("no panic");
        measured.sort_by(f64::total_cmp);
        let with = if how.transactions { ", transactions" } else { "" };
        let with = if how.no_fsync { format!("{with}, no fsync") } else { with.to_owned() };
        let goal = if how.transactions { 1000 } else { 100 };
        let goal = format!("{rate}/s, p99 < {goal} ms");
        let mut case = Case::new(format!("messaging {name} {rate}/s{with}"), "events/s", goal);
        case.rate = attained;
        (case.p50_ms, case.p99_ms) = (percentile(&measured, 0.50), percentile(&measured, 0.99));
        (case.cpu_s, case.rss_mib) = (Some(outcome.cpu), outcome.rss_mib);
        case
    }

    /// Orders at a steady pace, each whether or not the one before is done; how many a second were begun.
    async fn place<O: Orders>(&self, orders: &O, stream: &str, total: u64) -> f64 {
        let (room, began) = (std::sync::Arc::new(Semaphore::new(self.clients as usize)), Instant::now());
        let mut ticks = interval(Duration::from_secs_f64(1.0 / self.rate as f64));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for id in 0..total {
            ticks.tick().await;
            let permit = std::sync::Arc::clone(&room).acquire_owned().await.expect("it stays open");
            let (orders, stream) = (orders.clone(), stream.to_owned());
            tokio::spawn(async move {
                let start = micros();
                let payload = serde_json::json!({
                    "id": id, "customer": 7, "total": 1990, "lines": [{ "line": 1 }, { "line": 2 }], "began": start
                });
                let placed = || Event::new(stream, "OrderPlaced").key(id % KEYS).payload(&payload);
                orders.place(id as i64, rand::random_range(0..9999), placed).await;
                drop(permit);
            });
        }
        total as f64 / began.elapsed().as_secs_f64()
    }
}

/// The milliseconds of each event, in the order in which they were handled, without the first.
async fn arrived(latencies: &mut UnboundedReceiver<f64>, warm: usize, total: usize) -> Vec<f64> {
    let mut arrived = Vec::with_capacity(total);
    while arrived.len() < total {
        let next = tokio::time::timeout(Duration::from_secs(60), latencies.recv()).await;
        arrived.push(next.expect("every event arrives").expect("the consumer goes on"));
    }
    arrived.split_off(warm)
}

/// Where service B says that it has an event.
#[derive(Clone)]
struct Arrivals(UnboundedSender<f64>);

/// What service B reads of an event.
#[derive(Deserialize)]
struct Placed {
    id: i64,
    began: i64,
}

impl Arrivals {
    fn arrived(&self, placed: &Placed) {
        let _ = self.0.send((micros() - placed.began) as f64 / 1000.0);
    }
}

fn micros() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros() as i64
}
