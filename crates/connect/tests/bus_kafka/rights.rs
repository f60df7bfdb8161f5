//! A cluster that asks who is there, and does not let everyone do everything.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use headwater_connect::kafka::{KafkaBus, KafkaConfig};
use headwater_core::ports::{Bus, Published, Rejection, Start, Subscribe};
use headwater_core::{Event, Kind, Record, Result};
use headwater_testkit::servers::{Kafka, Right};
use rdkafka::admin::{NewTopic, TopicReplication};

use super::tools::{
    Client, admin, checkpoint, event, first_deliveries, large, limit, number, open, publish, read, spec,
    unique, until, within,
};

/// How long a question takes that nobody answers: longer than one that a busy machine answers.
const BRIEFLY: Duration = Duration::from_secs(10);

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
        .authorizes()
        .start()
        .await
        .unwrap();
    let bus = open(&login(&kafka, dir.path(), "admin", "admin-secret")).await;
    let stream = unique("stream");
    bus.ensure(&spec(&stream, 1)).await.unwrap();
    publish(&bus, vec![event(&stream, Some(0), 1, 1)], None).await.unwrap();
    read(&bus, &stream, 1).await;

    let wrong = KafkaConfig { timeout: BRIEFLY, ..login(&kafka, dir.path(), "admin", "guess") };
    let error = within(open(&wrong).await.ensure(&spec(&stream, 1))).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("sasl.password") && !text.contains("guess"), "{text}");
    assert_eq!(error.kind(), Kind::Refused, "{text}");

    let mut stranger = login(&kafka, dir.path(), "admin", "admin-secret");
    stranger.timeout = BRIEFLY;
    stranger.options.remove("ssl.ca.location");
    let text = within(open(&stranger).await.ensure(&spec(&stream, 1))).await.unwrap_err().to_string();
    assert!(text.contains("certificate verify") && text.contains("ssl.ca.location"), "{text}");

    let bus = open(&login(&kafka, dir.path(), "app", "app-secret")).await;
    let error = within(bus.ensure(&spec(&unique("stream"), 3))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    let text = error.to_string();
    assert!(text.contains("kafka-topics.sh") && text.contains("--partitions 3"), "{text}");
    // Not to be told of a stream is not that there is none.
    let error = within(bus.know(&stream)).await.unwrap_err();
    let text = error.to_string();
    assert!(error.kind() == Kind::Refused && text.contains(&format!("read topic {stream}")), "{text}");
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

/// A cluster where "app" may read, write and make all topics, and know the settings of none; how it logs
/// in there.
async fn limited() -> (&'static Kafka, KafkaConfig) {
    static LIMITED: tokio::sync::OnceCell<Kafka> = tokio::sync::OnceCell::const_new();
    let start = async || {
        let kafka = Kafka::settings().user("app", "app-secret").authorizes().start().await.unwrap();
        kafka.allow("app", &[Right::Read, Right::Write, Right::Create]).await.unwrap();
        kafka
    };
    let kafka = LIMITED.get_or_init(start).await;
    let mut config = KafkaConfig::new([kafka.sasl_brokers()]);
    for (key, value) in [
        ("security.protocol", "SASL_PLAINTEXT"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", "app"),
        ("sasl.password", "app-secret"),
    ] {
        config.options.insert(key.into(), value.into());
    }
    (kafka, config)
}

/// Publishes as the runtime does: what fails begins again from the checkpoint, what is rejected is set
/// aside. Returns what was rejected, and how often it began again.
async fn insist(bus: &Client, stream: &Arc<str>, mut events: Vec<Event>) -> (Vec<(Event, String)>, u32) {
    let (source, mut aside, mut again) = (unique("source"), Vec::new(), 0);
    let at = Some(checkpoint(&source, 1));
    loop {
        // What passes is asked again, as the runtime does.
        assert_eq!(until(async || bus.checkpoint(&source).await.ok()).await, None);
        within(bus.ensure(&spec(stream, 1))).await.unwrap();
        let published = match within(bus.publish(events.clone(), at.clone())).await {
            Ok(Published::Accepted(accepted)) => within(accepted.durable()).await.map(|_| Vec::new()),
            Ok(Published::Rejected { rejections, .. }) => Ok(rejections),
            Err(error) => Err(error),
        };
        match published {
            Ok(rejections) if rejections.is_empty() => return (aside, again),
            Ok(rejections) => {
                let of = |rejection: &Rejection| (events[rejection.index].clone(), rejection.reason.clone());
                aside.extend(rejections.iter().map(of));
                events.retain(|event| aside.iter().all(|(set_aside, _)| set_aside.id != event.id));
            }
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                again += 1;
                assert!(again < 20, "{error}");
            }
        }
    }
}

/// The numbers of events, by their keys.
fn keys(records: &[Record]) -> Vec<u64> {
    let key = |record: &Record| String::from_utf8(record.event.key.clone().unwrap().to_vec()).unwrap();
    records.iter().map(|record| key(record).strip_prefix("key-").unwrap().parse().unwrap()).collect()
}

/// Whoever may not read the settings of topics does not know their limits: what the brokers refuse is
/// rejected the next time, and the others go on in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_brokers_refuse_is_rejected_without_the_right_to_know_the_limit() {
    let (kafka, config) = limited().await;

    // Larger than any batch: it is found at once.
    let bus = open(&config).await;
    let stream = unique("stream");
    let events = |size| {
        let event = |n| match n {
            7 | 9 => large(&stream, n, size),
            n => event(&stream, Some(0), n, 1),
        };
        (0..3_000).map(event).collect()
    };
    let (aside, again) = insist(&bus, &stream, events(1_200_000)).await;
    assert_eq!(again, 1);
    let numbers = |aside: &[(Event, String)]| {
        aside.iter().map(|(event, _)| event.position.numbers()[0]).collect::<Vec<_>>()
    };
    assert_eq!(numbers(&aside), [7, 9]);
    let why = &aside[0].1;
    assert!(why.contains("refused") && why.contains("kafka-configs.sh"), "{why}");
    let arrived = keys(&first_deliveries(&bus, &stream, 2_998).await);
    assert_eq!(arrived, (0..3_000).filter(|n| ![7, 9].contains(n)).collect::<Vec<_>>());

    // A limit far below: batches of small ones are too large for it too.
    let stream = unique("stream");
    bus.ensure(&spec(&stream, 1)).await.unwrap();
    limit(&kafka.brokers(), &stream, "20000").await;
    let event = |n| if n % 1000 == 500 { large(&stream, n, 30_000) } else { large(&stream, n, 1_000) };
    let (aside, again) = insist(&bus, &stream, (0..3_000).map(event).collect()).await;
    assert_eq!(numbers(&aside), [500, 1_500, 2_500]);
    assert!((2..10).contains(&again), "{again}");
    let arrived = keys(&first_deliveries(&bus, &stream, 2_997).await);
    assert_eq!(arrived, (0..3_000).filter(|n| n % 1000 != 500).collect::<Vec<_>>());
}

/// Publishes event `n` and its checkpoint.
async fn publish_one(bus: &Client, stream: &Arc<str>, source: &Arc<str>, n: u64) -> Result<()> {
    publish(bus, vec![event(stream, Some(0), n, 10)], Some(checkpoint(source, n))).await
}

/// Nobody has to publish to know that a right is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_be_known_of_positions_or_done_with_them_is_checked() {
    let (kafka, config) = limited().await;
    let config = KafkaConfig { positions_topic: unique("positions").to_string(), timeout: BRIEFLY, ..config };
    let (bus, positions, source) = (open(&config).await, config.positions_topic.clone(), unique("source"));
    assert_eq!(within(bus.checkpoint(&source)).await.unwrap(), None);
    publish(&bus, Vec::new(), Some(checkpoint(&source, 1))).await.unwrap();
    let found = within(bus.check()).await.unwrap();
    assert!(found[1].message.contains("cannot be known"), "{found:?}");
    assert!(found[1].hint.as_deref().unwrap().contains("DescribeConfigs"), "{found:?}");
    kafka.deny("app", Right::Read, &positions).await.unwrap();
    let error = until(async || bus.check().await.err()).await;
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    assert!(error.to_string().contains(&format!("the right Read on topic {positions}")), "{error}");
    kafka.undeny("app", Right::Read, &positions).await.unwrap();
}

/// Hosted clusters have settings of their own: what they refuse to hear of the topic of positions is left to them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_topic_of_positions_is_made_where_its_segments_are_not_ours_to_size() {
    let policy = "import org.apache.kafka.common.errors.PolicyViolationException;
        public class Hosted implements org.apache.kafka.server.policy.CreateTopicPolicy {
            public void configure(java.util.Map<String, ?> configs) {}
            public void close() {}
            public void validate(RequestMetadata request) {
                if (!request.topic().startsWith(\"__\") && request.configs().containsKey(\"segment.bytes\"))
                    throw new PolicyViolationException(\"segment.bytes is the host's\");
            }
        }";
    let settings = Kafka::settings().class("Hosted", policy);
    let kafka = settings.set("create.topic.policy.class.name", "Hosted").start().await.unwrap();
    let bus = open(&KafkaConfig::new([kafka.brokers()])).await;
    let found = within(bus.check()).await.unwrap();
    assert!(found.iter().any(|found| found.message.contains("is made by the first run")), "{found:?}");
    let source = unique("source");
    assert_eq!(within(bus.checkpoint(&source)).await.unwrap(), None);
    publish(&bus, Vec::new(), Some(checkpoint(&source, 1))).await.unwrap();
    let found = within(bus.check()).await.unwrap();
    assert!(
        found.iter().any(|found| found.message.contains("keeps the positions of 1 sources")),
        "{found:?}"
    );
}

/// Rights may be taken away at any time: of a stream's topic, or of that of the positions. Whoever
/// published hears what is missing, and goes on from the checkpoint once it is given back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_taken_away_is_named_and_nothing_is_lost() {
    let (kafka, config) = limited().await;
    let (stream, source, positions) = (unique("stream"), unique("source"), unique("positions"));
    let bus = open(&KafkaConfig { positions_topic: positions.to_string(), ..config }).await;
    within(bus.ensure(&spec(&stream, 1))).await.unwrap();
    assert_eq!(within(bus.checkpoint(&source)).await.unwrap(), None);
    let mut next = 1;
    publish_one(&bus, &stream, &source, next).await.unwrap();
    for topic in [&stream, &positions] {
        kafka.deny("app", Right::Write, topic).await.unwrap();
        let error = until(async || {
            let outcome = publish_one(&bus, &stream, &source, next + 1).await;
            next += u64::from(outcome.is_ok());
            outcome.err()
        });
        let error = error.await;
        assert_eq!(error.kind(), Kind::Refused, "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("the right Write on topic {topic}")), "{text}");
        kafka.undeny("app", Right::Write, topic).await.unwrap();
        // As the runtime begins again: from the checkpoint, which is that of the last that was durable.
        until(async || {
            let stored = bus.checkpoint(&source).await.ok()?;
            assert_eq!(stored, Some(checkpoint(&source, next)));
            publish_one(&bus, &stream, &source, next + 1).await.ok()
        })
        .await;
        next += 1;
    }
    let numbers: Vec<u64> = first_deliveries(&bus, &stream, next as usize).await.iter().map(number).collect();
    assert_eq!(numbers, (1..=next).collect::<Vec<_>>());
}

/// A topic that may be described and not read: who reads it hears so soon, and what is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_known_and_not_read_is_refused_to_who_reads_it() {
    let (kafka, config) = limited().await;
    let (bus, stream) = (open(&config).await, unique("stream"));
    within(bus.ensure(&spec(&stream, 1))).await.unwrap();
    kafka.deny("app", Right::Read, &stream).await.unwrap();
    let read = async || {
        let subscribe = Subscribe { streams: vec![Arc::clone(&stream)], group: None, start: Start::End };
        let mut subscription = bus.subscribe(subscribe).await.ok()?;
        loop {
            let next = tokio::time::timeout(Duration::from_secs(1), subscription.next());
            if let Err(error) = next.await.ok()? {
                return Some(error);
            }
        }
    };
    let error = until(read).await;
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    assert!(error.to_string().contains(&format!("the right Read on topic {stream}")), "{error}");
}

/// Nor does such a user know that a topic is compacted: what has no key is rejected once it was refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_key_is_rejected_though_nobody_may_know_that_the_topic_is_compacted() {
    let (kafka, config) = limited().await;
    let (bus, stream) = (open(&config).await, unique("stream"));
    let (admin, options) = admin(&kafka.brokers());
    let topic = NewTopic::new(&stream, 1, TopicReplication::Fixed(1)).set("cleanup.policy", "compact");
    admin.create_topics([&topic], &options).await.unwrap().remove(0).unwrap();
    let one = |n| match n {
        50 | 150 => Event { key: None, ..event(&stream, Some(0), n, 1) },
        n => event(&stream, Some(0), n, 1),
    };
    let (aside, again) = insist(&bus, &stream, (0..200).map(one).collect()).await;
    let numbers: Vec<u64> = aside.iter().map(|(event, _)| event.position.numbers()[0]).collect();
    assert_eq!((numbers, again), (vec![50, 150], 1));
    assert!(aside[0].1.contains("no key"), "{}", aside[0].1);
    let arrived = keys(&first_deliveries(&bus, &stream, 198).await);
    assert_eq!(arrived, (0..200).filter(|n| ![50, 150].contains(n)).collect::<Vec<_>>());
}
