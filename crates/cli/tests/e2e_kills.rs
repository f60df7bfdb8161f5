//! Kill -9 at random moments, servers that die, networks that hold and break: nothing is lost, nothing
//! that rolled back arrives, keys keep their order, ids stay (invariants 1, 2, 3). PostgreSQL's load meets a
//! snapshot, transactions that are sent before they end, keys that change, truncations and an outbox.
//!
//! `HEADWATER_SOAK_TIMES` says how often things go wrong (10 by default; `cargo xtask soak kills` sets
//! it), `HEADWATER_SOAK_SEED` repeats a run.

#![allow(clippy::unwrap_used)] // clippy.toml knows tests by their attribute only

use std::path::Path;
use std::sync::Arc;

use headwater_connect::embedded::{EmbeddedBus, EmbeddedConfig};
use headwater_connect::kafka::{KafkaBus, KafkaConfig};
use headwater_core::ports::{Bus, Start, Subscribe};
use headwater_testkit::kills::{Soak, Subscribing, seed, times};
use headwater_testkit::load;
use headwater_testkit::servers::{Database, Kafka, Postgres, Proxy, free_port};
use rand::RngExt;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_headwater"))
}

/// Writes a config that captures the load's tables by `source` into `streams` on `bus`.
fn config(dir: &Path, source: &str, streams: &str, bus: &str) -> (std::path::PathBuf, String) {
    let listen = format!("127.0.0.1:{}", free_port());
    let text = format!(
        r#"
data_dir = "{dir}/data"
[http]
listen = "{listen}"
[source.bank]
{source}
[bus]
{bus}
{streams}
"#,
        dir = dir.display()
    );
    let path = dir.join("headwater.toml");
    std::fs::write(&path, text).unwrap();
    (path, listen)
}

const ACCOUNTS: &str = r#"
[stream.accounts]
from = "bank.account"
columns = "*"
partitions = 4
"#;

/// What is on PostgreSQL only.
const OTHERS: &str = r#"
[stream.ledgers]
from = "bank.ledger"
columns = "*"
partitions = 4
[stream.notes]
partitions = 4
"#;

fn postgres(url: &str) -> String {
    format!(
        "kind = \"postgres\"\nurl = \"{url}\"\ntables = [\"account\", \"ledger\"]\noutbox = \"public.outbox\""
    )
}

/// What becomes of PostgreSQL's load.
const STREAMS: [&str; 3] = ["accounts", "ledgers", "notes"];

/// A server that sends large transactions before they have ended, with the load's tables.
async fn loaded_postgres() -> (Postgres, Database) {
    let server = Postgres::settings().set("logical_decoding_work_mem", "64kB").start().await.unwrap();
    let database = server.create_database().await.unwrap();
    database.execute(load::TABLES).await.unwrap();
    (server, database)
}

/// Transactions have been sent in pieces.
async fn were_in_pieces(database: &Database) {
    let mut connection = database.connect().await.unwrap();
    let sql = "select sum(stream_count)::int8 from pg_stat_replication_slots";
    let pieces: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    assert!(pieces > 0, "no transaction was sent before it had ended");
}

fn subscribe_embedded(dir: &Path, streams: &'static [&'static str]) -> Subscribing {
    let data = dir.join("data");
    Box::new(move || {
        let data = data.clone();
        Box::pin(async move {
            let bus = EmbeddedBus::open_reader(&data, EmbeddedConfig::default()).await?;
            let streams = streams.iter().map(|stream| (*stream).into()).collect();
            bus.subscribe(Subscribe { streams, group: None, start: Start::Beginning }).await
        })
    })
}

fn subscribe(bus: Arc<dyn Bus>, streams: &'static [&'static str]) -> Subscribing {
    Box::new(move || {
        let bus = bus.clone();
        Box::pin(async move {
            let streams = streams.iter().map(|stream| (*stream).into()).collect();
            bus.subscribe(Subscribe { streams, group: None, start: Start::Beginning }).await
        })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn headwater_is_killed_between_postgres_and_the_embedded_bus() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, database) = loaded_postgres().await;
    let (config, listen) =
        config(dir.path(), &postgres(database.url()), &(ACCOUNTS.to_owned() + OTHERS), "kind = \"embedded\"");
    let subscribe = subscribe_embedded(dir.path(), &STREAMS);
    let mut soak = Soak::start(program(), &config, &listen, database.url(), seed(), subscribe).await;
    soak.read_on().await;
    soak.kill().await;
    only_headwater_is_killed(soak).await;
    were_in_pieces(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headwater_is_killed_between_sqlite_and_the_embedded_bus() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bank.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch(load::SQLITE_TABLES).unwrap();
    let url = format!("sqlite://{}", path.display());
    let source = format!("kind = \"sqlite\"\nurl = \"{url}\"\ntables = [\"account\"]");
    let (config, listen) = config(dir.path(), &source, ACCOUNTS, "kind = \"embedded\"");
    let subscribe = subscribe_embedded(dir.path(), &["accounts"]);
    let soak = Soak::start(program(), &config, &listen, &url, seed(), subscribe).await;
    only_headwater_is_killed(soak).await;
}

async fn only_headwater_is_killed(mut soak: Soak) {
    for _ in 0..times() {
        let arrive = soak.random.random_ratio(1, 2);
        soak.go_on(arrive).await;
        soak.kill().await;
    }
    eprintln!("{}", soak.finish().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_killed_held_and_cut_between_postgres_and_kafka() {
    let dir = tempfile::tempdir().unwrap();
    let (server, database) = loaded_postgres().await;
    let kafka = Kafka::settings().proxied().start().await.unwrap();
    let to_postgres = Proxy::start(("127.0.0.1", server.port())).await.unwrap();
    let source = database.url_through(&to_postgres);
    let proxied = kafka.proxied_brokers().unwrap();
    let to_kafka = kafka.proxy().unwrap();
    let bus = format!("kind = \"kafka\"\nbrokers = [\"{proxied}\"]");
    let (config, listen) = config(dir.path(), &postgres(&source), &(ACCOUNTS.to_owned() + OTHERS), &bus);
    let reader: KafkaConfig = toml::from_str(&format!("brokers = [\"{}\"]", kafka.brokers())).unwrap();
    let bus = Arc::new(KafkaBus::open(reader).await.unwrap());
    let mut soak =
        Soak::start(program(), &config, &listen, database.url(), seed(), subscribe(bus, &STREAMS)).await;
    soak.read_on().await;
    soak.kill().await;
    for round in 0..times() {
        soak.go_on(true).await;
        match round % 7 {
            0 | 2 | 4 => soak.kill().await,
            1 => {
                server.kill();
                server.restart().await.unwrap();
            }
            3 => {
                kafka.kill();
                soak.go_on(false).await;
                kafka.restart().await.unwrap();
            }
            5 => {
                to_postgres.hold();
                soak.go_on(false).await;
                to_postgres.cut();
                to_postgres.release();
            }
            _ => {
                to_kafka.hold();
                soak.go_on(false).await;
                to_kafka.cut();
                to_kafka.release();
            }
        }
    }
    eprintln!("{}", soak.finish().await.unwrap());
    were_in_pieces(&database).await;
}

/// The checkpoint is in the events' transaction: what a killed run had published and not written down is
/// neither lost nor published again.
#[tokio::test(flavor = "multi_thread")]
async fn with_transactions_a_log_reaches_kafka_exactly_once() {
    let dir = tempfile::tempdir().unwrap();
    let (server, database) = loaded_postgres().await;
    let kafka = Kafka::settings().start().await.unwrap();
    let bus = format!("kind = \"kafka\"\nbrokers = [\"{}\"]\ntransactions = true", kafka.brokers());
    let (config, listen) =
        config(dir.path(), &postgres(database.url()), &(ACCOUNTS.to_owned() + OTHERS), &bus);
    let reader: KafkaConfig = toml::from_str(&format!("brokers = [\"{}\"]", kafka.brokers())).unwrap();
    let bus = Arc::new(KafkaBus::open(reader).await.unwrap());
    let mut soak =
        Soak::start(program(), &config, &listen, database.url(), seed(), subscribe(bus, &STREAMS)).await;
    soak.read_on().await;
    soak.kill().await;
    for round in 0..times() {
        soak.go_on(true).await;
        match round % 5 {
            2 => {
                server.kill();
                server.restart().await.unwrap();
            }
            4 => {
                kafka.kill();
                soak.go_on(false).await;
                kafka.restart().await.unwrap();
            }
            _ => soak.kill().await,
        }
    }
    let ended = soak.finish().await.unwrap();
    eprintln!("{ended}");
    assert!(ended.contains(", 0 repeats"), "{ended}");
}
