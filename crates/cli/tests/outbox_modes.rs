//! One outbox on PostgreSQL, emptied by relays and from the log by turns.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use common::{PATIENCE, Place, program};
use headwater_core::EventId;
use headwater_core::ports::{Delivery, Subscription};
use headwater_testkit::binary::Headwater;
use headwater_testkit::servers::{Database, Postgres};
use sqlx::{AssertSqlSafe, Row};

/// Keys that events are about.
const KEYS: u64 = 5;

struct Service {
    database: Database,
    place: Place,
    events: Option<Box<dyn Subscription>>,
    /// What was published so far: the numbers of each key rise.
    published: u64,
    /// The events that arrived: numbers by key as they came, and how often each id did.
    arrived: BTreeMap<String, Vec<u64>>,
    times: HashMap<EventId, u32>,
}

impl Service {
    async fn new() -> Self {
        let database = Postgres::shared().await.unwrap().create_database().await.unwrap();
        let made = std::process::Command::new(program()).args(["init", database.url()]).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let (arrived, times) = Default::default();
        Self { database, place: Place::new(""), events: None, published: 0, arrived, times }
    }

    fn config(&self, relay: bool, more: &str) -> String {
        format!(
            "[source.shop]\nkind = \"postgres\"\nurl = \"{}\"\noutbox = \"public.outbox\"\nrelay = {relay}\n{more}\n\
             slot = \"modes_{}\"\n[stream.orders]\npartitions = 4\n[relay]\nlease = \"2s\"\n",
            self.database.url(),
            self.database.url().rsplit('/').next().unwrap().split('?').next().unwrap(),
        )
    }

    /// Runs it one way or the other.
    async fn run(&self, relay: bool) -> Headwater {
        self.place.configure(&self.config(relay, ""));
        self.place.run().await
    }

    async fn publish(&mut self, how_many: u64) {
        let call = |n: u64| {
            format!("SELECT headwater_publish('orders', 'Placed', 'k{}', '{{\"n\": {n}}}');", n % KEYS)
        };
        let calls: String = (self.published..self.published + how_many).map(call).collect();
        self.database.execute(&calls).await.unwrap();
        self.published += how_many;
    }

    /// Reads until all that was published is there.
    async fn read(&mut self) {
        if self.events.is_none() {
            self.events = Some(self.place.read(&["orders"]).await);
        }
        let events = self.events.as_mut().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while (self.times.len() as u64) < self.published {
            assert!(
                Instant::now() < deadline,
                "{} of {}: {:?}",
                self.times.len(),
                self.published,
                self.arrived
            );
            let Ok(delivery) = tokio::time::timeout(Duration::from_millis(200), events.next()).await else {
                continue;
            };
            let Delivery::Batch { records, .. } = delivery.unwrap() else { continue };
            for record in records {
                let event = record.event;
                let payload: serde_json::Value =
                    serde_json::from_slice(event.payload.as_deref().unwrap()).unwrap();
                let number = payload["payload"]["n"].as_u64().unwrap();
                let key = String::from_utf8(event.key.unwrap().to_vec()).unwrap();
                let times = self.times.entry(event.id).or_default();
                *times += 1;
                if *times == 1 {
                    self.arrived.entry(key).or_default().push(number);
                }
            }
        }
        for (key, numbers) in &self.arrived {
            assert!(numbers.is_sorted(), "{key}: {numbers:?}");
        }
    }

    fn repeats(&self) -> u32 {
        self.times.values().map(|times| times - 1).sum()
    }

    async fn count(&self, state: &str) -> i64 {
        let mut connection = self.database.connect().await.unwrap();
        let sql = format!("SELECT count(*) FROM outbox WHERE state = '{state}'");
        sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut connection).await.unwrap().get(0)
    }

    async fn until_settled(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.count("published").await < self.published as i64 {
            assert!(Instant::now() < deadline, "not all settled within {PATIENCE:?}");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn switching_between_relay_and_log_loses_and_repeats_nothing() {
    let mut service = Service::new().await;
    // Twice each way: the second time the log's slot is one that it followed before.
    for relay in [true, false, true, false, true] {
        service.publish(50).await;
        let headwater = service.run(relay).await;
        service.publish(50).await;
        service.read().await;
        service.until_settled().await;
        assert_eq!(headwater.stop(PATIENCE).await.unwrap().code(), Some(0), "relay = {relay}");
    }
    assert_eq!((service.published, service.repeats()), (500, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_after_a_kill_loses_nothing_and_repeats_only_ids() {
    let mut service = Service::new().await;
    for relay in [false, true, false, true, false, true] {
        service.publish(50).await;
        let headwater = service.run(relay).await;
        service.publish(50).await;
        headwater.kill().await;
    }
    let _last = service.run(false).await;
    service.read().await;
    service.until_settled().await;
    assert_eq!(service.published, 600);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_relays_could_not_publish_is_the_logs_then_whatever_snapshots_are_to_be_taken() {
    let mut service = Service::new().await;
    let relay = service.config(true, "");
    service.place.configure(&format!("{relay}attempts = 1\n"));
    let headwater = service.place.run().await;
    // A stream cannot have this name: the first is parked, the others wait behind it.
    let bad = "SELECT headwater_publish('bad name', 'Placed', 'k0', '{\"n\": 0}');";
    service.database.execute(&bad.repeat(3)).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while (service.count("parked").await, service.count("waiting").await) != (1, 2) {
        assert!(Instant::now() < deadline);
    }
    headwater.stop(PATIENCE).await.unwrap();
    service.database.execute("UPDATE outbox SET stream = 'orders'").await.unwrap();
    service.published = 3;
    service.place.configure(&service.config(false, "snapshot = \"never\""));
    let _headwater = service.place.run().await;
    service.read().await;
    service.until_settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_one_empties_the_outbox_the_other_waits() {
    let mut service = Service::new().await;
    let headwater = service.run(false).await;
    service.publish(10).await;
    service.read().await;
    let relay = Place::new(&service.config(true, ""));
    let relays = relay.run().await;
    assert_eq!(relay.status().await["relays"][0]["lanes"], 0);
    headwater.stop(PATIENCE).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while relay.status().await["relays"][0]["lanes"] != 8 {
        assert!(Instant::now() < deadline, "{}", relay.status().await);
    }
    // The log cannot begin now, and says why.
    let log = service.place.start();
    let error = loop {
        let status = headwater_testkit::binary::get(&service.place.listen, "/status").await;
        let error = status.ok().and_then(|(_, body)| {
            let status: serde_json::Value = serde_json::from_str(&body).unwrap();
            status["sources"][0]["error"].as_str().map(str::to_owned)
        });
        if let Some(error) = error {
            break error;
        }
        assert!(Instant::now() < deadline + PATIENCE);
    };
    assert!(error.contains("public.outbox is being emptied by") && error.contains("stop the one"), "{error}");
    relays.stop(PATIENCE).await.unwrap();
    service.publish(10).await;
    service.read().await;
    drop(log);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_is_dropped_once_all_of_it_is_published() {
    let service = Service::new().await;
    let drop_it = |arguments: &[&str]| {
        let mut command = std::process::Command::new(program());
        let ended =
            command.args(["outbox", "drop", service.database.url()]).args(arguments).output().unwrap();
        let said = String::from_utf8(ended.stdout).unwrap() + &String::from_utf8_lossy(&ended.stderr);
        (ended.status.code(), said)
    };
    service.database.execute("SELECT headwater_publish('orders', 'Placed', 'k', '{}')").await.unwrap();
    let (code, said) = drop_it(&[]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("1 events of \"public\".\"outbox\" are not published yet"), "{said}");
    assert!(drop_it(&["--print"]).1.contains("DROP TABLE IF EXISTS \"public\".\"outbox\""));
    service.database.execute("UPDATE outbox SET state = 'dropped'").await.unwrap();
    assert_eq!(drop_it(&["--json"]), (Some(0), "{\"dropped\":true}\n".to_owned()));
    assert_eq!(drop_it(&[]), (Some(1), "there is no outbox outbox\n".to_owned()));
}

/// What the log could not publish is not left behind when relays are to go on.
#[tokio::test(flavor = "multi_thread")]
async fn relays_do_not_begin_while_changes_of_the_log_are_parked() {
    let service = Service::new().await;
    let headwater = service.run(false).await;
    service.database.execute("SELECT headwater_publish('bad name', 'Placed', 'k0', '{}')").await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while service.place.status().await["sources"][0]["parked"] != 1 {
        assert!(Instant::now() < deadline, "{}", service.place.status().await);
    }
    headwater.stop(PATIENCE).await.unwrap();
    service.place.configure(&service.config(true, ""));
    let mut refused = service.place.start();
    while refused.ended().is_none() {
        assert!(Instant::now() < deadline, "{}", refused.log_tail());
    }
    assert!(refused.log_tail().contains("changes of source shop are parked"), "{}", refused.log_tail());
}

/// As the documents say it is done after a switch to relays.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_dropped_meanwhile_is_made_again() {
    let mut service = Service::new().await;
    for relay in [false, true, false] {
        service.publish(20).await;
        let headwater = service.run(relay).await;
        service.publish(20).await;
        service.read().await;
        service.until_settled().await;
        headwater.stop(PATIENCE).await.unwrap();
        if relay {
            let slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                         WHERE database = current_database()";
            service.database.execute(slots).await.unwrap();
        }
    }
    assert_eq!(service.repeats(), 0);
}
