//! Two relays empty an outbox on MySQL or MariaDB onto Kafka while writers, relays and the database are killed:
//! nothing is lost, keys keep their order, and with transactions nothing comes twice (invariants 1 to 4).
//!
//! `HEADWATER_SOAK_TIMES` and `HEADWATER_SOAK_SEED` as in e2e_kills.

#![allow(clippy::unwrap_used)] // clippy.toml knows tests by their attribute only

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Place, program, subscribe};
use headwater_connect::kafka::KafkaBus;
use headwater_core::ports::Delivery;
use headwater_testkit::checker::{Checker, History, Step};
use headwater_testkit::kills::{see, seed, times};
use headwater_testkit::servers::{Kafka, MySql, MySqlDatabase};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::{AssertSqlSafe, Executor, Row};

const PATIENCE: Duration = Duration::from_secs(90);
const KEYS: i64 = 60;

/// What the writers share with the test.
#[derive(Clone, Default)]
struct Shared {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
}

/// Writes business transactions, each with an event about every row that it changes. Some roll back, some stay
/// open for a while after their sequence was drawn; of some writers each INSERTs by itself, under the lock of the
/// row that it changed.
async fn write(database: MySqlDatabase, mut random: StdRng, plainly: bool, shared: Shared) {
    while !shared.stop.load(Ordering::Relaxed) {
        let Ok(mut connection) = database.connect().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while !shared.stop.load(Ordering::Relaxed) {
            let mut keys: Vec<i64> =
                (0..random.random_range(1..4)).map(|_| random.random_range(0..KEYS)).collect();
            keys.sort_unstable();
            keys.dedup();
            let payload = "CONCAT('{\"version\":', @version, '}')";
            let publish = |key: &i64| match plainly {
                true => format!(
                    "INSERT INTO outbox (stream, type, `key`, payload) VALUES ('entities', 'Changed', '{key}', {payload});"
                ),
                false => {
                    format!(
                        "CALL headwater_publish('entities', 'Changed', '{key}', {payload}, NULL, NULL, NULL);"
                    )
                }
            };
            let step = |key: &i64| {
                format!(
                    "UPDATE entity SET version = version + 1 WHERE id = {key}; \
                     SELECT version INTO @version FROM entity WHERE id = {key}; {}",
                    publish(key)
                )
            };
            let late = if random.random_ratio(1, 20) { "DO SLEEP(0.2);" } else { "" };
            let end = if random.random_ratio(1, 8) { "ROLLBACK" } else { "COMMIT" };
            let sql = format!("START TRANSACTION; {}{late}{end}", keys.iter().map(step).collect::<String>());
            match connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await {
                Ok(_) => shared.committed.fetch_add(1, Ordering::Relaxed),
                // Cut off, or the victim of a deadlock: whether it committed, the table says in the end.
                Err(_) => break,
            };
        }
    }
}

/// What the table says was committed: each key's versions, one after the other.
async fn history(database: &MySqlDatabase) -> History {
    let mut connection = database.connect().await.unwrap();
    let rows = connection.fetch_all("SELECT id, version FROM entity WHERE version > 0").await.unwrap();
    let steps = |version: i64| (1..=version).map(|n| Step { op: "event".into(), version: Some(n) }).collect();
    rows.iter().map(|row| (("entities".to_owned(), row.get(0)), steps(row.get(1)))).collect()
}

async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A database with an outbox, and the table that every event is about a row of.
async fn outbox(server: &MySql) -> MySqlDatabase {
    let database = server.create_database().await.unwrap();
    let made = std::process::Command::new(program()).args(["init", database.url()]).output();
    assert!(made.unwrap().status.success());
    let rows = (0..KEYS).map(|key| format!("({key}, 0)")).collect::<Vec<_>>().join(", ");
    let tables = format!(
        "CREATE TABLE entity (id bigint PRIMARY KEY, version bigint NOT NULL); INSERT INTO entity VALUES {rows}"
    );
    database.execute(&tables).await.unwrap();
    database
}

/// What a killed relay had published is settled by who has its lanes next, which may come later than all has arrived.
async fn all_is_settled(database: &MySqlDatabase) {
    let mut connection = database.connect().await.unwrap();
    let (left, deadline) =
        ("SELECT count(*) FROM outbox WHERE state <> 'published'", Instant::now() + PATIENCE);
    while connection.fetch_one(left).await.unwrap().get::<i64, _>(0) > 0 {
        assert!(Instant::now() < deadline, "not all is settled");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_writers_and_database_are_killed() {
    let server = MySql::start().await.unwrap();
    let database = outbox(&server).await;
    let name = format!("{:08x}", rand::random::<u32>());
    let bus = format!(
        "brokers = [\"{}\"]\ntopic_prefix = \"{name}-\"\npositions_topic = \"{name}-positions\"\n\
         transactions = true\ntransactional_id = \"{name}\"\n",
        Kafka::shared().await.unwrap().brokers()
    );
    let relay = format!(
        "[relay]\nlease = \"1s\"\n[source.shop]\nkind = \"mysql\"\nurl = \"{}\"\noutbox = \"outbox\"\n\
         [stream.entities]\npartitions = 4\n[bus]\nkind = \"kafka\"\n{bus}",
        database.url()
    );
    let places = [Place::new(&relay), Place::new(&relay)];
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut relays = vec![places[0].run().await, places[1].run().await];
    let checker = Arc::new(Mutex::new(Checker::default()));
    let reader = KafkaBus::open(toml::from_str(&bus).unwrap()).await.unwrap();
    let (mut events, seen) = (subscribe(&reader, &["entities"]).await, Arc::clone(&checker));
    let consumer = tokio::spawn(async move {
        loop {
            if let Ok(Delivery::Batch { records, .. }) = events.next().await {
                records.iter().for_each(|record| see(&mut seen.lock().unwrap(), record));
            }
        }
    });
    let shared = Shared::default();
    let writer =
        |n: u64| write(database.clone(), StdRng::seed_from_u64(seed ^ n), n % 2 == 1, shared.clone());
    let writers: Vec<_> = (0..6).map(|n| tokio::spawn(writer(n))).collect();
    for round in 0..times() {
        let wanted = shared.committed.load(Ordering::Relaxed) + random.random_range(50..300);
        until("writers go on", || shared.committed.load(Ordering::Relaxed) >= wanted).await;
        let arrived = checker.lock().unwrap().distinct();
        until("events arrive", || checker.lock().unwrap().distinct() > arrived).await;
        match round % 3 {
            2 => {
                server.kill();
                server.restart().await.unwrap();
            }
            one => {
                relays.remove(one).kill().await;
                relays.insert(one, places[one].start());
            }
        }
    }
    shared.stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let history = history(&database).await;
    until("all arrives", || checker.lock().unwrap().has_all(&history)).await;
    all_is_settled(&database).await;
    for (mut relay, place) in relays.into_iter().zip(&places) {
        relay.ready(&place.listen, PATIENCE).await.unwrap();
        let log = relay.log_tail();
        relay.stop(PATIENCE).await.unwrap();
        assert!(!log.contains("panicked"), "{log}");
    }
    consumer.abort();
    let checker = checker.lock().unwrap();
    checker.compare(&history).unwrap();
    let total: usize = history.values().map(Vec::len).sum();
    eprintln!("{total} events committed, {} arrived, lost 0", checker.distinct());
    assert_eq!(checker.repeated(), 0, "repeats");
}
