//! From the start of one service's transaction to another service's handler, by query and over Kafka, at a steady
//! pace.
//!
//! Service A changes several rows of several tables and publishes one event in the same transaction; a relay of
//! its own process brings it to Kafka; service B handles it in a transaction of its own database. All servers
//! wait for their disks at each commit.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use headwater::{Consumer, Event, Handled, Handler, Outbox, Received, StopToken};
use headwater_connect::postgres::inbox::{PostgresInbox, script};
use headwater_connect::postgres::outbox::{PostgresOutbox, install};
use headwater_connect::postgres::url::ConnectOptions;
use headwater_core::{Retention, StreamSpec};
use headwater_testkit::servers::{Database, Kafka, Postgres};
use serde::Deserialize;
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgPool, Transaction};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{MissedTickBehavior, interval};

use super::child;
use super::relay;
use super::report::{Case, percentile};

/// How the bench of messaging runs.
#[derive(Args, Clone)]
pub struct Messaging {
    /// How long each case runs
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Transactions a second, a case for each
    #[arg(long, default_values_t = [500, 2000])]
    rate: Vec<u64>,
    /// With Kafka's transactions
    #[arg(long)]
    transactions: bool,
    /// End with one line of JSON
    #[arg(long)]
    pub json: bool,
}

const STREAM: &str = "orders";
const PARTITIONS: u32 = 8;
const KEYS: u64 = 5000;

/// Connections of each service.
const CONNECTIONS: u32 = 16;

/// Live at each rate.
pub async fn messaging(how: &Messaging) -> Vec<Case> {
    let kafka = Kafka::start().await.expect("Kafka starts");
    let settings = Postgres::settings().set("fsync", "on").set("shared_buffers", "256MB");
    let server = settings.start().await.expect("PostgreSQL starts");
    let mut cases = Vec::new();
    for rate in &how.rate {
        cases.push(live(how, *rate, &server, &kafka).await);
    }
    cases
}

async fn live(how: &Messaging, rate: u64, server: &Postgres, kafka: &Kafka) -> Case {
    let (a, b) = (orders(server).await, features(server).await);
    let stream = format!("{STREAM}-{rate}");
    // A second to warm up.
    let (warm, total) = (rate, rate * (how.seconds + 1));
    let job = relay::Job::new(a.url(), &kafka.brokers(), &stream, total, how.transactions);
    let spec =
        StreamSpec { name: stream.as_str().into(), partitions: PARTITIONS, retention: Retention::default() };
    let bus = relay::bus(&kafka.brokers(), &stream, false).await;
    bus.ensure(&spec).await.expect("a stream");
    let relaying = tokio::spawn(async move { child::start("relay-child", &job).await });
    let (sender, mut latencies) = unbounded_channel();
    let stop = StopToken::new();
    let consumer = Consumer::builder("features")
        .bus(bus)
        .streams([stream.as_str()])
        .inbox(PostgresInbox::new(pool(&b).await))
        .concurrency(CONNECTIONS as usize - 2)
        .build();
    let consuming = consumer.expect("a consumer").run(Remember(sender), stop.clone());
    let consuming = tokio::spawn(consuming);
    place(&pool(&a).await, &stream, rate, total).await;
    let mut measured = arrived(&mut latencies, warm as usize, total as usize).await;
    stop.cancel();
    consuming.await.expect("no panic").expect("the consumer ran");
    let outcome = relaying.await.expect("no panic");
    measured.sort_by(f64::total_cmp);
    let with = if how.transactions { ", transactions" } else { "" };
    let mut case = Case::new(format!("messaging postgres {rate}/s{with}"), "events/s", "p99 < 100 ms");
    case.rate = rate as f64;
    (case.p50_ms, case.p99_ms) = (percentile(&measured, 0.50), percentile(&measured, 0.99));
    (case.cpu_s, case.rss_mib) = (Some(outcome.cpu), outcome.rss_mib);
    case
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

async fn orders(server: &Postgres) -> Database {
    let database = server.create_database().await.expect("a database");
    let tables = "CREATE TABLE orders (id bigint PRIMARY KEY, customer int NOT NULL, total int NOT NULL);
        CREATE TABLE order_line (id bigint, line int, item int NOT NULL, PRIMARY KEY (id, line));
        CREATE TABLE stock (item int PRIMARY KEY, pieces int NOT NULL);
        INSERT INTO stock SELECT n, 1000000 FROM generate_series(0, 9999) n";
    database.execute(tables).await.expect("the business");
    let url = ConnectOptions::parse(database.url()).expect("a URL");
    install(&url, "public.outbox").await.expect("the outbox");
    database
}

async fn features(server: &Postgres) -> Database {
    let database = server.create_database().await.expect("a database");
    let effect = "CREATE TABLE feature (id bigserial PRIMARY KEY, \"order\" bigint NOT NULL)";
    database.execute(&format!("{effect}; {}", script("public"))).await.expect("the tables");
    database
}

async fn pool(database: &Database) -> PgPool {
    let options = PgPoolOptions::new().max_connections(CONNECTIONS).test_before_acquire(false);
    options.connect(database.url()).await.expect("a pool")
}

/// Orders at a steady pace, each whether or not the one before is done.
async fn place(pool: &PgPool, stream: &str, rate: u64, total: u64) {
    let outbox = Outbox::new(PostgresOutbox::new("public.outbox"));
    let mut ticks = interval(Duration::from_secs_f64(1.0 / rate as f64));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for id in 0..total {
        ticks.tick().await;
        let (pool, outbox, stream) = (pool.clone(), outbox.clone(), stream.to_owned());
        tokio::spawn(async move { order(&pool, &outbox, &stream, id).await.expect("an order") });
    }
}

async fn order(
    pool: &PgPool,
    outbox: &Outbox<PostgresOutbox>,
    stream: &str,
    id: u64,
) -> headwater::Result<()> {
    let began = micros();
    let business = async {
        let mut tx = pool.begin().await?;
        let (id, item) = (id as i64, rand::random_range(0..9999));
        sqlx::query("INSERT INTO orders VALUES ($1, 7, 1990)").bind(id).execute(&mut *tx).await?;
        sqlx::query("INSERT INTO order_line VALUES ($1, 1, $2), ($1, 2, $2 + 1)")
            .bind(id)
            .bind(item)
            .execute(&mut *tx)
            .await?;
        sqlx::query("UPDATE stock SET pieces = pieces - 1 WHERE item = $1")
            .bind(item)
            .execute(&mut *tx)
            .await?;
        Ok::<_, sqlx::Error>(tx)
    };
    let mut tx = business.await.expect("the business");
    let payload = serde_json::json!({ "id": id, "customer": 7, "total": 1990, "lines": [{ "line": 1 }, { "line": 2 }], "began": began });
    outbox.publish(&mut tx, Event::new(stream, "OrderPlaced").key(id % KEYS).payload(&payload)).await?;
    tx.commit().await.expect("a commit");
    Ok(())
}

/// Writes one row, having told how long the event took.
struct Remember(UnboundedSender<f64>);

#[derive(Deserialize)]
struct Placed {
    id: i64,
    began: i64,
}

impl Handler<Transaction<'static, sqlx::Postgres>> for Remember {
    async fn handle(&self, tx: &mut Transaction<'static, sqlx::Postgres>, event: &Received) -> Handled {
        let placed: Placed = event.body()?;
        let _ = self.0.send((micros() - placed.began) as f64 / 1000.0);
        let insert = sqlx::query("INSERT INTO feature (\"order\") VALUES ($1)").bind(placed.id);
        insert.execute(&mut **tx).await?;
        Ok(())
    }
}

fn micros() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros() as i64
}
