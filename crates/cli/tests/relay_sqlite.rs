//! An outbox on SQLite, emptied by query onto the embedded bus.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{PATIENCE, Place, program};
use headwater_core::ports::{Delivery, Subscription};
use headwater_core::{EventId, Record};
use rusqlite::Connection;

/// A database with an outbox, and a config that empties it.
struct Service {
    place: Place,
    database: PathBuf,
    conn: Connection,
}

impl Service {
    fn new(more: &str) -> Self {
        let place = Place::new("");
        let database = place.dir.path().join("shop.db");
        let conn = Connection::open(&database).unwrap();
        conn.busy_timeout(PATIENCE).unwrap();
        conn.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE orders (id INTEGER PRIMARY KEY)")
            .unwrap();
        let service = Self { place, database, conn };
        service.configure(more, true);
        let (code, out) = service.headwater(&["init", &format!("sqlite://{}", service.database.display())]);
        assert_eq!((code, out.trim()), (Some(0), "made the outbox table outbox"));
        service
    }

    fn configure(&self, more: &str, relay: bool) {
        let source = format!(
            "[source.shop]\nkind = \"sqlite\"\npath = \"{}\"\noutbox = \"outbox\"\nrelay = {relay}\n",
            self.database.display()
        );
        self.place.configure(&format!("{more}\n{source}[stream.orders]\npartitions = 4\n"));
    }

    fn sql(&self, sql: &str) {
        self.conn.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    fn publish(&self, stream: &str, keys: impl Iterator<Item = (String, u64)>) {
        let insert = |(key, n): (String, u64)| {
            format!(
                "INSERT INTO outbox (stream, type, key, payload) VALUES ('{stream}', 'Placed', '{key}', '{{\"n\": {n}}}');"
            )
        };
        self.sql(&format!("BEGIN IMMEDIATE; {} COMMIT", keys.map(insert).collect::<String>()));
    }

    fn count(&self, state: &str) -> i64 {
        let sql = "SELECT count(*) FROM outbox WHERE state = ?";
        self.conn.query_row(sql, [state], |row| row.get(0)).unwrap()
    }

    async fn until(&self, state: &str, how_many: i64) {
        let deadline = Instant::now() + PATIENCE;
        while self.count(state) != how_many {
            assert!(Instant::now() < deadline, "{} are {state}, not {how_many}", self.count(state));
            tokio::task::yield_now().await;
        }
    }

    fn headwater(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = std::process::Command::new(program());
        let config = self.place.config();
        let arguments = arguments.iter().map(|text| text.replace("CONFIG", &config.display().to_string()));
        let ended = command.args(arguments).output().unwrap();
        let said = [ended.stdout, ended.stderr].concat();
        (ended.status.code(), String::from_utf8(said).unwrap())
    }
}

/// What has arrived: the `n` of each event, by key, each event once.
#[derive(Default)]
struct Arrived {
    ids: HashSet<EventId>,
    numbers: BTreeMap<String, Vec<u64>>,
    repeated: usize,
}

impl Arrived {
    async fn read(&mut self, events: &mut dyn Subscription, how_many: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.ids.len() < how_many {
            assert!(Instant::now() < deadline, "{} of {how_many} arrived", self.ids.len());
            let Ok(delivery) = tokio::time::timeout(Duration::from_millis(200), events.next()).await else {
                continue;
            };
            if let Delivery::Batch { records, .. } = delivery.unwrap() {
                records.into_iter().for_each(|record| self.take(record));
            }
        }
    }

    fn take(&mut self, Record { event, .. }: Record) {
        if !self.ids.insert(event.id) {
            self.repeated += 1;
            return;
        }
        let payload: serde_json::Value = serde_json::from_slice(event.payload.as_deref().unwrap()).unwrap();
        let key = String::from_utf8(event.key.unwrap().to_vec()).unwrap();
        self.numbers.entry(key).or_default().push(payload["payload"]["n"].as_u64().unwrap());
    }

    fn in_order(&self, how_many: u64, keys: usize) {
        for (key, numbers) in &self.numbers {
            let first: u64 = key[1..].parse().unwrap();
            assert_eq!(*numbers, (first..how_many).step_by(keys).collect::<Vec<_>>(), "{key}");
        }
    }
}

fn keys(numbers: std::ops::Range<u64>) -> impl Iterator<Item = (String, u64)> {
    numbers.map(|n| (format!("k{}", n % 7), n))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_is_published_once_in_order_and_settled() {
    let service = Service::new("");
    service.publish("orders", keys(0..100));
    let headwater = service.place.run().await;
    let (mut events, mut arrived) = (service.place.read(&["orders"]).await, Arrived::default());
    service.sql("BEGIN; INSERT INTO outbox (stream, type, key, payload) VALUES ('orders', 'x', 'k0', '{\"n\": 9}'); ROLLBACK");
    for n in 100..300 {
        service.publish("orders", keys(n..n + 1));
    }
    arrived.read(&mut *events, 300).await;
    arrived.in_order(300, 7);
    service.until("published", 300).await;
    let status = service.place.status().await;
    assert_eq!(
        (&status["relays"][0]["lanes"], &status["relays"][0]["events"]),
        (&1.into(), &300.into()),
        "{status}"
    );
    assert_eq!(arrived.repeated, 0);
    assert_eq!(headwater.stop(PATIENCE).await.unwrap().code(), Some(0));
    let held = "SELECT count(*) FROM outbox_lease WHERE relay IS NOT NULL";
    assert_eq!(
        service.conn.query_row(held, [], |row| row.get::<_, i64>(0)).unwrap(),
        0,
        "a stop gives the lane back"
    );
}

/// Whoever comes next goes on; what was published and not settled comes again with the same id.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_relay_loses_nothing() {
    let service = Service::new("[relay]\nlease = \"2s\"");
    let (mut arrived, mut next) = (Arrived::default(), 0);
    let mut headwater = service.place.run().await;
    let mut events = service.place.read(&["orders"]).await;
    for _ in 0..4 {
        for _ in 0..20 {
            service.publish("orders", keys(next..next + 10));
            next += 10;
        }
        headwater.kill().await;
        service.publish("orders", keys(next..next + 10));
        next += 10;
        headwater = service.place.run().await;
    }
    arrived.read(&mut *events, next as usize).await;
    arrived.in_order(next, 7);
    service.until("published", next as i64).await;
    headwater.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_go_holds_back_its_key_and_a_person_decides() {
    let service = Service::new("[relay]\nattempts = 1");
    let headwater = service.place.run().await;
    // A stream cannot have this name.
    service.publish("bad name", (1..4).map(|n| ("a".into(), n)));
    service.publish("orders", [("b".to_owned(), 4)].into_iter());
    let (mut events, mut arrived) = (service.place.read(&["orders"]).await, Arrived::default());
    arrived.read(&mut *events, 1).await;
    service.until("parked", 1).await;
    service.until("waiting", 2).await;
    let (code, out) = service.headwater(&["parked", "--json", "CONFIG"]);
    let listed: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &listed[0]["place"], &listed[0]["waiting"]),
        (Some(0), &"outbox".into(), &2.into()),
        "{out}"
    );
    assert_eq!(service.headwater(&["parked", "drop", "--key", "a", "CONFIG"]).0, Some(0));
    service.until("waiting", 1).await;
    service.until("parked", 1).await;
    service.sql("UPDATE outbox SET stream = 'orders' WHERE stream = 'bad name'");
    let (code, out) = service.headwater(&["parked", "retry", "--of", "shop", "--stream", "orders", "CONFIG"]);
    assert_eq!(code, Some(0), "{out}");
    arrived.read(&mut *events, 3).await;
    assert_eq!(arrived.numbers["a"], [2, 3]);
    service.until("published", 3).await;
    headwater.stop(PATIENCE).await.unwrap();
}

/// One line of the config chooses; what is written while nobody runs waits for whoever comes.
#[tokio::test(flavor = "multi_thread")]
async fn triggers_and_relays_take_each_others_place() {
    let service = Service::new("");
    let (mut arrived, mut next) = (Arrived::default(), 0);
    let mut events: Option<Box<dyn Subscription>> = None;
    for relay in [false, true, false, true] {
        service.configure("", relay);
        let headwater = service.place.run().await;
        if events.is_none() {
            events = Some(service.place.read(&["orders"]).await);
        }
        service.publish("orders", keys(next..next + 50));
        arrived.read(&mut **events.as_mut().unwrap(), next as usize + 50).await;
        // By triggers it takes the ten seconds until changes are pruned, of which the last stays.
        service.until("new", if relay { 0 } else { 1 }).await;
        headwater.stop(PATIENCE).await.unwrap();
        service.publish("orders", keys(next + 50..next + 60));
        next += 60;
    }
    service.configure("", true);
    let headwater = service.place.run().await;
    arrived.read(&mut **events.as_mut().unwrap(), next as usize).await;
    arrived.in_order(next, 7);
    assert!(arrived.repeated <= 2, "{} came twice", arrived.repeated);
    service.until("published", next as i64).await;
    headwater.stop(PATIENCE).await.unwrap();
    let url = format!("sqlite://{}", service.database.display());
    let (code, out) = service.headwater(&["outbox", "drop", &url]);
    assert_eq!((code, out.trim()), (Some(0), "dropped the outbox outbox and all that belonged to it"));
}
