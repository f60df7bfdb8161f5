//! Kill -9 of the consumer's process at random moments.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use headwater::connect::embedded::EmbeddedBus;
use headwater::connect::kafka::{KafkaBus, KafkaConfig};
use headwater::connect::postgres::inbox::PostgresInbox;
use headwater::core::ports::Bus;
use headwater::{Failure, Handled, Received, StopToken};
use headwater_testkit::binary::Headwater;
use headwater_testkit::servers::{Kafka, Postgres};
use rand::RngExt;

use super::common::{Service, Tx, builder, embedded, pool, write};

/// What a child has to know: bus, stream and database.
const CHILD: &str = "HEADWATER_TEST_CONSUMER";

/// Not a test: the process that is killed. It fails now and then, too.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let told: Vec<&str> = told.split('|').collect();
    let [kind, place, stream, url] = told[..] else { panic!("{told:?}") };
    let bus: Arc<dyn Bus> = match kind {
        "kafka" => Arc::new(KafkaBus::open(KafkaConfig::new([place])).await.unwrap()),
        _ => Arc::new(EmbeddedBus::open_reader(Path::new(place), embedded()).await.unwrap()),
    };
    async fn handle(tx: &mut Tx, event: &Received) -> Handled {
        write(tx, event.key().unwrap_or_default(), event.json()?).await?;
        if rand::rng().random_ratio(1, 200) {
            return Err(Failure::retry("now and then"));
        }
        Ok(())
    }
    let inbox = PostgresInbox::new(pool(url, 12).await);
    let consumer = builder(bus, stream, inbox).batch(10).attempts(100).build().unwrap();
    consumer.run(handle, StopToken::new()).await.unwrap();
}

/// How often something is killed; `HEADWATER_SOAK_TIMES` asks for more.
fn times(least: usize) -> usize {
    let times = std::env::var("HEADWATER_SOAK_TIMES").ok().and_then(|times| times.parse().ok());
    times.unwrap_or(least)
}

/// Starts a child.
fn start(service: &Service, bus: &str, number: usize) -> Headwater {
    let told = format!("{bus}|{}|{}", service.stream, service.database.url());
    let told = format!("{CHILD}={told}");
    let program = std::env::current_exe().unwrap();
    let log = service.dir.path().join(format!("child-{number}.log"));
    let program = program.to_str().unwrap();
    // The environment of one child only.
    let arguments = [told.as_str(), program, "--exact", "kills::child", "--nocapture"];
    Headwater::start(Path::new("/usr/bin/env"), &arguments, &log)
}

async fn everything_is_killed(mut service: Service, bus: &str, rounds: usize) {
    let keys: Vec<String> = (0..20).map(|key| format!("key-{key}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let mut children = vec![start(&service, bus, 0), start(&service, bus, 1)];
    for round in 0..rounds {
        service.publish(&keys, 30).await;
        // At least one more effect, then a moment by chance: a kill in the middle of transactions.
        let before = service.count("SELECT count(*) FROM effect").await;
        service.until(&format!("SELECT (count(*) > {before})::int::bigint FROM effect"), 1).await;
        let moment = rand::rng().random_range(0..60);
        tokio::time::sleep(Duration::from_millis(moment)).await;
        children.remove(0).kill().await;
        children.push(start(&service, bus, round % 2));
    }
    service.check().await;
    for mut child in children {
        assert!(child.ended().is_none(), "{}", child.log_tail());
        child.kill().await;
    }
    assert_eq!(service.parked().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn effects_are_made_once_however_often_the_consumer_is_killed() {
    let service = Service::new().await;
    let bus = format!("embedded|{}", service.dir.path().display());
    everything_is_killed(service, &bus, times(8)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_they_are_on_kafka() {
    let kafka = Kafka::settings().set("group.initial.rebalance.delay.ms", 0).start().await.unwrap();
    let bus = KafkaBus::open(KafkaConfig::new([kafka.brokers()])).await.unwrap();
    let database = Postgres::shared().await.unwrap().create_database().await.unwrap();
    let service = Service::on(tempfile::tempdir().unwrap(), Arc::new(bus), database).await;
    everything_is_killed(service, &format!("kafka|{}", kafka.brokers()), times(4)).await;
}
