//! A service with a database and a bus, and a check of what its handler did.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use headwater::connect::embedded::{EmbeddedBus, EmbeddedConfig};
use headwater::connect::postgres::inbox::{PostgresInbox, script};
use headwater::core::ports::{Bus, Shelf, ShelfFilter, Shelved};
use headwater::core::{Event, EventId, Position, Retention, StreamSpec, partition_of};
use headwater::{Builder, Consumer, Failure, Handled, Handler, Received, Result, StopToken};
use headwater_testkit::servers::{Database, Postgres};
use headwater_testkit::suites::bus::tools;
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgPool, Transaction};
use tempfile::TempDir;
use tokio::task::JoinHandle;

pub const PATIENCE: Duration = Duration::from_secs(90);
pub const PARTITIONS: u32 = 4;
pub const CONSUMER: &str = "service";

pub type Tx = Transaction<'static, sqlx::Postgres>;

/// Leases that end soon after a kill.
pub fn embedded() -> EmbeddedConfig {
    EmbeddedConfig { lease: Duration::from_secs(1), ..EmbeddedConfig::default() }
}

/// The tables of the service.
pub fn tables() -> String {
    format!(
        "{} CREATE TABLE effect (seq bigserial PRIMARY KEY, key text NOT NULL, n bigint NOT NULL);",
        script("public")
    )
}

/// A service.
pub struct Service {
    pub dir: TempDir,
    pub bus: Arc<dyn Bus>,
    pub stream: Arc<str>,
    pub database: Database,
    pub pool: PgPool,
    next: BTreeMap<String, i64>,
}

impl Service {
    /// On the embedded bus and a server for many.
    pub async fn new() -> Self {
        let database = Postgres::shared().await.unwrap().create_database().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let bus: Arc<dyn Bus> = Arc::new(EmbeddedBus::open(dir.path(), embedded()).await.unwrap());
        Self::on(dir, bus, database).await
    }

    pub async fn on(dir: TempDir, bus: Arc<dyn Bus>, database: Database) -> Self {
        database.execute(&tables()).await.unwrap();
        let stream: Arc<str> = tools::unique("orders").into();
        let retention = Retention::default();
        bus.ensure(&StreamSpec { name: Arc::clone(&stream), partitions: PARTITIONS, retention })
            .await
            .unwrap();
        let pool = pool(database.url(), 12).await;
        Self { dir, bus, stream, database, pool, next: BTreeMap::new() }
    }

    /// Publishes the next `count` events of each key, in turns.
    pub async fn publish(&mut self, keys: &[&str], count: usize) {
        let mut events = Vec::new();
        for _ in 0..count {
            for key in keys {
                let next = self.next.entry((*key).to_owned()).or_default();
                events.push(event(&self.stream, key, *next));
                *next += 1;
            }
        }
        tools::publish(&self.bus, events, None).await;
    }

    pub fn inbox(&self) -> PostgresInbox {
        PostgresInbox::new(self.pool.clone())
    }

    /// A consumer that is quick to try again.
    pub fn builder(&self) -> Builder<PostgresInbox> {
        builder(Arc::clone(&self.bus), &self.stream, self.inbox())
    }

    /// Runs a consumer.
    pub fn run(&self, builder: Builder<PostgresInbox>, handler: impl Handler<Tx>) -> Running {
        let stop = StopToken::new();
        let run = builder.build().unwrap().run(handler, stop.clone());
        Running { stop, task: tokio::spawn(run) }
    }

    pub async fn count(&self, sql: &str) -> i64 {
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap()
    }

    /// Waits until a query counts this much.
    pub async fn until(&self, sql: &str, count: i64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // The server may be away for a while.
            let asked = sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(sql)).fetch_one(&self.pool).await;
            if asked.as_ref().is_ok_and(|found| *found == count) {
                return;
            }
            assert!(Instant::now() < deadline, "{sql}: {asked:?}, not {count}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until so many effects are there.
    pub async fn effects(&self, count: usize) {
        self.until("SELECT count(*) FROM effect", count as i64).await;
    }

    /// Everything that was published has had its effect once, each key in order.
    pub async fn check(&self) {
        let total: i64 = self.next.values().sum();
        self.until("SELECT count(*) FROM (SELECT DISTINCT key, n FROM effect) AS once", total).await;
        let sql = "SELECT key, array_agg(n ORDER BY seq) FROM effect GROUP BY key";
        let found: Vec<(String, Vec<i64>)> = sqlx::query_as(sql).fetch_all(&self.pool).await.unwrap();
        let found: BTreeMap<String, Vec<i64>> = found.into_iter().collect();
        let expected: BTreeMap<String, Vec<i64>> =
            self.next.iter().map(|(key, next)| (key.clone(), (0..*next).collect())).collect();
        for (key, expected) in &expected {
            assert_eq!(found.get(key), Some(expected), "key {key}");
        }
        assert_eq!(found.len(), expected.len());
    }

    pub async fn parked(&self) -> Vec<Shelved> {
        self.inbox().list(&ShelfFilter::default()).await.unwrap()
    }

    /// How many events the group has yet to read, as the bus sees it.
    pub async fn lag(&self) -> u64 {
        let status = self.bus.status().await.unwrap();
        let stream = status.streams.iter().find(|stream| stream.stream == self.stream).unwrap();
        stream.groups.iter().filter(|group| group.group == CONSUMER).map(|group| group.lag_events).sum()
    }
}

pub async fn pool(url: &str, connections: u32) -> PgPool {
    let options = PgPoolOptions::new().max_connections(connections).acquire_timeout(Duration::from_secs(5));
    options.connect(url).await.unwrap()
}

pub fn builder(bus: Arc<dyn Bus>, stream: &str, inbox: PostgresInbox) -> Builder<PostgresInbox> {
    Consumer::builder(CONSUMER)
        .bus(bus)
        .streams([stream])
        .inbox(inbox)
        .backoff(Duration::from_millis(20), Duration::from_millis(200))
        .interval(Duration::from_millis(50))
}

/// Event `n` of a key.
pub fn event(stream: &Arc<str>, key: &str, n: i64) -> Event {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let time = i64::try_from(time.as_micros()).unwrap();
    Event {
        id: EventId::derive(time, &[stream.as_bytes(), key.as_bytes(), &n.to_be_bytes()]),
        stream: Arc::clone(stream),
        partition: Some(partition_of(key.as_bytes(), PARTITIONS)),
        kind: "Placed".into(),
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        payload: Some(Bytes::from(n.to_string())),
        headers: Default::default(),
        time,
        position: Position::ZERO,
    }
}

/// A consumer that runs.
pub struct Running {
    pub stop: StopToken,
    pub task: JoinHandle<Result<()>>,
}

impl Running {
    /// Stops it in good order.
    pub async fn stop(self) -> Result<()> {
        self.stop.cancel();
        tools::within(self.task).await.unwrap()
    }
}

/// The handler of the tests: writes one row, and fails where it is told to.
#[derive(Clone, Default)]
pub struct Record {
    /// The numbers of keys that fail; those after them would not.
    pub failing: Arc<Mutex<BTreeSet<(String, i64)>>>,
    /// How often it failed so.
    pub failed: Arc<AtomicU32>,
    /// One of how many tries fails by chance; 0 for none.
    pub chance: u32,
    /// Whether it panics instead.
    pub panics: Arc<AtomicBool>,
    /// Whether it hangs instead.
    pub hangs: Arc<AtomicBool>,
}

impl Record {
    pub fn fail(&self, key: &str, n: i64) {
        self.failing.lock().unwrap().insert((key.to_owned(), n));
    }

    pub fn mend(&self) {
        self.failing.lock().unwrap().clear();
    }

    fn fails(&self, key: &str, n: i64) -> bool {
        self.failing.lock().unwrap().contains(&(key.to_owned(), n))
    }
}

impl Handler<Tx> for Record {
    async fn handle(&self, tx: &mut Tx, event: &Received) -> Handled {
        let n: i64 = event.json()?;
        let key = event.key().unwrap_or_default().to_owned();
        write(tx, &key, n).await?;
        if self.fails(&key, n) {
            self.failed.fetch_add(1, Ordering::Relaxed);
            assert!(!self.panics.load(Ordering::Relaxed), "told to panic");
            if self.hangs.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            return Err(Failure::retry(format!("no stock for {n}")));
        }
        if self.chance > 0 && rand::random_range(0..self.chance) == 0 {
            return Err(Failure::retry("by chance"));
        }
        Ok(())
    }
}

/// The effect.
pub async fn write(tx: &mut Tx, key: &str, n: i64) -> sqlx::Result<()> {
    let insert = sqlx::query("INSERT INTO effect (key, n) VALUES ($1, $2)").bind(key).bind(n);
    insert.execute(&mut **tx).await.map(drop)
}
