//! Two relays empty one outbox onto Kafka while writers, relays, the database and the broker are killed:
//! nothing is lost, keys keep their order, what comes twice has the same id (invariants 1 to 4).
//!
//! `HEADWATER_SOAK_TIMES` and `HEADWATER_SOAK_SEED` as in e2e_kills.

#![allow(clippy::unwrap_used, clippy::panic)] // clippy.toml knows tests by their attribute only

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headwater_connect::kafka::{KafkaBus, KafkaConfig};
use headwater_core::ports::{Bus, Delivery, Start, Subscribe};
use headwater_testkit::binary::Headwater;
use headwater_testkit::checker::{Checker, History, Step};
use headwater_testkit::kills::{see, seed, times};
use headwater_testkit::servers::{Database, Kafka, Postgres, free_port};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{AssertSqlSafe, Executor, Row};

const PATIENCE: Duration = Duration::from_secs(90);
const KEYS: i64 = 60;

/// What the writers share with the test.
#[derive(Clone, Default)]
struct Shared {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
}

/// Writes business transactions, each with an event about every row that it changes. Some roll back, some
/// stay open for a while after their sequence was drawn.
async fn write(database: Database, mut random: StdRng, shared: Shared) {
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
            let step = |key: &i64| {
                format!(
                    "with changed as (update entity set version = version + 1 where id = {key} returning version) \
                     select headwater_publish('entities', 'Changed', '{key}', json_build_object('version', version)) \
                     from changed;"
                )
            };
            let late = if random.random_ratio(1, 20) { "select pg_sleep(0.2);" } else { "" };
            let end = if random.random_ratio(1, 8) { "rollback;" } else { "commit;" };
            let sql = format!("begin;{}{late}{end}", keys.iter().map(step).collect::<String>());
            match connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await {
                Ok(_) => shared.committed.fetch_add(1, Ordering::Relaxed),
                // Cut off: whether it committed, the table says in the end.
                Err(_) => break,
            };
        }
    }
}

/// One `headwater run` that shares the outbox.
struct Relay {
    dir: tempfile::TempDir,
    listen: String,
    headwater: Option<Headwater>,
}

impl Relay {
    fn start(database: &Database, brokers: &str, lease: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listen = format!("127.0.0.1:{}", free_port());
        let text = format!(
            "data_dir = \"{}/data\"\n[http]\nlisten = \"{listen}\"\n[relay]\nlease = \"{lease}\"\n\
             [source.shop]\nkind = \"postgres\"\nurl = \"{}\"\noutbox = \"public.outbox\"\nrelay = true\n\
             [bus]\nkind = \"kafka\"\nbrokers = [\"{brokers}\"]\n{more}\n[stream.entities]\npartitions = 4\n",
            dir.path().display(),
            database.url()
        );
        std::fs::write(dir.path().join("headwater.toml"), text).unwrap();
        let mut relay = Self { dir, listen, headwater: None };
        relay.again();
        relay
    }

    fn again(&mut self) {
        let config = self.dir.path().join("headwater.toml");
        let log = self.dir.path().join("headwater.log");
        let program = Path::new(env!("CARGO_BIN_EXE_headwater"));
        self.headwater = Some(Headwater::start(program, &["run", config.to_str().unwrap()], &log));
    }

    fn pid(&self) -> Pid {
        let pid = self.headwater.as_ref().and_then(Headwater::pid).unwrap();
        Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
    }

    async fn kill(&mut self) {
        self.headwater.take().unwrap().kill().await;
        self.again();
    }

    async fn ready(&mut self) {
        self.headwater.as_mut().unwrap().ready(&self.listen, PATIENCE).await.unwrap();
    }

    /// As it is done when a new version is brought out, which takes longer to begin than the other to take over.
    async fn restart(&mut self, database: &Database) {
        let ended = self.headwater.take().unwrap().stop(PATIENCE).await.unwrap();
        assert_eq!(ended.code(), Some(0));
        until_shared(database, &[8]).await;
        self.again();
        self.ready().await;
    }

    /// Longer than its lease: the other takes its lanes over, and it wakes up with what it had.
    async fn stand_still(&self, database: &Database) {
        let pid = self.pid();
        kill_process(pid, Signal::STOP).unwrap();
        let held = "select count(*), count(distinct relay) from outbox_lease where until > clock_timestamp()";
        let (mut connection, deadline) = (database.connect().await.unwrap(), Instant::now() + PATIENCE);
        // Both had lanes, or the one that works: then one has all of them.
        let mut held = async || {
            let row = connection.fetch_one(held).await.unwrap();
            (row.get::<i64, _>(0), row.get::<i64, _>(1))
        };
        let mut now = held().await;
        while now != (8, 1) {
            assert!(
                Instant::now() < deadline,
                "not within {PATIENCE:?}: the other takes over; lanes, relays: {now:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
            now = held().await;
        }
        kill_process(pid, Signal::CONT).unwrap();
    }

    async fn stop(mut self) -> String {
        let mut headwater = self.headwater.take().unwrap();
        headwater.ready(&self.listen, PATIENCE).await.unwrap();
        let log = headwater.log_tail();
        headwater.stop(PATIENCE).await.unwrap();
        log
    }
}

async fn consume(bus: Arc<dyn Bus>, checker: Arc<Mutex<Checker>>) {
    loop {
        let subscribe = Subscribe { streams: vec!["entities".into()], group: None, start: Start::Beginning };
        if let Ok(mut events) = bus.subscribe(subscribe).await {
            while let Ok(delivery) = events.next().await {
                if let Delivery::Batch { records, .. } = delivery {
                    records.iter().for_each(|record| see(&mut checker.lock().unwrap(), record));
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What the table says was committed: each key's versions, one after the other.
async fn history(database: &Database) -> History {
    let mut connection = database.connect().await.unwrap();
    let rows = connection.fetch_all("select id, version from entity where version > 0").await.unwrap();
    let steps = |version: i64| (1..=version).map(|n| Step { op: "event".into(), version: Some(n) }).collect();
    rows.iter().map(|row| (("entities".to_owned(), row.get(0)), steps(row.get(1)))).collect()
}

/// How many lanes each relay has that is alive.
async fn shares(database: &Database) -> Vec<i64> {
    let held = "select count(*) from outbox_lease where until > clock_timestamp() group by relay order by 1";
    let mut connection = database.connect().await.unwrap();
    sqlx::query_scalar(held).fetch_all(&mut connection).await.unwrap()
}

/// What there is to know when something does not go on.
async fn all_that_is_known(database: &Database, relays: &[Relay]) -> String {
    let mut connection = database.connect().await.unwrap();
    let mut said = String::new();
    for sql in [
        "select row_to_json(lease)::text from outbox_lease as lease order by lane",
        "select row_to_json(relay)::text from outbox_relay as relay",
        "select json_build_object('state', state, 'lane', lane, 'rows', count(*), 'first', min(seq), 'last', max(seq), \
         'error', max(error))::text from outbox group by state, lane order by state, lane",
        "select row_to_json(prepared)::text from pg_prepared_xacts as prepared",
        "select json_build_object('pid', pid, 'name', application_name, 'state', state, 'waits', wait_event, 'since', \
         clock_timestamp() - state_change, 'blocked by', pg_blocking_pids(pid), 'query', left(query, 200))::text \
         from pg_stat_activity where datname = current_database()",
    ] {
        let rows: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut connection).await.unwrap();
        said += &format!("{}\n", rows.join("\n"));
    }
    for relay in relays {
        let log = relay.headwater.as_ref().map(Headwater::log_tail).unwrap_or_default();
        said += &format!("a relay's log:\n{log}\n");
    }
    said
}

async fn until_all_arrives(
    checker: &Mutex<Checker>,
    history: &History,
    database: &Database,
    relays: &[Relay],
) {
    let deadline = Instant::now() + PATIENCE;
    while !checker.lock().unwrap().has_all(history) {
        if Instant::now() > deadline {
            let arrived = checker.lock().unwrap().distinct();
            let committed: usize = history.values().map(Vec::len).sum();
            let known = all_that_is_known(database, relays).await;
            panic!("not within {PATIENCE:?}: {arrived} of {committed} arrived\n{known}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The last version of each key in the stream, read once from its beginning.
async fn end_state(bus: &dyn Bus, checker: &Mutex<Checker>) -> BTreeMap<i64, i64> {
    let subscribe = Subscribe { streams: vec!["entities".into()], group: None, start: Start::Beginning };
    let mut events = bus.subscribe(subscribe).await.unwrap();
    let (mut last, mut ids, all) = (BTreeMap::new(), HashSet::new(), checker.lock().unwrap().distinct());
    let mut quiet = false;
    // Repeats may come behind the last that is new.
    while ids.len() < all || !quiet {
        let Ok(delivery) = tokio::time::timeout(Duration::from_secs(2), events.next()).await else {
            quiet = true;
            continue;
        };
        let Delivery::Batch { records, .. } = delivery.unwrap() else { continue };
        for record in records {
            let said: serde_json::Value = serde_json::from_slice(&record.event.payload.unwrap()).unwrap();
            let key: i64 = said["key"].as_str().unwrap().parse().unwrap();
            last.insert(key, said["payload"]["version"].as_i64().unwrap());
            ids.insert(record.event.id);
        }
    }
    last
}

/// The last version of each key that was committed.
fn newest(history: &History) -> BTreeMap<i64, i64> {
    let last = |((_, key), steps): (&(String, i64), &Vec<Step>)| Some((*key, steps.last()?.version?));
    history.iter().filter_map(last).collect()
}

async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_writers_database_and_broker_are_killed() {
    let repeats = under_kills("").await;
    eprintln!("{repeats} repeats");
}

/// With transactions nothing comes twice either, and what a relay that stood still had queued never arrives.
#[tokio::test(flavor = "multi_thread")]
async fn with_transactions_relays_may_also_stand_still_and_nothing_comes_twice() {
    assert_eq!(under_kills("transactions = true").await, 0, "repeats");
}

/// The table that every event is about a row of.
fn entities() -> String {
    format!(
        "create table entity (id bigint primary key, version bigint not null);
         insert into entity select n, 0 from generate_series(0, {}) n",
        KEYS - 1
    )
}

/// How many events came twice.
async fn under_kills(bus: &str) -> usize {
    let (server, kafka) = tokio::join!(Postgres::start(), Kafka::start());
    let (server, kafka) = (server.unwrap(), kafka.unwrap());
    let database = server.create_database().await.unwrap();
    let made =
        std::process::Command::new(env!("CARGO_BIN_EXE_headwater")).args(["init", database.url()]).output();
    assert!(made.unwrap().status.success());
    database.execute(&entities()).await.unwrap();
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut relays = [0, 1].map(|_| Relay::start(&database, &kafka.brokers(), "2s", bus));
    let reader: KafkaConfig = toml::from_str(&format!("brokers = [\"{}\"]", kafka.brokers())).unwrap();
    let reader: Arc<dyn Bus> = Arc::new(KafkaBus::open(reader).await.unwrap());
    let checker = Arc::new(Mutex::new(Checker::default()));
    let consumer = tokio::spawn(consume(Arc::clone(&reader), Arc::clone(&checker)));
    let shared = Shared::default();
    let writers: Vec<_> = (0..6)
        .map(|n| tokio::spawn(write(database.clone(), StdRng::seed_from_u64(seed ^ n), shared.clone())))
        .collect();
    for round in 0..times() {
        let wanted = shared.committed.load(Ordering::Relaxed) + random.random_range(50..300);
        until("writers go on", || shared.committed.load(Ordering::Relaxed) >= wanted).await;
        if round % 2 == 0 {
            let arrived = checker.lock().unwrap().distinct();
            until("events arrive", || checker.lock().unwrap().distinct() > arrived).await;
        }
        match round % 5 {
            0 => relays[0].kill().await,
            1 => relays[1].kill().await,
            2 if bus.is_empty() => relays[0].kill().await,
            2 => relays[0].stand_still(&database).await,
            3 => {
                server.kill();
                server.restart().await.unwrap();
            }
            _ => {
                kafka.kill();
                kafka.restart().await.unwrap();
            }
        }
    }
    shared.stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let history = history(&database).await;
    until_all_arrives(&checker, &history, &database, &relays).await;
    for relay in relays {
        let log = relay.stop().await;
        assert!(!log.contains("panicked"), "{log}");
    }
    consumer.abort();
    assert_eq!(end_state(&*reader, &checker).await, newest(&history), "what compaction would leave");
    let mut connection = database.connect().await.unwrap();
    let left = "select count(*) from outbox where state <> 'published'";
    let left: i64 = connection.fetch_one(left).await.unwrap().get(0);
    assert_eq!(left, 0, "all is settled");
    let checker = checker.lock().unwrap();
    checker.compare(&history).unwrap();
    let total: usize = history.values().map(Vec::len).sum();
    eprintln!("{total} events committed, {} arrived, lost 0", checker.distinct());
    checker.repeated()
}

/// A database with an outbox, and what a relay is told of a cluster that others use, too.
async fn service() -> (Database, String) {
    let database = Postgres::shared().await.unwrap().create_database().await.unwrap();
    let made =
        std::process::Command::new(env!("CARGO_BIN_EXE_headwater")).args(["init", database.url()]).output();
    assert!(made.unwrap().status.success());
    let name = format!("{:08x}", rand::random::<u32>());
    let bus = format!(
        "topic_prefix = \"{name}-\"\npositions_topic = \"{name}-positions\"\ntransactions = true\n\
         transactional_id = \"{name}\"\n"
    );
    (database, bus)
}

/// Relays are stopped and started again, one after the other, while there is always something to publish: what one
/// stops working the other goes on with at once, and nothing comes twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_repeats_nothing_and_holds_nothing_up() {
    let (database, bus) = service().await;
    let brokers = Kafka::shared().await.unwrap().brokers();
    // Whoever waited for the next renewal would wait for up to five seconds, twice.
    let mut relays = [0, 1].map(|_| Relay::start(&database, &brokers, "20s", &bus));
    for relay in &mut relays {
        relay.ready().await;
    }
    until_shared(&database, &[4, 4]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (database, stop) = (database.clone(), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut connection = database.connect().await.unwrap();
            let mut pace = tokio::time::interval(Duration::from_millis(10));
            let mut written = 0;
            while !stop.load(Ordering::Relaxed) {
                pace.tick().await;
                let key = written % KEYS;
                let sql = format!(
                    "select headwater_publish('entities', 'Changed', '{key}', '{{\"version\": {written}}}')"
                );
                connection.execute(AssertSqlSafe(sql)).await.unwrap();
                written += 1;
            }
            written as usize
        })
    };
    let reader: KafkaConfig = toml::from_str(&format!("brokers = [\"{brokers}\"]\n{bus}")).unwrap();
    let reader = KafkaBus::open(reader).await.unwrap();
    let seen: Arc<Mutex<Vec<(headwater_core::EventId, Duration)>>> = Arc::default();
    let consumer = {
        let seen = Arc::clone(&seen);
        let subscribe = Subscribe { streams: vec!["entities".into()], group: None, start: Start::Beginning };
        let mut events = reader.subscribe(subscribe).await.unwrap();
        tokio::spawn(async move {
            while let Ok(delivery) = events.next().await {
                let Delivery::Batch { records, .. } = delivery else { continue };
                let now = jiff::Timestamp::now().as_microsecond();
                let took = |time: i64| Duration::from_micros((now - time).unsigned_abs());
                seen.lock().unwrap().extend(records.iter().map(|one| (one.event.id, took(one.event.time))));
            }
        })
    };
    for relay in &mut relays {
        relay.restart(&database).await;
        until_shared(&database, &[4, 4]).await;
    }
    stop.store(true, Ordering::Relaxed);
    let written = writer.await.unwrap();
    until("all arrives", || seen.lock().unwrap().len() >= written).await;
    for relay in relays {
        relay.stop().await;
    }
    consumer.abort();
    let seen = seen.lock().unwrap();
    let ids: HashSet<_> = seen.iter().map(|(id, _)| *id).collect();
    assert_eq!((ids.len(), seen.len() - ids.len()), (written, 0), "events, repeats");
    let mut took: Vec<Duration> = seen.iter().map(|(_, took)| *took).collect();
    took.sort_unstable();
    let of = |hundredth: usize| took[took.len() * hundredth / 100];
    eprintln!("{written} events: p50 {:?}, p99 {:?}, at most {:?}", of(50), of(99), took[took.len() - 1]);
    assert!(of(99) < Duration::from_secs(5), "of 100 events the 99th took {:?}", of(99));
}

async fn until_shared(database: &Database, wanted: &[i64]) {
    let deadline = Instant::now() + PATIENCE;
    while shares(database).await != wanted {
        assert!(Instant::now() < deadline, "not {wanted:?}: {:?}", shares(database).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A relay that does not reach the bus leaves the lanes to one that does, and has its share when it does again.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_reach_the_bus_leaves_the_lanes_to_others() {
    let kafka = Kafka::settings().proxied().start().await.unwrap();
    let proxy = kafka.proxy().unwrap();
    let (database, bus) = service().await;
    database.execute(&entities()).await.unwrap();
    proxy.hold();
    let more = format!("{bus}timeout = \"1s\"\ntransaction_timeout = \"2s\"\n");
    let mut far = Relay::start(&database, &kafka.proxied_brokers().unwrap(), "20s", &more);
    let asked = || far.headwater.as_ref().unwrap().log_tail().contains("the bus does not answer");
    until("the bus is asked", asked).await;
    assert_eq!(shares(&database).await, [0_i64; 0], "what would it do with lanes");
    let mut near = Relay::start(&database, &kafka.brokers(), "20s", &bus);
    near.ready().await;
    until_shared(&database, &[8]).await;
    proxy.release();
    far.ready().await;
    until_shared(&database, &[4, 4]).await;

    change(&database, 600).await;
    until_published(&database, 600).await;
    proxy.hold();
    change(&database, 600).await;
    until_published(&database, 1_200).await;
    until_shared(&database, &[8]).await;
    proxy.release();
    until_shared(&database, &[4, 4]).await;
    for relay in [far, near] {
        relay.stop().await;
    }
}

async fn until_published(database: &Database, wanted: i64) {
    let (mut connection, deadline) = (database.connect().await.unwrap(), Instant::now() + PATIENCE);
    let published = "select count(*) from outbox where state = 'published'";
    let mut count = async || connection.fetch_one(published).await.unwrap().get::<i64, _>(0);
    let mut now = count().await;
    while now < wanted {
        assert!(Instant::now() < deadline, "{now} of {wanted}");
        tokio::time::sleep(Duration::from_millis(20)).await;
        now = count().await;
    }
}

/// So many events, about every key in turn.
async fn change(database: &Database, many: u32) {
    let sql = format!(
        "do $$ declare now bigint; begin for n in 1..{many} loop
             update entity set version = version + 1 where id = n % {KEYS} returning version into now;
             perform headwater_publish('entities', 'Changed', (n % {KEYS})::text, json_build_object('version', now));
         end loop; end $$"
    );
    database.execute(&sql).await.unwrap();
}

/// A relay stands still with its producers' queues full. Another takes over, fences it and publishes all that and what
/// is newer. When the first wakes up, nothing of what it had queued arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_stood_still_with_full_queues_delivers_nothing_of_them() {
    let kafka = Kafka::settings().proxied().start().await.unwrap();
    let (database, bus) = service().await;
    database.execute(&entities()).await.unwrap();
    let mut stalled = Relay::start(&database, &kafka.proxied_brokers().unwrap(), "2s", &bus);
    stalled.ready().await;
    until_shared(&database, &[8]).await;
    change(&database, 600).await;
    let reader: KafkaConfig = toml::from_str(&format!("brokers = [\"{}\"]\n{bus}", kafka.brokers())).unwrap();
    let reader: Arc<dyn Bus> = Arc::new(KafkaBus::open(reader).await.unwrap());
    let checker = Arc::new(Mutex::new(Checker::default()));
    let consumer = tokio::spawn(consume(Arc::clone(&reader), Arc::clone(&checker)));
    until("events arrive", || checker.lock().unwrap().distinct() == 600).await;

    kafka.proxy().unwrap().hold();
    change(&database, 6_000).await;
    let waits = || stalled.headwater.as_ref().unwrap().log_tail().contains("waiting for the Kafka brokers");
    until("its queues are full", waits).await;
    kill_process(stalled.pid(), Signal::STOP).unwrap();
    let mut next = Relay::start(&database, &kafka.brokers(), "2s", &bus);
    next.ready().await;
    change(&database, 600).await;
    let after = history(&database).await;
    until_all_arrives(&checker, &after, &database, std::slice::from_ref(&next)).await;

    kafka.proxy().unwrap().release();
    kill_process(stalled.pid(), Signal::CONT).unwrap();
    until_shared(&database, &[4, 4]).await;
    stalled.ready().await;
    change(&database, 600).await;
    let history = history(&database).await;
    let relays = [stalled, next];
    until_all_arrives(&checker, &history, &database, &relays).await;
    for relay in relays {
        relay.stop().await;
    }
    consumer.abort();
    assert_eq!(end_state(&*reader, &checker).await, newest(&history), "what compaction would leave");
    let checker = checker.lock().unwrap();
    checker.compare(&history).unwrap();
    assert_eq!((checker.distinct(), checker.repeated()), (7_800, 0), "events, repeats");
}
