//! An outbox on MySQL or MariaDB, emptied onto the embedded bus.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use common::{PATIENCE, Place, program};
use headwater_core::ports::{Delivery, Subscription};
use headwater_core::{EventId, Record};
use headwater_testkit::servers::{MySql, MySqlDatabase};
use sqlx::{AssertSqlSafe, Row};

/// A database with an outbox, and a config that relays it.
struct Service {
    database: MySqlDatabase,
    place: Place,
}

impl Service {
    async fn new(more: &str) -> Self {
        let database = MySql::shared().await.unwrap().create_database().await.unwrap();
        let made = std::process::Command::new(program()).args(["init", database.url()]).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let source =
            format!("[source.shop]\nkind = \"mysql\"\nurl = \"{}\"\noutbox = \"outbox\"\n", database.url());
        let streams = "[stream.orders]\npartitions = 4\n";
        Self { database, place: Place::new(&format!("{more}\n{source}{streams}")) }
    }

    async fn publish(&self, stream: &str, keys: impl Iterator<Item = (String, u64)>) {
        let call = |(key, n): (String, u64)| {
            format!(
                "CALL headwater_publish('{stream}', 'Placed', '{key}', '{{\"n\": {n}}}', NULL, NULL, NULL);"
            )
        };
        let calls: String = keys.map(call).collect();
        self.database.execute(&format!("START TRANSACTION; {calls} COMMIT")).await.unwrap();
    }

    async fn count(&self, state: &str) -> i64 {
        let mut connection = self.database.connect().await.unwrap();
        let sql = format!("SELECT count(*) FROM outbox WHERE state = '{state}'");
        sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut connection).await.unwrap().get(0)
    }

    async fn until(&self, state: &str, how_many: i64) {
        let deadline = Instant::now() + PATIENCE;
        while self.count(state).await != how_many {
            assert!(Instant::now() < deadline, "{state} is not {how_many} within {PATIENCE:?}");
            tokio::task::yield_now().await;
        }
    }

    fn headwater(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = std::process::Command::new(program());
        let ended = command.args(arguments).arg(self.place.config()).output().unwrap();
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
}

/// A row that cannot go holds back its key and nothing else, until a person lets it go.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_parked_is_let_go_by_a_person() {
    let service = Service::new("[relay]\nattempts = 1").await;
    let (code, said) = service.headwater(&["check"]);
    assert!(code == Some(0) && said.contains("with the rights that a relay needs"), "{said}");
    let (code, said) = service.headwater(&["snapshot", "--source", "shop"]);
    assert!(code == Some(2) && said.contains("captures no tables"), "{said}");
    let headwater = service.place.run().await;
    // A stream cannot have this name.
    service.publish("bad name", [1, 2, 3].map(|n| ("a".to_owned(), n)).into_iter()).await;
    service.publish("orders", [("b".to_owned(), 4)].into_iter()).await;
    let mut events = service.place.read(&["orders"]).await;
    let mut arrived = Arrived::default();
    arrived.read(&mut *events, 1).await;
    service.until("parked", 1).await;
    service.until("waiting", 2).await;
    let (code, out) = service.headwater(&["parked", "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, listed.as_array().unwrap().len()), (Some(0), 1), "{out}");
    let line = &listed[0];
    assert_eq!((&line["place"], &line["key"], &line["waiting"]), (&"outbox".into(), &"a".into(), &2.into()));
    service.database.execute("UPDATE outbox SET stream = 'orders' WHERE stream = 'bad name'").await.unwrap();
    let (code, out) = service.headwater(&["parked", "retry", "--of", "shop", "--key", "a"]);
    assert_eq!(code, Some(0), "{out}");
    arrived.read(&mut *events, 4).await;
    let expected = [("a".to_owned(), vec![1, 2, 3]), ("b".to_owned(), vec![4])];
    assert_eq!(arrived.numbers, BTreeMap::from(expected));
    service.until("published", 4).await;
    assert_eq!(service.headwater(&["parked"]), (Some(0), "nothing is parked\n".to_owned()));
    assert_eq!(headwater.stop(PATIENCE).await.unwrap().code(), Some(0));
}

/// The relay is killed in the middle of a backlog, again and again, while writers go on: nothing is lost, and
/// keys keep their order.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_relay_goes_on_where_it_was() {
    const KEYS: u64 = 97;
    let service = Service::new("[relay]\nlease = \"1s\"").await;
    let mut published = 0;
    let mut events = None;
    let mut arrived = Arrived::default();
    for _ in 0..4 {
        let more = (published..published + 3_000).map(|n| (format!("k{}", n % KEYS), n));
        service.publish("orders", more).await;
        published += 3_000;
        let headwater = service.place.run().await;
        let events = match &mut events {
            Some(events) => events,
            None => events.insert(service.place.read(&["orders"]).await),
        };
        let half = arrived.ids.len() + 1_500;
        arrived.read(&mut **events, half).await;
        headwater.kill().await;
    }
    let headwater = service.place.run().await;
    let events = events.as_deref_mut().unwrap();
    arrived.read(events, published as usize).await;
    service.until("published", published as i64).await;
    headwater.stop(PATIENCE).await.unwrap();
    for (key, numbers) in &arrived.numbers {
        let first: u64 = key[1..].parse().unwrap();
        assert_eq!(*numbers, (first..published).step_by(KEYS as usize).collect::<Vec<_>>(), "{key}");
    }
    eprintln!("{published} events, {} came twice", arrived.repeated);
}

/// What `init` prints is what it makes, and `outbox drop` takes it away.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_makes_all_of_it_and_takes_it_away() {
    let server = MySql::shared().await.unwrap();
    let database = server.create_database().await.unwrap();
    let headwater = |arguments: &[&str]| {
        let ended = std::process::Command::new(program()).args(arguments).output().unwrap();
        let said = [ended.stdout, ended.stderr].concat();
        (ended.status.code(), String::from_utf8(said).unwrap())
    };
    let url = database.url();
    let (code, said) = headwater(&["parked", "--inbox", url]);
    assert!(code == Some(3) && said.contains("headwater init"), "{code:?} {said}");
    let (code, sql) = headwater(&["init", url, "--inbox", "--print"]);
    assert_eq!(code, Some(0));
    server.client(&database, &sql).unwrap();
    let nothing = (Some(0), "nothing to do: all is there\n".to_owned());
    assert_eq!(headwater(&["init", url, "--inbox"]), nothing);
    let earlier = "ALTER TABLE outbox DROP KEY work, DROP COLUMN place, ADD COLUMN due DATETIME(6) AS (next_try) STORED, \
         ADD KEY work (queue, due, seq)";
    server.client(&database, earlier).unwrap();
    let (code, said) = headwater(&["init", url]);
    assert!(code == Some(0) && said.contains("as an earlier version made it"), "{said}");
    let (_, mends) = said.split_once('\n').unwrap();
    let mends: Vec<&str> = mends.lines().filter(|line| line.ends_with(';')).collect();
    server.client(&database, &mends.join("\n")).unwrap();
    assert_eq!(headwater(&["init", url]), nothing);
    server.client(&database, "ALTER TABLE outbox DROP KEY work").unwrap();
    let (code, said) = headwater(&["outbox", "drop", url]);
    assert!(code == Some(3) && said.contains("ADD KEY `work` (`queue`, `place`, `seq`)"), "{code:?} {said}");
    server.client(&database, "ALTER TABLE outbox ADD KEY `work` (`queue`, `place`, `seq`)").unwrap();
    assert_eq!(headwater(&["parked", "--inbox", url]), (Some(0), "nothing is parked\n".to_owned()));
    let (code, said) = headwater(&["init", url, "--outbox", &"o".repeat(49), "--print"]);
    assert!(code == Some(2) && said.contains("at most 48 bytes"), "{said}");
    let (code, said) = headwater(&["init", url, "--tables", "a"]);
    assert!(code == Some(2) && said.contains("not captured yet"), "{said}");
    let call = "CALL headwater_publish('orders', 'Placed', 'k', '{}', NULL, NULL, NULL)";
    server.client(&database, call).unwrap();
    let (code, said) = headwater(&["outbox", "drop", url]);
    assert!(code == Some(3) && said.contains("1 events"), "{said}");
    let (code, said) = headwater(&["outbox", "drop", url, "--force"]);
    assert!(code == Some(0) && said.contains("dropped the outbox"), "{said}");
    assert_eq!(headwater(&["outbox", "drop", url]).0, Some(1), "there is none");
    let made = "made the outbox table outbox\n".to_owned();
    assert_eq!(headwater(&["init", url, "--inbox"]), (Some(0), made));
    let (_, sql) = headwater(&["outbox", "drop", url, "--print"]);
    server.client(&database, &sql).unwrap();
    assert_eq!(headwater(&["outbox", "drop", url]).0, Some(1), "there is none");
}
