//! A second process with the same config waits until the first is gone, and leaves it alone meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Instant;

use common::{PATIENCE, Place, Tables, subscribe};
use headwater_connect::kafka::{KafkaBus, KafkaConfig};
use headwater_testkit::servers::{Kafka, Postgres};

#[tokio::test(flavor = "multi_thread")]
async fn with_transactions_a_second_process_takes_over_and_does_not_fence_before() {
    let (server, kafka) = (Postgres::start().await.unwrap(), Kafka::shared().await.unwrap());
    let database = server.create_database().await.unwrap();
    database.execute("create table note (id int primary key, body text)").await.unwrap();
    let sections = format!(
        "[source.standby]\nkind = \"postgres\"\nurl = \"{}\"\ntables = [\"public.note\"]\n\
         [bus]\nkind = \"kafka\"\nbrokers = [\"{}\"]\ntransactions = true\n\
         [stream.standby_notes]\nfrom = \"standby.public.note\"\ncolumns = \"*\"\npartitions = 1\n",
        database.url(),
        kafka.brokers()
    );
    let (first, second) = (Place::new(&sections), Place::new(&sections));
    let running = first.run().await;
    let waiting = second.start();
    let deadline = Instant::now() + PATIENCE;
    let mut attempts = 0;
    // It has tried more than once.
    while attempts < 2 {
        assert!(Instant::now() < deadline, "{}", waiting.log_tail());
        let status = headwater_testkit::binary::get(&second.listen, "/status").await;
        let Ok((_, body)) = status else { continue };
        let status: serde_json::Value = serde_json::from_str(&body).unwrap();
        let source = &status["sources"][0];
        if let Some(error) = source["error"].as_str() {
            assert!(error.contains("is used by another"), "{error}");
            attempts = source["attempts"].as_u64().unwrap();
        }
    }
    let reader: KafkaConfig = toml::from_str(&format!("brokers = [\"{}\"]", kafka.brokers())).unwrap();
    let bus = KafkaBus::open(reader).await.unwrap();
    let mut events = subscribe(&bus, &["standby_notes"]).await;
    let mut tables = Tables::default();
    database.execute("insert into note values (1, 'one')").await.unwrap();
    tables.until("the first publishes", &mut *events, |tables| tables.rows("standby_notes").len() == 1).await;
    let (_, metrics) = headwater_testkit::binary::get(&first.listen, "/metrics").await.unwrap();
    assert!(metrics.contains("headwater_retries_total{source=\"standby\"} 0"), "it was disturbed: {metrics}");
    running.kill().await;
    database.execute("insert into note values (2, 'two')").await.unwrap();
    tables.until("the second goes on", &mut *events, |tables| tables.rows("standby_notes").len() == 2).await;
    assert_eq!(waiting.stop(PATIENCE).await.unwrap().code(), Some(0));
}
