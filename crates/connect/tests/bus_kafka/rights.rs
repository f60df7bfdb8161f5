//! A cluster that asks who is there, and does not let everyone do everything.

use std::path::Path;

use headwater_connect::kafka::{KafkaBus, KafkaConfig};
use headwater_core::Kind;
use headwater_core::ports::Bus;
use headwater_testkit::servers::Kafka;

use super::tools::{event, open, publish, read, spec, unique, within};

/// A key and a certificate of its own for 127.0.0.1, in PEM; the certificate alone in a file.
fn identity(dir: &Path) -> String {
    let (key, certificate) = (dir.join("key.pem"), dir.join("certificate.pem"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=kafka"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::read_to_string(key).unwrap() + &std::fs::read_to_string(certificate).unwrap()
}

fn login(kafka: &Kafka, dir: &Path, name: &str, password: &str) -> KafkaConfig {
    let mut config = KafkaConfig::new([kafka.sasl_brokers()]);
    for (key, value) in [
        ("security.protocol", "SASL_SSL"),
        ("ssl.ca.location", dir.join("certificate.pem").to_str().unwrap()),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", name),
        ("sasl.password", password),
    ] {
        config.options.insert(key.into(), value.into());
    }
    config
}

/// SASL and TLS go through; a wrong password, and a missing right to make topics, say what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_log_in_and_may_or_may_not() {
    let dir = tempfile::tempdir().unwrap();
    let kafka = Kafka::settings()
        .tls(&identity(dir.path()))
        .user("admin", "admin-secret")
        .user("app", "app-secret")
        .set("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer")
        .set("super.users", "User:ANONYMOUS;User:admin")
        .start()
        .await
        .unwrap();
    let bus = open(&login(&kafka, dir.path(), "admin", "admin-secret")).await;
    let stream = unique("stream");
    bus.ensure(&spec(&stream, 1)).await.unwrap();
    publish(&bus, vec![event(&stream, Some(0), 1, 1)], None).await.unwrap();
    read(&bus, &stream, 1).await;

    let wrong = KafkaConfig {
        timeout: std::time::Duration::from_secs(3),
        ..login(&kafka, dir.path(), "admin", "guess")
    };
    let error = within(open(&wrong).await.ensure(&spec(&stream, 1))).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("sasl.password") && !text.contains("guess"), "{text}");
    assert_eq!(error.kind(), Kind::Refused, "{text}");

    let mut stranger = login(&kafka, dir.path(), "admin", "admin-secret");
    stranger.timeout = std::time::Duration::from_secs(3);
    stranger.options.remove("ssl.ca.location");
    let text = within(open(&stranger).await.ensure(&spec(&stream, 1))).await.unwrap_err().to_string();
    assert!(text.contains("certificate verify") && text.contains("ssl.ca.location"), "{text}");

    let bus = open(&login(&kafka, dir.path(), "app", "app-secret")).await;
    let error = within(bus.ensure(&spec(&unique("stream"), 3))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    let text = error.to_string();
    assert!(text.contains("kafka-topics.sh") && text.contains("--partitions 3"), "{text}");
}

/// What stands under a name that librdkafka does not know may be a password.
#[tokio::test]
async fn a_mistyped_option_is_named_and_its_value_is_not() {
    let mut config = KafkaConfig::new(["127.0.0.1:1"]);
    config.options.insert("sasl.pasword".into(), "hush".into());
    let error = KafkaBus::open(config).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Config);
    let text = error.to_string();
    assert!(text.contains("sasl.pasword") && !text.contains("hush"), "{text}");
}
