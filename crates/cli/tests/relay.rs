//! An outbox on PostgreSQL that is emptied by query, onto the embedded bus.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{PATIENCE, Place, program};
use headwater_connect::embedded::{EmbeddedBus, EmbeddedConfig};
use headwater_connect::parked::SqliteParkedStore;
use headwater_connect::postgres::outbox::PostgresOutboxStore;
use headwater_connect::postgres::url::ConnectOptions;
use headwater_core::ports::{Bus, Delivery, LeaseAsk, OutboxStore as _, Published, Subscription};
use headwater_core::{Checkpoint, Kind, Origin, Position, Record};
use headwater_runtime::{OutboxRoute, Runtime, TableRef};
use headwater_testkit::faults::{Call, Fault, Faults, FaultyBus};
use headwater_testkit::servers::{Database, PgBouncer, Postgres, Proxy};
use headwater_wire::format::OutboxColumns;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use tokio_util::sync::CancellationToken;

/// A database with an outbox, and a config that relays it.
struct Service {
    database: Database,
    place: Place,
}

impl Service {
    async fn new(more: &str) -> Self {
        let database = Postgres::shared().await.unwrap().create_database().await.unwrap();
        let made = std::process::Command::new(program()).args(["init", database.url()]).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let source = format!(
            "[source.shop]\nkind = \"postgres\"\nurl = \"{}\"\noutbox = \"public.outbox\"\nrelay = true\n",
            database.url()
        );
        Self { database, place: Place::new(&format!("{more}\n{source}")) }
    }

    async fn publish(&self, keys: impl Iterator<Item = (String, u64)>) {
        let call = |(key, n): (String, u64)| {
            format!("SELECT headwater_publish('orders', 'Placed', '{key}', '{{\"n\": {n}}}');")
        };
        self.database.execute(&keys.map(call).collect::<String>()).await.unwrap();
    }

    async fn count(&self, state: &str) -> i64 {
        let mut connection = self.database.connect().await.unwrap();
        let sql = format!("SELECT count(*) FROM outbox WHERE state = '{state}'");
        sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut connection).await.unwrap().get(0)
    }

    async fn until_settled(&self, how_many: i64) {
        let deadline = Instant::now() + PATIENCE;
        while self.count("published").await < how_many {
            assert!(Instant::now() < deadline, "not all settled within {PATIENCE:?}");
            tokio::task::yield_now().await;
        }
    }
}

/// The `n` of each event, by key, as they arrive, until there are `how_many`.
async fn read(events: &mut dyn Subscription, how_many: usize) -> BTreeMap<String, Vec<u64>> {
    let mut read: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let deadline = Instant::now() + PATIENCE;
    while read.values().map(Vec::len).sum::<usize>() < how_many {
        assert!(Instant::now() < deadline, "only {read:?}");
        let Ok(delivery) = tokio::time::timeout(Duration::from_millis(200), events.next()).await else {
            continue;
        };
        if let Delivery::Batch { records, .. } = delivery.unwrap() {
            for Record { event, .. } in records {
                let payload: serde_json::Value =
                    serde_json::from_slice(event.payload.as_deref().unwrap()).unwrap();
                let key = String::from_utf8(event.key.unwrap().to_vec()).unwrap();
                read.entry(key).or_default().push(payload["payload"]["n"].as_u64().unwrap());
            }
        }
    }
    read
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_is_published_once_in_order_and_settled() {
    let service = Service::new("[stream.orders]\npartitions = 4").await;
    service.publish((0..100).map(|n| (format!("k{}", n % 7), n))).await;
    let headwater = service.place.run().await;
    let mut events = service.place.read(&["orders"]).await;
    service.publish((100..300).map(|n| (format!("k{}", n % 7), n))).await;
    let mut connection = service.database.connect().await.unwrap();
    let mut rolled_back = connection.begin().await.unwrap();
    sqlx::query("SELECT headwater_publish('orders', 'Placed', 'k0', '{\"n\": 9999}')")
        .execute(&mut *rolled_back)
        .await
        .unwrap();
    rolled_back.rollback().await.unwrap();
    let read = read(&mut *events, 300).await;
    for (key, numbers) in &read {
        let first: u64 = key[1..].parse().unwrap();
        assert_eq!(*numbers, (first..300).step_by(7).collect::<Vec<_>>(), "{key}");
    }
    service.until_settled(300).await;
    let status = service.place.status().await;
    assert_eq!(status["relays"][0]["lanes"], 8, "{status}");
    assert_eq!(status["relays"][0]["events"], 300, "{status}");
    assert_eq!(headwater.stop(PATIENCE).await.unwrap().code(), Some(0));
    let mut connection = service.database.connect().await.unwrap();
    let held = "SELECT count(*) FROM outbox_lease WHERE relay IS NOT NULL";
    let held: i64 = sqlx::query(held).fetch_one(&mut connection).await.unwrap().get(0);
    assert_eq!(held, 0, "a stop gives the lanes back");
}

/// Invariant 4: a sequence drawn early and committed late, while rows with higher ones were published.
#[tokio::test(flavor = "multi_thread")]
async fn what_commits_late_is_published_all_the_same() {
    let service = Service::new("[stream.orders]\npartitions = 4").await;
    let mut early = Vec::new();
    for n in 0..5 {
        let mut connection = service.database.connect().await.unwrap();
        let sql = format!("BEGIN; SELECT headwater_publish('orders', 'Placed', 'late{n}', '{{\"n\": {n}}}')");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        early.push(connection);
    }
    let headwater = service.place.run().await;
    let mut events = service.place.read(&["orders"]).await;
    service.publish((0..500).map(|n| (format!("k{}", n % 50), n))).await;
    assert_eq!(read(&mut *events, 500).await.len(), 50);
    service.until_settled(500).await;
    for mut connection in early {
        sqlx::raw_sql("COMMIT").execute(&mut connection).await.unwrap();
    }
    let late = read(&mut *events, 5).await;
    assert!(late.keys().all(|key| key.starts_with("late")), "{late:?}");
    headwater.stop(PATIENCE).await.unwrap();
}

impl Service {
    fn headwater(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let config = self.place.config();
        let mut command = std::process::Command::new(program());
        let ended = command.args(arguments).arg(&config).output().unwrap();
        (
            ended.status.code(),
            String::from_utf8(ended.stdout).unwrap() + &String::from_utf8_lossy(&ended.stderr),
        )
    }

    async fn until(&self, state: &str, how_many: i64) {
        let deadline = Instant::now() + PATIENCE;
        while self.count(state).await != how_many {
            assert!(Instant::now() < deadline, "{state} is not {how_many} within {PATIENCE:?}");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_go_holds_back_its_key_and_a_person_decides() {
    let service = Service::new("[stream.orders]\npartitions = 4\n[relay]\nattempts = 1").await;
    let headwater = service.place.run().await;
    let publish = |stream: &str, key: &str, n: u64| {
        format!("SELECT headwater_publish('{stream}', 'Placed', '{key}', '{{\"n\": {n}}}');")
    };
    // A stream cannot have this name.
    let sql = [1, 2, 3].map(|n| publish("bad name", "a", n)).concat() + &publish("orders", "b", 4);
    service.database.execute(&sql).await.unwrap();
    let mut events = service.place.read(&["orders"]).await;
    assert_eq!(read(&mut *events, 1).await, BTreeMap::from([("b".to_owned(), vec![4])]));
    service.until("parked", 1).await;
    service.until("waiting", 2).await;

    let (code, out) = service.headwater(&["parked", "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, listed.as_array().unwrap().len()), (Some(0), 1), "{out}");
    let line = &listed[0];
    assert_eq!(
        (&line["place"], &line["owner"], &line["key"]),
        (&"outbox".into(), &"shop".into(), &"a".into())
    );
    assert_eq!(
        (&line["state"], &line["waiting"], &line["attempts"]),
        (&"parked".into(), &2.into(), &1.into())
    );
    assert!(line["error"].as_str().unwrap().contains("cannot be the name of a stream"), "{line}");
    let aside = serde_json::json!({ "parked": 1, "retrying": 0, "waiting": 2 });
    let deadline = Instant::now() + PATIENCE;
    while service.place.status().await["relays"][0]["aside"] != aside {
        assert!(Instant::now() < deadline, "{}", service.place.status().await);
    }
    let (_, metrics) = headwater_testkit::binary::get(&service.place.listen, "/metrics").await.unwrap();
    for line in ["headwater_relay_lanes{source=\"shop\"} 8", "headwater_source_up{source=\"shop\"} 1"] {
        assert!(metrics.contains(line), "{metrics}");
    }
    let parked = "headwater_set_aside{in=\"outbox\",of=\"shop\",state=\"parked\"} 1";
    assert!(metrics.contains(parked), "{metrics}");
    let (_, shown) = service.headwater(&["parked", "show", "--stream", "bad name", "--json"]);
    let payloads: Vec<String> = shown
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["payload"].to_string())
        .collect();
    assert_eq!(payloads, [1, 2, 3].map(|n| format!("{{\"n\":{n}}}")));

    assert_eq!(service.headwater(&["parked", "drop"]).0, Some(2), "of what?");
    assert_eq!(service.headwater(&["parked", "drop", "--key", "x"]).0, Some(1), "there is no such key");
    let (code, out) = service.headwater(&["parked", "drop", "--key", "a"]);
    assert_eq!((code, &*out), (Some(0), "1 event dropped; what waited behind each goes on\n"));
    // The next is the first now: it is tried, and cannot go either.
    service.until("waiting", 1).await;
    service.until("parked", 1).await;
    // What comes later waits behind both.
    service.database.execute(&publish("bad name", "a", 5)).await.unwrap();
    service.until("waiting", 2).await;

    service.database.execute("UPDATE outbox SET stream = 'orders' WHERE stream = 'bad name'").await.unwrap();
    let (code, out) = service.headwater(&["parked", "retry", "--of", "shop", "--stream", "orders"]);
    assert_eq!(code, Some(0), "{out}");
    assert_eq!(read(&mut *events, 3).await, BTreeMap::from([("a".to_owned(), vec![2, 3, 5])]));
    service.until_settled(4).await;
    assert_eq!(service.headwater(&["parked"]), (Some(0), "nothing is parked\n".to_owned()));
    headwater.stop(PATIENCE).await.unwrap();
}

/// Each row is published once, however claims, publishing and settling overlap.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_published_once() {
    let service = Service::new("[stream.orders]\npartitions = 4").await;
    let backlog = "INSERT INTO outbox (stream, type, key, payload)
        SELECT 'orders', 'Placed', 'k' || n % 500, json_build_object('n', n) FROM generate_series(0, 19999) n";
    service.database.execute(backlog).await.unwrap();
    let headwater = service.place.run().await;
    let mut events = service.place.read(&["orders"]).await;
    let read = read(&mut *events, 20_000).await;
    for (key, numbers) in &read {
        let first: u64 = key[1..].parse().unwrap();
        assert_eq!(*numbers, (first..20_000).step_by(500).collect::<Vec<_>>(), "{key}");
    }
    service.until_settled(20_000).await;
    assert_eq!(service.place.status().await["relays"][0]["events"], 20_000);
    headwater.stop(PATIENCE).await.unwrap();
}

/// Sessions are what it needs of a pooler; of transactions it says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_works_behind_a_pooler_of_sessions() {
    let service = Service::new("[stream.orders]\npartitions = 4").await;
    let server = Postgres::shared().await.unwrap();
    let config = std::fs::read_to_string(service.place.config()).unwrap();
    let behind = |pooler: &PgBouncer| {
        let config = config.replace(service.database.url(), &pooler.url(&service.database));
        std::fs::write(service.place.config(), config).unwrap();
    };
    let transactions = PgBouncer::start(server, "transaction", "").await.unwrap();
    behind(&transactions);
    let (code, said) = service.headwater(&["check"]);
    assert_ne!(code, Some(0), "{said}");
    assert!(said.contains("pool_mode = session"), "{said}");
    let relay = PostgresOutboxStore::new(
        &ConnectOptions::parse(&transactions.url(&service.database)).unwrap(),
        "public.outbox",
    );
    let ask = LeaseAsk { relay: "r".into(), ttl: PATIENCE, release: Vec::new(), renew: true, leaving: false };
    assert_eq!(relay.lease(&ask).await.unwrap_err().kind(), Kind::Refused);
    let sessions = PgBouncer::start(server, "session", "").await.unwrap();
    behind(&sessions);
    let (code, said) = service.headwater(&["check"]);
    assert_eq!(code, Some(0), "{said}");
    let headwater = service.place.run().await;
    let mut events = service.place.read(&["orders"]).await;
    service.publish((0..100).map(|n| (format!("k{}", n % 7), n))).await;
    let read = read(&mut *events, 100).await;
    assert!(read.values().all(|numbers| numbers.is_sorted()), "{read:?}");
    service.until_settled(100).await;
    assert_eq!(headwater.stop(PATIENCE).await.unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_whether_a_relay_can_work() {
    let service = Service::new("").await;
    service.publish([("a".to_owned(), 1)].into_iter()).await;
    let (code, said) = service.headwater(&["check"]);
    assert_eq!(code, Some(0), "{said}");
    for part in ["with the rights that a relay needs", "1 events in it wait", "no relay works it now"] {
        assert!(said.contains(part), "{said}");
    }
    service.database.execute("UPDATE outbox SET state = 'parked'").await.unwrap();
    service.database.execute("UPDATE outbox_lease SET relay = 'log:s', until = 'infinity'").await.unwrap();
    let (_, said) = service.headwater(&["check"]);
    assert!(
        said.contains("1 of its events are parked") && said.contains("emptied from the log now"),
        "{said}"
    );
    service.database.execute("DROP TABLE outbox").await.unwrap();
    let (code, said) = service.headwater(&["check"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("headwater init URL --outbox public.outbox"), "{said}");
    let (_, said) = service.headwater(&["parked"]);
    assert!(said.contains("does not exist\n"), "nothing of the server's own source: {said}");
}

/// A lane's key: the `n`th such that its lane is that one.
async fn key_of(database: &Database, lane: i16) -> String {
    let sql = "SELECT 'k' || n FROM generate_series(1, 1000) n WHERE (hashtext('k' || n) & 7)::smallint = $1 LIMIT 1";
    let mut connection = database.connect().await.unwrap();
    sqlx::query_scalar(sql).bind(lane).fetch_one(&mut connection).await.unwrap()
}

impl Service {
    /// Rows of the first lane are not settled before `pg_advisory_unlock(1)` on this connection.
    async fn hold_settling(&self) -> PgConnection {
        let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             PERFORM pg_advisory_xact_lock_shared(1); RETURN NEW; END $$; \
             CREATE TRIGGER slow BEFORE UPDATE ON outbox FOR EACH ROW WHEN (OLD.lane = 0) EXECUTE FUNCTION slow()";
        self.database.execute(slow).await.unwrap();
        let mut hold = self.database.connect().await.unwrap();
        sqlx::query("SELECT pg_advisory_lock(1)").execute(&mut hold).await.unwrap();
        hold
    }

    /// Until a relay waits for that.
    async fn until_settling(&self, hold: &mut PgConnection) {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'";
        let deadline = Instant::now() + PATIENCE;
        while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut *hold).await.unwrap() == 0 {
            assert!(Instant::now() < deadline, "nothing is being settled");
        }
    }
}

/// Writing down what was published takes as long as the database takes. Lanes that pass to a relay meanwhile do not
/// wait for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_lane_begins_whatever_is_being_written_down_of_others() {
    let service = Service::new("[stream.orders]\npartitions = 4\n[relay]\nlease = \"10m\"").await;
    let database = &service.database;
    let mut hold = service.hold_settling().await;
    let headwater = service.place.run().await;
    let (first, other) = (key_of(database, 0).await, key_of(database, 1).await);
    let mut events = service.place.read(&["orders"]).await;
    service.publish([(first, 1)].into_iter()).await;
    read(&mut *events, 1).await;
    service.until_settling(&mut hold).await;
    // As when it passed to another relay and back.
    database.execute("UPDATE outbox_lease SET epoch = epoch + 1 WHERE lane = 1").await.unwrap();
    // It has heard of that once it has looked twice.
    let looked = "SELECT max(query_start)::text FROM pg_stat_activity WHERE datname = current_database() \
         AND query LIKE 'SELECT lane, epoch%' AND query_start > $1::timestamptz";
    let now = "SELECT clock_timestamp()::text";
    let deadline = Instant::now() + PATIENCE;
    let mut since: String = sqlx::query_scalar(now).fetch_one(&mut hold).await.unwrap();
    for _ in 0..2 {
        since = loop {
            let then =
                sqlx::query_scalar::<_, Option<String>>(looked).bind(&since).fetch_one(&mut hold).await;
            if let Some(then) = then.unwrap() {
                break then;
            }
            assert!(Instant::now() < deadline, "it does not look");
        };
    }
    service.publish([(other.clone(), 2)].into_iter()).await;
    assert_eq!(read(&mut *events, 1).await, BTreeMap::from([(other, vec![2])]));
    sqlx::query("SELECT pg_advisory_unlock(1)").execute(&mut hold).await.unwrap();
    service.until_settled(2).await;
    headwater.stop(PATIENCE).await.unwrap();
}

/// The machine of the database is gone, and says nothing more; another has its address.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_vanishes_is_asked_again_over_another_connection() {
    let server = Postgres::shared().await.unwrap();
    let proxy = Proxy::start(("127.0.0.1", server.port())).await.unwrap();
    let service = Service::new("[stream.orders]\npartitions = 4\n[relay]\nlease = \"1s\"").await;
    service.at(&service.database.url_through(&proxy));
    let mut hold = service.hold_settling().await;
    let headwater = service.place.run().await;
    let mut events = service.place.read(&["orders"]).await;
    let key = key_of(&service.database, 0).await;
    service.publish([(key.clone(), 1)].into_iter()).await;
    read(&mut *events, 1).await;
    service.until_settling(&mut hold).await;
    // Whoever asks now, and the one that settles, is never answered.
    proxy.abandon();
    sqlx::query("SELECT pg_advisory_unlock(1)").execute(&mut hold).await.unwrap();
    service.publish([(key.clone(), 2)].into_iter()).await;
    assert_eq!(read(&mut *events, 1).await, BTreeMap::from([(key, vec![2])]));
    service.until_settled(2).await;
    // Nor does a stop wait for it.
    headwater.stop(PATIENCE).await.unwrap();
}

impl Service {
    /// Relays reach the database at this address.
    fn at(&self, url: &str) {
        let config = std::fs::read_to_string(self.place.config()).unwrap();
        std::fs::write(self.place.config(), config.replace(self.database.url(), url)).unwrap();
    }

    /// One number of the database, until it is that.
    async fn until_is(&self, what: &str, wanted: i64) {
        let (mut connection, deadline) = (self.database.connect().await.unwrap(), Instant::now() + PATIENCE);
        loop {
            let is: i64 = sqlx::query_scalar(AssertSqlSafe(what)).fetch_one(&mut connection).await.unwrap();
            if is == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "not {wanted} but {is} after {PATIENCE:?}: {what}");
        }
    }

    /// The epoch of each lane.
    async fn epochs(&self) -> Vec<i64> {
        let mut connection = self.database.connect().await.unwrap();
        let epochs = "SELECT epoch FROM outbox_lease ORDER BY lane";
        sqlx::query_scalar(epochs).fetch_all(&mut connection).await.unwrap()
    }
}

/// An old transaction keeps what was published: a look from the beginning may take longer than any patience that is
/// always the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_takes_long_is_given_the_time() {
    let service = Service::new("[stream.orders]\npartitions = 4\n[relay]\nlease = \"5s\"").await;
    let name = service.database.name();
    let slow = format!(
        "CREATE FUNCTION slow(seq bigint) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN \
         IF seq = 1 AND current_query() LIKE 'SELECT row.lane%' THEN PERFORM pg_sleep(21); END IF; RETURN true; END $$; \
         ALTER TABLE outbox ENABLE ROW LEVEL SECURITY; \
         CREATE POLICY slow ON outbox USING (slow(seq)) WITH CHECK (true); CREATE ROLE relay_of_{name} LOGIN; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON outbox, outbox_lease, outbox_relay TO relay_of_{name}"
    );
    service.database.execute(&slow).await.unwrap();
    service.at(&service.database.url().replace("postgres@", &format!("relay_of_{name}@")));
    service.publish([("k".to_owned(), 1)].into_iter()).await;
    let headwater = service.place.run().await;
    let mut events = service.place.read(&["orders"]).await;
    assert_eq!(read(&mut *events, 1).await, BTreeMap::from([("k".to_owned(), vec![1])]));
    service.until_settled(1).await;
    headwater.stop(PATIENCE).await.unwrap();
}

/// What was written down without an answer may arrive at any time, as long as its epoch is the lane's.
#[tokio::test(flavor = "multi_thread")]
async fn a_lane_begins_anew_after_nobody_answered_what_was_written_down_of_it() {
    let service = Service::new("[stream.orders]\npartitions = 4\n[relay]\nlease = \"10m\"").await;
    let mut hold = service.hold_settling().await;
    let headwater = service.place.run().await;
    let mut events = service.place.read(&["orders"]).await;
    let key = key_of(&service.database, 0).await;
    service.publish([(key.clone(), 1)].into_iter()).await;
    read(&mut *events, 1).await;
    service.until_settling(&mut hold).await;
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
         WHERE datname = current_database() AND wait_event = 'advisory'";
    assert_eq!(sqlx::query_scalar::<_, i64>(end).fetch_one(&mut hold).await.unwrap(), 1);
    sqlx::query("SELECT pg_advisory_unlock(1)").execute(&mut hold).await.unwrap();
    service.until_settled(1).await;
    service.until_is("SELECT epoch FROM outbox_lease WHERE lane = 0", 2).await;
    assert_eq!(service.epochs().await[1..], [1; 7]);
    service.publish([(key.clone(), 2)].into_iter()).await;
    assert_eq!(read(&mut *events, 1).await, BTreeMap::from([(key, vec![2])]), "nothing came twice");
    service.until_settled(2).await;
    assert_eq!(service.epochs().await, [2, 1, 1, 1, 1, 1, 1, 1]);
    headwater.stop(PATIENCE).await.unwrap();
}

/// Others go on with the idle lanes of a relay that stops, however long the rest of it takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_drains_slowly_keeps_no_other() {
    let service = Service::new("[runtime]\ndrain_timeout = \"10m\"\n[stream.orders]\npartitions = 4").await;
    let mut hold = service.hold_settling().await;
    let headwater = service.place.run().await;
    let mut events = service.place.read(&["orders"]).await;
    service.publish([(key_of(&service.database, 0).await, 1)].into_iter()).await;
    read(&mut *events, 1).await;
    service.until_settling(&mut hold).await;
    let stopping = tokio::spawn(headwater.stop(PATIENCE));
    service.until_is("SELECT count(*) FROM outbox_lease WHERE relay IS NULL", 7).await;
    service
        .until_is("SELECT count(*) FROM outbox_lease WHERE lane = 0 AND until > clock_timestamp()", 1)
        .await;
    sqlx::query("SELECT pg_advisory_unlock(1)").execute(&mut hold).await.unwrap();
    assert_eq!(stopping.await.unwrap().unwrap().code(), Some(0));
    service.until_is("SELECT count(*) FROM outbox_lease WHERE relay IS NULL", 8).await;
    assert_eq!(service.count("published").await, 1);
}

/// A renewal that is never answered leaves time to ask again.
#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_that_is_not_answered_costs_no_lease() {
    let server = Postgres::shared().await.unwrap();
    let proxy = Proxy::start(("127.0.0.1", server.port())).await.unwrap();
    let service = Service::new("[relay]\nlease = \"8s\"").await;
    service.at(&service.database.url_through(&proxy));
    let headwater = service.place.run().await;
    service.until_is("SELECT count(*) FROM outbox_lease WHERE until > clock_timestamp()", 8).await;
    let mut connection = service.database.connect().await.unwrap();
    let mut holds = connection.begin().await.unwrap();
    sqlx::query("SELECT FROM outbox_lease FOR UPDATE").execute(&mut *holds).await.unwrap();
    let waits = "SELECT least(1, count(*)) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    service.until_is(waits, 1).await;
    proxy.abandon();
    // The server still does what it was asked: it is the next renewal that tells.
    let next = "SELECT (clock_timestamp() + interval '9 seconds')::text";
    let next: String = sqlx::query_scalar(next).fetch_one(&mut *holds).await.unwrap();
    holds.rollback().await.unwrap();
    service.until_is(&format!("SELECT count(*) FROM outbox_lease WHERE until > '{next}'"), 8).await;
    let log = headwater.log_tail();
    assert!(!log.contains("could not be renewed in time"), "{log}");
    assert_eq!(service.epochs().await, [1; 8]);
    headwater.stop(PATIENCE).await.unwrap();
}

/// What earlier runs published and nobody has settled goes with each checkpoint, but not for ever more of it: a broker
/// takes no message of any size.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_handed_on_from_run_to_run_has_a_bound() {
    let service = Service::new("[stream.orders]\npartitions = 4\n[relay]\nbatch = 1").await;
    let key = key_of(&service.database, 0).await;
    // Sixteen bytes each, in base64.
    let ids = |published: &str| published.len() * 3 / 4 / 16;
    let inherited: String = (0..32_000).map(|n| format!("{n:08}")).collect();
    assert_eq!(ids(&inherited), 12_000);
    let open = async || {
        let bus = EmbeddedBus::open(&service.place.data(), EmbeddedConfig::default()).await.unwrap();
        bus.writer("shop/0").await.unwrap()
    };
    let state = serde_json::json!({ "published": inherited });
    let checkpoint = Checkpoint { source: "shop/0".into(), position: Position::of(1, [1]), state };
    let published = open().await.writer.publish(Vec::new(), Some(checkpoint)).await.unwrap();
    let Published::Accepted(accepted) = published else { panic!("it was rejected") };
    accepted.durable().await.unwrap();
    // As long as there is more than a look takes, none sees all.
    service.publish((0..2_000).map(|n| (key.clone(), n))).await;
    let headwater = service.place.run().await;
    read(&mut *service.place.read(&["orders"]).await, 1).await;
    let log = headwater.log_tail();
    headwater.stop(PATIENCE).await.unwrap();
    assert!(service.count("new").await > 0, "it is over too soon");
    let left = open().await.checkpoint.unwrap().state["published"].as_str().map(ids).unwrap();
    assert!((10_000..10_020).contains(&left), "{left}");
    assert!(log.contains("left_out=2000"), "{log}");
}

/// A defect ends no lane for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_panics_begins_again() {
    let service = Service::new("").await;
    let faults = Faults::default();
    let bus = EmbeddedBus::open(&service.place.data(), EmbeddedConfig::default()).await.unwrap();
    let bus: Arc<dyn Bus> = Arc::new(FaultyBus { inner: Arc::new(bus), faults: faults.clone() });
    let store =
        PostgresOutboxStore::new(&ConnectOptions::parse(service.database.url()).unwrap(), "public.outbox");
    let shelf = Arc::new(store.shelf("shop"));
    let table = TableRef { source: "shop".into(), schema: Some("public".into()), table: "outbox".into() };
    let route = OutboxRoute { table, columns: OutboxColumns::default(), stream: "{aggregatetype}".into() };
    let origin = Origin {
        source: "shop".into(),
        connector: "postgres".into(),
        database: "shop".into(),
        system_id: String::new(),
    };
    let parked = SqliteParkedStore::open(&service.place.data(), 1 << 20).await.unwrap();
    let builder = Runtime::builder().relay("shop", Arc::new(store), shelf, route, origin);
    let runtime = builder.bus(Arc::clone(&bus)).parked(Arc::new(parked)).build().unwrap();
    faults.inject(Call::Publish, Fault::Panic);
    let stop = CancellationToken::new();
    let running = {
        let stop = stop.clone();
        tokio::spawn(async move { runtime.run(stop).await })
    };
    service.publish([("k".to_owned(), 1)].into_iter()).await;
    service.until_settled(1).await;
    assert_eq!(faults.suffered(), 1);
    stop.cancel();
    running.await.unwrap().unwrap();
}
