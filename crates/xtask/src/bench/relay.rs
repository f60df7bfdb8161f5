//! Emptying an outbox with a backlog into Kafka.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use headwater_connect::kafka::KafkaBus;
use headwater_connect::mysql::outbox::MySqlOutboxStore;
use headwater_connect::parked::SqliteParkedStore;
use headwater_connect::postgres::outbox::{PostgresOutboxStore, install};
use headwater_connect::postgres::url::ConnectOptions;
use headwater_connect::sqlite::outbox::SqliteOutboxStore;
use headwater_connect::{mysql, sqlite};
use headwater_core::Origin;
use headwater_core::ports::{Bus, Delivery, OutboxStore, Shelf, Start, Subscribe};
use headwater_runtime::{OutboxRoute, Runtime, TableRef};
use headwater_testkit::servers::{Database, Kafka, Postgres};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, Executor, Row};
use tokio_util::sync::CancellationToken;

use super::child::{self, Outcome, config};
use super::process;
use super::report::{Case, median};

/// How the bench of the relay runs.
#[derive(Args, Clone)]
pub struct Relay {
    /// Rows of the backlog
    #[arg(long, alias = "events", default_value_t = 1_000_000)]
    rows: u64,
    /// Done rows that pile up before the second case
    #[arg(long, default_value_t = 5_000_000)]
    done: u64,
    /// How often each case is run
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How many seconds the open transaction of the third case is old when it begins
    #[arg(long, default_value_t = 0)]
    open_for: u64,
    /// Without Kafka's transactions
    #[arg(long)]
    plain: bool,
    /// End with one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// What the measured process does.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    url: String,
    brokers: String,
    stream: String,
    rows: u64,
    transactions: bool,
}

impl Job {
    /// Empties the outbox of a database until `rows` events are published.
    pub fn new(url: &str, brokers: &str, stream: &str, rows: u64, transactions: bool) -> Self {
        let (url, brokers, stream) = (url.to_owned(), brokers.to_owned(), stream.to_owned());
        Self { url, brokers, stream, rows, transactions }
    }
}

/// A backlog into Kafka: into a table that is empty, that has many done rows, and beside a transaction that
/// is open all the while.
pub async fn relay(how: &Relay) -> Vec<Case> {
    let kafka = Kafka::start().await.expect("Kafka starts");
    let settings = Postgres::settings().set("shared_buffers", "1GB").set("max_wal_size", "8GB");
    let server = settings.start().await.expect("PostgreSQL starts");
    let database = server.create_database().await.expect("a database");
    let url = ConnectOptions::parse(database.url()).expect("a URL");
    install(&url, "public.outbox").await.expect("the outbox");
    let bench = Bench { how, kafka, database };
    let mut cases = Vec::new();
    // Brokers that have just been started are slow: not only the first case shall meet those.
    bench.round("warm", how.rows.min(WARM)).await;
    let first = bench.case("relay", None, 0).await;
    let base = first.rate;
    cases.push(first);
    bench.pile_up().await;
    cases.push(bench.case("relay, many done rows", Some(base), 1).await);
    let mut open = bench.database.connect().await.expect("a connection");
    open.execute("begin isolation level repeatable read; select count(*) from outbox_lease")
        .await
        .expect("open");
    tokio::time::sleep(Duration::from_secs(how.open_for)).await;
    cases.push(bench.case("relay, a transaction open", Some(base), 2).await);
    cases
}

/// Rows that are not measured.
const WARM: u64 = 200_000;

struct Bench<'a> {
    how: &'a Relay,
    kafka: Kafka,
    database: Database,
}

impl Bench<'_> {
    async fn case(&self, name: &str, base: Option<f64>, number: usize) -> Case {
        let goal = if base.is_none() { "rate >= 30000" } else { "ratio >= 0.9" };
        let mut case = Case::new(name, "events/s", goal);
        let (mut rates, mut cpus) = (Vec::new(), Vec::new());
        for round in 0..self.how.rounds {
            let outcome = self.round(&format!("bench-{number}-{round}"), self.how.rows).await;
            rates.push(self.how.rows as f64 / outcome.seconds);
            cpus.push(outcome.cpu);
            case.rss_mib = case.rss_mib.into_iter().chain(outcome.rss_mib).reduce(f64::max);
        }
        case.rate = median(rates);
        case.cpu_s = Some(median(cpus));
        case.baseline = base.map(|_| "an empty table".to_owned());
        case.baseline_rate = base;
        case.ratio = base.map(|base| case.rate / base);
        case
    }

    /// A backlog is made, emptied and looked at.
    async fn round(&self, stream: &str, rows: u64) -> Outcome {
        self.backlog(stream, rows, "new").await;
        let job = Job::new(self.database.url(), &self.kafka.brokers(), stream, rows, !self.how.plain);
        let outcome = child::start("relay-child", &job).await;
        self.verify(stream, rows).await;
        outcome
    }

    /// Rows of 20,000 keys; `n` rises within each.
    async fn backlog(&self, stream: &str, rows: u64, state: &str) {
        let settled = if state == "new" { "null" } else { "clock_timestamp()" };
        let sql = format!(
            "insert into outbox (stream, type, key, payload, state, settled_at)
             select '{stream}', 'Placed', 'order-' || n % 20000, json_build_object('n', n, 'state', 'placed', 'note',
                    'placed by web checkout, gift wrapped, leave at the door'), '{state}', {settled}
             from generate_series(1, {rows}) n"
        );
        self.database.execute(&sql).await.expect("a backlog");
    }

    async fn pile_up(&self) {
        let mut connection = self.database.connect().await.expect("a connection");
        let count = "select count(*) from outbox";
        let there: i64 = connection.fetch_one(count).await.expect("a count").get(0);
        let more = self.how.done.saturating_sub(there as u64);
        self.backlog("done", more, "published").await;
        self.database.execute("vacuum analyze outbox").await.expect("vacuum");
    }

    /// Reads the stream: everything once, and each key in order.
    async fn verify(&self, stream: &str, rows: u64) {
        let bus = bus(&self.kafka.brokers(), stream, false).await;
        let subscribe = Subscribe { streams: vec![stream.into()], group: None, start: Start::Beginning };
        let mut events = bus.subscribe(subscribe).await.expect("a subscription");
        let (mut last, mut count) = (HashMap::new(), 0);
        while count < rows {
            let next = tokio::time::timeout(Duration::from_secs(60), events.next()).await;
            let Delivery::Batch { records, .. } = next.expect("every event arrives").expect("a delivery")
            else {
                continue;
            };
            for record in records {
                let payload = record.event.payload.expect("a payload");
                let payload: serde_json::Value = serde_json::from_slice(&payload).expect("JSON");
                let n = payload["payload"]["n"].as_u64().expect("a number");
                let before = last.insert(record.event.key.expect("a key"), n);
                assert!(before.is_none_or(|before| before < n), "{n} came after {before:?}");
                count += 1;
            }
        }
        assert_eq!(count, rows, "everything once");
        let left = "select count(*) from outbox where state not in ('published', 'dropped')";
        let mut connection = self.database.connect().await.expect("a connection");
        let left: i64 = connection.fetch_one(AssertSqlSafe(left)).await.expect("a count").get(0);
        assert_eq!(left, 0, "all is settled");
    }
}

pub async fn bus(brokers: &str, stream: &str, transactions: bool) -> Arc<dyn Bus> {
    let positions = format!("{stream}-positions");
    let mut keys = vec![("brokers", vec![brokers].into()), ("positions_topic", positions.as_str().into())];
    if transactions {
        keys.push(("transactions", true.into()));
    }
    Arc::new(KafkaBus::open(config(&keys)).await.expect("the Kafka bus"))
}

/// What a relay needs of a database.
struct Outbox {
    store: Arc<dyn OutboxStore>,
    shelf: Arc<dyn Shelf>,
    schema: String,
}

/// The table `outbox` of the database of a URL.
fn outbox(url: &str) -> Outbox {
    match url.split(':').next() {
        Some("mysql") => {
            let url = mysql::url::ConnectOptions::parse(url).expect("a URL");
            let store = MySqlOutboxStore::new(&url, "outbox");
            let (shelf, schema) = (Arc::new(store.shelf("bench")), url.database().to_owned());
            Outbox { store: Arc::new(store), shelf, schema }
        }
        Some("sqlite") => {
            let store = SqliteOutboxStore::new(&sqlite::file_of(url), "outbox");
            let shelf = Arc::new(store.shelf("bench"));
            Outbox { store: Arc::new(store), shelf, schema: "main".to_owned() }
        }
        _ => {
            let url = ConnectOptions::parse(url).expect("a URL");
            let store = PostgresOutboxStore::new(&url, "public.outbox");
            let shelf = Arc::new(store.shelf("bench"));
            Outbox { store: Arc::new(store), shelf, schema: "public".to_owned() }
        }
    }
}

/// The measured process: a relay, until all is settled.
pub async fn child(job: &str) {
    let start = Instant::now();
    let job: Job = serde_json::from_str(job).expect("the parent wrote it");
    let dir = tempfile::tempdir().expect("a directory");
    let Outbox { store, shelf, schema } = outbox(&job.url);
    let route = OutboxRoute {
        table: TableRef { source: "bench".into(), schema: Some(schema.clone()), table: "outbox".into() },
        columns: Default::default(),
        stream: "{aggregatetype}".into(),
    };
    let origin = Origin {
        source: "bench".into(),
        connector: "bench".into(),
        database: schema,
        system_id: String::new(),
    };
    let builder = Runtime::builder()
        .relay("bench", store, shelf, route, origin)
        .bus(bus(&job.brokers, &job.stream, job.transactions).await)
        .parked(Arc::new(SqliteParkedStore::open(dir.path(), 1 << 30).await.expect("a parked store")));
    let runtime = Arc::new(builder.build().expect("a runtime"));
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let (runtime, stop) = (Arc::clone(&runtime), stop.clone());
        async move { runtime.run(stop).await }
    });
    while !running.is_finished() && runtime.own_status().await.relays[0].events < job.rows {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A stop settles what is published.
    stop.cancel();
    running.await.expect("no panic").expect("the relay ran");
    let me = std::process::id();
    let outcome = Outcome {
        seconds: start.elapsed().as_secs_f64(),
        cpu: process::cpu_of(me).unwrap_or(0.0),
        rss_mib: process::peak_rss_mib(me),
    };
    println!("{}", serde_json::to_string(&outcome).expect("plain data"));
}
