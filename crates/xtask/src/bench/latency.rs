//! Commit to consumer, and what it costs when nothing happens.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use headwater_core::ports::{Bus, Delivery, Start, Subscribe};
use headwater_testkit::servers::{Database, Kafka};
use sqlx::Executor;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::child::{Job, Target, pipeline};
use super::report::{Case, percentile};
use super::rows::Loaded;
use super::{Latency, Transport, process};

/// Commit to consumer over the embedded bus and over Kafka.
pub async fn latency(how: &Latency) -> Vec<Case> {
    let kafka = Kafka::start().await.expect("Kafka starts");
    let stream = "bench".to_owned();
    let targets =
        [("kafka", Target::Kafka { brokers: kafka.brokers(), stream }), ("embedded", Target::Embedded)];
    let mut cases = Vec::new();
    for (name, target) in targets {
        cases.push(commits(how, name, target).await);
    }
    cases
}

async fn commits(how: &Latency, name: &str, target: Target) -> Case {
    let running = Running::start(target).await;
    let (sender, mut latencies) = tokio::sync::mpsc::unbounded_channel();
    let consumer = tokio::spawn(consume(running.bus.clone(), sender));
    let total = how.rate * how.seconds;
    let mut arrived = Vec::new();
    insert(&running.loaded.database, 1, how.rate, how.rate).await; // one second to warm up
    insert(&running.loaded.database, how.rate + 1, total, how.rate).await;
    while (arrived.len() as u64) < total + how.rate {
        let next = tokio::time::timeout(Duration::from_secs(30), latencies.recv()).await;
        arrived.push(next.expect("every event arrives").expect("the consumer goes on"));
    }
    consumer.abort();
    let mut measured = arrived.split_off(how.rate as usize);
    measured.sort_by(f64::total_cmp);
    let mut case = Case::new(format!("latency {name}"), "events/s", "p50 <= 10, p99 <= 50");
    case.rate = how.rate as f64;
    case.p50_ms = percentile(&measured, 0.50);
    case.p99_ms = percentile(&measured, 0.99);
    case.rss_mib = process::peak_rss_mib(std::process::id());
    running.stop().await;
    case
}

/// Single-row transactions at a steady pace.
async fn insert(database: &Database, first: u64, count: u64, rate: u64) {
    let mut connection = database.connect().await.expect("a connection");
    // As an application commits: the server sends what is flushed, and the benches' server flushes late.
    connection.execute("set synchronous_commit = on").await.expect("a setting");
    let mut ticks = interval(Duration::from_secs_f64(1.0 / rate as f64));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for id in first..first + count {
        ticks.tick().await;
        let sql =
            format!("insert into bench values ({id}, 1, 1.5, 'placed', 'a note of some length', now())");
        connection.execute(sqlx::AssertSqlSafe(sql)).await.expect("an insert");
    }
}

/// Sends each event's milliseconds since its commit.
async fn consume(bus: Arc<dyn Bus>, latencies: UnboundedSender<f64>) {
    let subscribe = Subscribe { streams: vec!["bench".into()], group: None, start: Start::Beginning };
    let mut subscription = bus.subscribe(subscribe).await.expect("a subscription");
    loop {
        if let Delivery::Batch { records, .. } = subscription.next().await.expect("a delivery") {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros() as i64;
            for record in records {
                let _ = latencies.send((now - record.event.time) as f64 / 1000.0);
            }
        }
    }
}

/// CPU while nothing happens, and the time from start to the first event.
pub async fn idle(how: &Latency) -> Vec<Case> {
    let start = Instant::now();
    let running = Running::start(Target::Embedded).await;
    let subscribe = Subscribe { streams: vec!["bench".into()], group: None, start: Start::Beginning };
    insert(&running.loaded.database, 1, 1, 1).await;
    let mut subscription = running.bus.subscribe(subscribe).await.expect("a subscription");
    while !matches!(subscription.next().await.expect("a delivery"), Delivery::Batch { .. }) {}
    let mut first = Case::new("start to first event", "starts/s", "under 1 s");
    let seconds = start.elapsed().as_secs_f64() - running.server_seconds;
    first.rate = 1.0 / seconds;
    first.p50_ms = Some(seconds * 1000.0);
    let me = std::process::id();
    let before = process::cpu_of(me).expect("this process");
    tokio::time::sleep(Duration::from_secs(how.seconds)).await;
    let cpu = process::cpu_of(me).expect("this process") - before;
    let mut idle = Case::new("idle", "% of a core", "under 1");
    idle.rate = cpu / how.seconds as f64 * 100.0;
    idle.cpu_s = Some(cpu);
    running.stop().await;
    vec![idle, first]
}

/// A server and a pipeline from it to a bus.
struct Running {
    loaded: Loaded,
    bus: Arc<dyn Bus>,
    stop: CancellationToken,
    pipeline: tokio::task::JoinHandle<headwater_core::Result<()>>,
    server_seconds: f64,
    _dir: tempfile::TempDir,
}

impl Running {
    async fn start(target: Target) -> Self {
        let start = Instant::now();
        let mut loaded = Loaded::start().await;
        let slot = loaded.slot().await;
        let server_seconds = start.elapsed().as_secs_f64();
        let dir = tempfile::tempdir().expect("a directory");
        let job = Job::new(loaded.url(Transport::Tcp).to_owned(), slot, target, 0);
        let (runtime, bus) = pipeline(&job, dir.path()).await;
        let stop = CancellationToken::new();
        let pipeline = tokio::spawn({
            let (runtime, stop) = (runtime.clone(), stop.clone());
            async move { runtime.run(stop).await }
        });
        while !runtime.not_ready().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Self { loaded, bus, stop, pipeline, server_seconds, _dir: dir }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.pipeline.await.expect("no panic").expect("the pipeline ran");
    }
}
