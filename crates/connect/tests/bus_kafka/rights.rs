//! A cluster that asks who is there, and does not let everyone do everything.

use headwater_connect::kafka::KafkaConfig;
use headwater_core::Kind;
use headwater_core::ports::Bus;
use headwater_testkit::servers::Kafka;

use super::tools::{event, open, publish, read, spec, unique, within};

fn login(kafka: &Kafka, name: &str, password: &str) -> KafkaConfig {
    let mut config = KafkaConfig::new([kafka.sasl_brokers()]);
    for (key, value) in [
        ("security.protocol", "SASL_PLAINTEXT"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", name),
        ("sasl.password", password),
    ] {
        config.options.insert(key.into(), value.into());
    }
    config
}

/// SASL goes through; a wrong password, and a missing right to make topics, say what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_log_in_and_may_or_may_not() {
    let kafka = Kafka::settings()
        .user("admin", "admin-secret")
        .user("app", "app-secret")
        .set("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer")
        .set("super.users", "User:ANONYMOUS;User:admin")
        .start()
        .await
        .unwrap();
    let bus = open(&login(&kafka, "admin", "admin-secret")).await;
    let stream = unique("stream");
    bus.ensure(&spec(&stream, 1)).await.unwrap();
    publish(&bus, vec![event(&stream, Some(0), 1, 1)], None).await.unwrap();
    read(&bus, &stream, 1).await;

    let wrong = KafkaConfig { timeout: std::time::Duration::from_secs(3), ..login(&kafka, "admin", "guess") };
    let error = within(open(&wrong).await.ensure(&spec(&stream, 1))).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("sasl.password") && !text.contains("guess"), "{text}");

    let bus = open(&login(&kafka, "app", "app-secret")).await;
    let error = within(bus.ensure(&spec(&unique("stream"), 3))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    let text = error.to_string();
    assert!(text.contains("kafka-topics.sh") && text.contains("--partitions 3"), "{text}");
}
