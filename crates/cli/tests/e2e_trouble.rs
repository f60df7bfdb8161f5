//! Bad input and full disks: a clear error, nothing lost, others go on.

#![allow(clippy::unwrap_used)] // clippy.toml knows tests by their attribute only

mod common;

use std::collections::BTreeMap;

use common::{PATIENCE, Place, Tables, rows_of, subscribe};
use headwater_connect::kafka::{KafkaBus, KafkaConfig};
use headwater_testkit::binary::Headwater;
use headwater_testkit::disk::SmallDisk;
use headwater_testkit::servers::{Kafka, Postgres, Right};
use sqlx::{Executor, Row};

const TABLE: &str = "create table note (id int primary key, body text)";

fn sections(url: &str, bus: &str) -> String {
    format!(
        "[source.notes]\nkind = \"postgres\"\nurl = \"{url}\"\ntables = [\"public.note\"]\n\
         [bus]\n{bus}\n[stream.note]\nfrom = \"notes.public.note\"\ncolumns = \"*\"\npartitions = 1\n"
    )
}

/// Waits until `/status` counts this many parked changes.
async fn parked(place: &Place, count: u64) {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let status = place.status().await;
        if status["sources"][0]["parked"] == count {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{count} parked changes: {status:#}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// What `/metrics` says, each metric with its labels and its value, once it says what it should.
async fn metrics(place: &Place, should: impl Fn(&BTreeMap<String, f64>) -> bool) -> BTreeMap<String, f64> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let (_, body) = headwater_testkit::binary::get(&place.listen, "/metrics").await.unwrap();
        let lines = body.lines().filter(|line| !line.starts_with('#'));
        let values = lines.filter_map(|line| line.rsplit_once(' '));
        let metrics = values.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect();
        if should(&metrics) {
            return metrics;
        }
        assert!(std::time::Instant::now() < deadline, "{metrics:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// The labels of the metrics of this file's one source, and of its one stream.
const OF_SOURCE: &str = "{source=\"notes\"}";
const OF_STREAM: &str = "{source=\"notes\",stream=\"note\"}";

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_over_kafkas_limit_is_parked_and_others_go_on() {
    let kafka = Kafka::shared().await.unwrap();
    let log = parks_what_is_too_large(kafka, &format!("brokers = [\"{}\"]", kafka.brokers())).await;
    assert!(log.contains("3000"), "the size is named:\n{log}");
}

/// The same when nobody may tell Headwater the limit, so that the brokers have to refuse it first.
#[tokio::test(flavor = "multi_thread")]
async fn a_payload_over_an_unknown_limit_is_parked_and_others_go_on() {
    let kafka = Kafka::settings().user("app", "app-secret").authorizes().start().await.unwrap();
    kafka.allow("app", &[Right::Read, Right::Write, Right::Create]).await.unwrap();
    let options = "\"security.protocol\" = \"SASL_PLAINTEXT\", \"sasl.mechanism\" = \"PLAIN\", \
                   \"sasl.username\" = \"app\", \"sasl.password\" = \"app-secret\"";
    let bus = format!("brokers = [\"{}\"]\noptions = {{ {options} }}", kafka.sasl_brokers());
    let log = parks_what_is_too_large(&kafka, &bus).await;
    assert!(log.contains("the brokers refused one of"), "{log}");
}

/// Returns the last lines of the log.
async fn parks_what_is_too_large(kafka: &Kafka, bus: &str) -> String {
    let server = Postgres::start().await.unwrap();
    let database = server.create_database().await.unwrap();
    database.execute(TABLE).await.unwrap();
    let place = Place::new(&sections(database.url(), &format!("kind = \"kafka\"\n{bus}")));
    let headwater = place.run().await;
    // Of 3 MB, and of nothing that compresses well.
    let large = "(select string_agg(md5(n::text), '') from generate_series(1, 93750) n)";
    database.execute(&format!("insert into note values (1, {large}), (2, 'two')")).await.unwrap();
    // What follows the parked event in its key waits behind it; other keys go on.
    database
        .execute("update note set body = 'small now' where id = 1; insert into note values (3, 'three')")
        .await
        .unwrap();
    let reader: KafkaConfig = toml::from_str(&format!("brokers = [\"{}\"]", kafka.brokers())).unwrap();
    let bus = KafkaBus::open(reader).await.unwrap();
    let mut events = subscribe(&bus, &["note"]).await;
    let mut arrived = Tables::default();
    arrived.until("the others", &mut *events, |arrived| arrived.rows("note").len() == 2).await;
    assert_eq!(arrived.rows("note"), [r#"{"body":"three","id":"3"}"#, r#"{"body":"two","id":"2"}"#]);
    parked(&place, 2).await;
    let log = headwater.log_tail();
    assert!(headwater.stop(PATIENCE).await.unwrap().success());
    log
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_not_utf8_is_parked_and_others_go_on() {
    let server =
        Postgres::settings().initdb("--encoding=SQL_ASCII").initdb("--no-locale").start().await.unwrap();
    let database = server.create_database().await.unwrap();
    database.execute(TABLE).await.unwrap();
    let place = Place::new(&sections(database.url(), "kind = \"embedded\""));
    let headwater = place.run().await;
    database.execute(r"insert into note values (1, E'caf\351'), (2, 'two')").await.unwrap();
    database.execute("insert into note values (3, 'three')").await.unwrap();
    let mut events = place.read(&["note"]).await;
    let mut arrived = Tables::default();
    arrived.until("the others", &mut *events, |arrived| arrived.rows("note").len() == 2).await;
    parked(&place, 1).await;
    let [events, held] = ["events", "parked"].map(|name| format!("headwater_{name}_total{OF_STREAM}"));
    let metrics = metrics(&place, |now| now[&events] == 2.0 && now[&held] == 1.0).await;
    let of = |name: &str, labels: &str| metrics[&format!("{name}{labels}")];
    assert_eq!((of("headwater_parked", OF_SOURCE), of("headwater_source_up", OF_SOURCE)), (1.0, 1.0));
    assert_eq!(of("headwater_retries_total", OF_SOURCE), 0.0);
    assert!((100.0..10_000.0).contains(&of("headwater_bytes_total", OF_SOURCE)), "{metrics:#?}");
    assert_eq!(of("headwater_batch_events_sum", OF_SOURCE), 2.0);
    assert!(of("headwater_batch_events_count", OF_SOURCE) >= 1.0);
    assert!(of("headwater_batch_bytes_sum", OF_SOURCE) >= of("headwater_bytes_total", OF_SOURCE));
    assert!((1e6..1e9).contains(&of("headwater_memory_bytes", "")), "{metrics:#?}");
    assert!(headwater.stop(PATIENCE).await.unwrap().success());
}

/// Waits until `/status` says that the disk is full.
async fn full(place: &Place, headwater: &Headwater) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !place.status().await["sources"][0]["error"].to_string().contains("full") {
        assert!(std::time::Instant::now() < deadline, "no word of a full disk:\n{}", headwater.log_tail());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_nothing_for_good_and_loses_nothing() {
    let server = Postgres::start().await.unwrap();
    let database = server.create_database().await.unwrap();
    database.execute(TABLE).await.unwrap();
    let place = Place::new(&sections(database.url(), "kind = \"embedded\""));
    let data = place.data();
    let Some(_disk) = SmallDisk::mount(&data, 24) else { return };
    let filler = data.join("filler");
    std::fs::write(&filler, vec![1; 16 << 20]).unwrap();
    let headwater = place.run().await;
    let sql = "insert into note select n, repeat('x', 1000) from generate_series(1, 8000) n";
    database.execute(sql).await.unwrap();
    full(&place, &headwater).await;
    let of_source = |name: &str| format!("headwater_{name}{OF_SOURCE}");
    let (up, behind, retries) =
        (of_source("source_up"), of_source("lag_seconds"), of_source("retries_total"));
    metrics(&place, |now| now[&up] == 0.0 && now[&behind] > 0.0 && now[&retries] >= 1.0).await;
    std::fs::remove_file(&filler).unwrap();
    let rows = rows_of(&database, "note").await;
    let mut events = place.read(&["note"]).await;
    let mut arrived = Tables::default();
    arrived
        .until("every row, once there is room", &mut *events, |arrived| arrived.rows("note") == rows)
        .await;
    let (events, unread) = (format!("headwater_events_total{OF_STREAM}"), of_source("lag_bytes"));
    metrics(&place, |now| now[&up] == 1.0 && now[&behind] == 0.0 && now[&unread] < 1e6).await;
    metrics(&place, |now| now[&events] >= 8000.0 && now[&retries] >= 1.0).await;
    assert!(headwater.stop(PATIENCE).await.unwrap().success());
}

/// Only parked.db is on the disk that is full: what cannot be parked is not passed over.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_parked_store_holds_the_source_until_there_is_room() {
    let server =
        Postgres::settings().initdb("--encoding=SQL_ASCII").initdb("--no-locale").start().await.unwrap();
    let database = server.create_database().await.unwrap();
    database.execute(TABLE).await.unwrap();
    let kafka = Kafka::shared().await.unwrap();
    let topics = "topic_prefix = \"full-\"\npositions_topic = \"full-positions\"";
    let bus = format!("brokers = [\"{}\"]\n{topics}", kafka.brokers());
    let place = Place::new(&sections(database.url(), &format!("kind = \"kafka\"\n{bus}")));
    let Some(disk) = SmallDisk::mount(&place.data(), 24) else { return };
    let headwater = place.run().await;
    let filler = disk.fill();
    let bad = r"insert into note values (1, E'caf\351' || repeat('x', 1000000))";
    let mut connection = database.connect().await.unwrap();
    connection.execute(bad).await.unwrap();
    let committed = connection.fetch_one("select pg_current_wal_insert_lsn()::text").await.unwrap();
    database.execute("insert into note values (2, 'two')").await.unwrap();
    full(&place, &headwater).await;
    assert_eq!(place.status().await["sources"][0]["parked"], 0);
    let confirmed = format!(
        "select confirmed_flush_lsn < '{}' from pg_replication_slots where not temporary",
        committed.get::<&str, _>(0)
    );
    let before = connection.fetch_one(sqlx::AssertSqlSafe(confirmed)).await.unwrap().get::<bool, _>(0);
    assert!(before, "what is not parked is not confirmed");
    drop(filler);
    parked(&place, 1).await;
    let bus = KafkaBus::open(toml::from_str(&bus).unwrap()).await.unwrap();
    let mut events = subscribe(&bus, &["note"]).await;
    let mut arrived = Tables::default();
    arrived.until("the other", &mut *events, |arrived| arrived.rows("note").len() == 1).await;
    assert_eq!(arrived.rows("note"), [r#"{"body":"two","id":"2"}"#]);
    assert!(headwater.stop(PATIENCE).await.unwrap().success());
}
