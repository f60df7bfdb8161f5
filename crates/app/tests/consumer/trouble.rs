//! Members that come and go, and servers that are away.

use headwater::core::ports::{Shelf, ShelfFilter};
use headwater_testkit::servers::{Kafka, Postgres};

use super::common::{Record, Service};

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go() {
    let mut service = Service::new().await;
    let first = service.run(service.builder().batch(5), Record::default());
    for round in 0..4 {
        service.publish(&["a", "b", "c", "d", "e", "f", "g", "h"], 100).await;
        let second = service.run(service.builder().batch(5), Record::default());
        service.publish(&["a", "b", "c", "d", "e", "f", "g", "h"], 100).await;
        service
            .until(&format!("SELECT (count(*) > {round} * 1600 + 1000)::int::bigint FROM effect"), 1)
            .await;
        second.stop().await.unwrap();
    }
    service.check().await;
    first.stop().await.unwrap();
}

/// Members come and go while keys are parked by chance and a person lets them go again at once.
#[tokio::test(flavor = "multi_thread")]
async fn parked_keys_keep_their_order_while_members_come_and_go() {
    let mut service = Service::new().await;
    let record = Record { chance: 20, ..Record::default() };
    let builder = service.builder().attempts(1).batch(20);
    let (first, shelf) = (service.run(builder, record.clone()), service.inbox());
    let person = tokio::spawn(async move {
        loop {
            shelf.retry(&ShelfFilter::default()).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    for _ in 0..4 {
        service.publish(&["a", "b", "c", "d", "e", "f", "g", "h"], 40).await;
        let second = service.run(service.builder().attempts(1).batch(20), record.clone());
        service.publish(&["a", "b", "c", "d", "e", "f", "g", "h"], 40).await;
        let more = service.count("SELECT count(*) FROM effect").await + 200;
        service.until(&format!("SELECT (count(*) > {more})::int::bigint FROM effect"), 1).await;
        second.stop().await.unwrap();
    }
    service.check().await;
    service.until("SELECT count(*) FROM headwater_parked", 0).await;
    person.abort();
    first.stop().await.unwrap();
}

/// With one attempt, so that an outage that counted as one would park.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_dies_parks_nothing() {
    let server = Postgres::start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let bus = headwater::connect::embedded::EmbeddedBus::open(dir.path(), super::common::embedded()).await;
    let database = server.create_database().await.unwrap();
    let mut service = Service::on(dir, std::sync::Arc::new(bus.unwrap()), database).await;
    let running = service.run(service.builder().attempts(1), Record::default());
    for round in 1..=4 {
        service.publish(&["a", "b", "c", "d"], 200).await;
        service.until(&format!("SELECT (count(*) > {round} * 800 - 700)::int::bigint FROM effect"), 1).await;
        if round % 2 == 1 {
            server.kill();
        } else {
            server.stop().await.unwrap();
        }
        server.restart().await.unwrap();
    }
    service.check().await;
    assert_eq!(service.parked().await, []);
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_that_dies_is_waited_for() {
    let kafka = Kafka::start().await.unwrap();
    let config = headwater::connect::kafka::KafkaConfig::new([kafka.brokers()]);
    let bus = headwater::connect::kafka::KafkaBus::open(config).await.unwrap();
    let database = Postgres::shared().await.unwrap().create_database().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Service::on(dir, std::sync::Arc::new(bus), database).await;
    let first = service.run(service.builder(), Record::default());
    service.publish(&["a", "b", "c", "d"], 200).await;
    let second = service.run(service.builder(), Record::default());
    service.check().await;
    kafka.kill();
    kafka.restart().await.unwrap();
    service.publish(&["a", "b", "c", "d"], 200).await;
    service.check().await;
    second.stop().await.unwrap();
    service.publish(&["a", "b", "c", "d"], 200).await;
    service.check().await;
    first.stop().await.unwrap();
    assert_eq!(service.lag().await, 0);
}
