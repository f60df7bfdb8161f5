//! The same with transactions: events and their checkpoint at once, or neither; and a writer that was
//! replaced publishes nothing more.

use std::time::{Duration, Instant};

use headwater_connect::kafka::KafkaConfig;
use headwater_core::Kind;
use headwater_core::ports::Bus;
use headwater_testkit::servers::{Kafka, Right};

use super::OnKafka;
use super::tools::{accept, checkpoint, event, number, open, publish, read, spec, unique, within};

/// Transactions, under ids that no other test has.
pub fn config(brokers: &str) -> KafkaConfig {
    let id = unique("test");
    let text = format!("brokers = [\"{brokers}\"]\ntransactions = true\ntransactional_id = \"{id}\"");
    toml::from_str(&text).unwrap()
}

headwater_testkit::bus_suite!(OnKafka::transactional().await);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stalled_writer_had_queued_never_arrives() {
    let kafka = Kafka::settings().proxied().start().await.unwrap();
    let proxy = kafka.proxy().unwrap();
    let (stream, source) = (unique("fenced"), unique("relay"));
    let config = config(&kafka.brokers());
    let through = KafkaConfig { brokers: vec![kafka.proxied_brokers().unwrap()], ..config.clone() };
    let (stalled, next) = (open(&through).await, open(&config).await);
    within(stalled.ensure(&spec(&stream, 1))).await.unwrap();
    within(next.ensure(&spec(&stream, 1))).await.unwrap();
    assert_eq!(within(stalled.checkpoint(&source)).await.unwrap(), None);
    let one = |n| vec![event(&stream, Some(0), n, 10)];
    publish(&stalled, one(1), Some(checkpoint(&source, 1))).await.unwrap();

    proxy.hold();
    let mut promises = Vec::new();
    for n in 2..=200 {
        promises.push(accept(&stalled, one(n), Some(checkpoint(&source, n))).await.unwrap());
    }
    // Whoever takes over learns what is there, and goes on from it.
    assert_eq!(within(next.checkpoint(&source)).await.unwrap(), Some(checkpoint(&source, 1)));
    for n in [2, 3, 300] {
        publish(&next, one(n), Some(checkpoint(&source, n))).await.unwrap();
    }
    proxy.release();
    for promise in promises {
        let error = within(promise.durable()).await.unwrap_err();
        assert!(matches!(error.kind(), Kind::Busy | Kind::Unavailable), "{error}");
    }
    within(stalled.publish(one(400), None)).await.map(drop).expect_err("it was replaced");
    publish(&next, one(500), None).await.unwrap();
    let numbers: Vec<u64> = within(read(&next, &stream, 5)).await.iter().map(number).collect();
    assert_eq!(numbers, [1, 2, 3, 300, 500]);
    assert_eq!(within(next.checkpoint(&source)).await.unwrap(), Some(checkpoint(&source, 300)));
}

/// Killed with -9 while it is published to: each event is there once, in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_is_waited_for_and_nothing_comes_twice() {
    let kafka = Kafka::start().await.unwrap();
    let bus = open(&config(&kafka.brokers())).await;
    let (stream, source) = (unique("stream"), unique("source"));
    within(bus.ensure(&spec(&stream, 1))).await.unwrap();
    let mut done = within(bus.checkpoint(&source)).await.unwrap().map_or(0, |at| at.position.numbers()[0]);
    for n in 1..=200 {
        if n % 60 == 30 {
            kafka.kill();
            kafka.restart().await.unwrap();
        }
        while done < n {
            // As a source does it: after a failure it goes on from its checkpoint.
            let events = (done + 1..=n).map(|n| event(&stream, Some(0), n, 200)).collect();
            match publish(&bus, events, Some(checkpoint(&source, n))).await {
                Ok(()) => done = n,
                Err(_) => {
                    if let Ok(at) = within(bus.checkpoint(&source)).await {
                        done = at.map_or(0, |at| at.position.numbers()[0]);
                    }
                }
            }
        }
    }
    let numbers: Vec<u64> = within(read(&bus, &stream, 200)).await.iter().map(number).collect();
    assert_eq!(numbers, (1..=200).collect::<Vec<_>>());
}

/// The writer ends soon after the transaction's time, and so does the wait of the next one, which ends that transaction: it
/// is not committed when the brokers hear of it at last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_nobody_answers_ends_the_writer() {
    let kafka = Kafka::settings().proxied().start().await.unwrap();
    let (proxy, config) = (kafka.proxy().unwrap(), config(&kafka.proxied_brokers().unwrap()));
    let short = Some(Duration::from_secs(1));
    let bus = open(&KafkaConfig { transaction_timeout: short, ..config }).await;
    let (stream, source) = (unique("stream"), unique("source"));
    within(bus.ensure(&spec(&stream, 1))).await.unwrap();
    assert_eq!(within(bus.checkpoint(&source)).await.unwrap(), None);
    let one = |n| vec![event(&stream, Some(0), n, 10)];
    publish(&bus, one(1), Some(checkpoint(&source, 1))).await.unwrap();
    // EndTxn is request 26.
    proxy.hold_from(|sent| sent.get(4..6) == Some(&[0, 26]));
    let promise = accept(&bus, one(2), Some(checkpoint(&source, 2))).await.unwrap();
    let both = async { tokio::join!(promise.durable(), bus.checkpoint(&source)) };
    let (ended, opened) = within(both).await;
    let error = ended.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("whether the last transaction"), "{error}");
    assert_eq!(opened.unwrap(), Some(checkpoint(&source, 1)));
    proxy.release();
    publish(&bus, one(3), Some(checkpoint(&source, 3))).await.unwrap();
    let numbers: Vec<u64> = within(read(&bus, &stream, 2)).await.iter().map(number).collect();
    assert_eq!(numbers, [1, 3]);
}

/// However long the brokers may take for an answer: what they have not taken in the transaction's time is given up soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_that_nobody_answers_ends_the_writer() {
    let kafka = Kafka::settings().proxied().start().await.unwrap();
    let (short, long) = (Some(Duration::from_secs(1)), Duration::from_secs(50));
    let config = config(&kafka.proxied_brokers().unwrap());
    let bus = open(&KafkaConfig { transaction_timeout: short, timeout: long, ..config }).await;
    let (stream, source) = (unique("stream"), unique("source"));
    within(bus.ensure(&spec(&stream, 1))).await.unwrap();
    assert_eq!(within(bus.checkpoint(&source)).await.unwrap(), None);
    let one = vec![event(&stream, Some(0), 1, 10)];
    let promise = accept(&bus, one, Some(checkpoint(&source, 1))).await.unwrap();
    kafka.proxy().unwrap().hold();
    let start = Instant::now();
    within(promise.durable()).await.expect_err("nobody took it");
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
}

/// A transaction takes the time that the brokers need: of many, the fastest tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_is_not_waited_for_longer_than_it_takes() {
    let at_once = Some(Duration::ZERO);
    let config = config(&Kafka::shared().await.unwrap().brokers());
    let bus = open(&KafkaConfig { commit_interval: at_once, ..config }).await;
    let (stream, source) = (unique("stream"), unique("source"));
    within(bus.ensure(&spec(&stream, 1))).await.unwrap();
    within(bus.checkpoint(&source)).await.unwrap();
    let mut fastest = Duration::MAX;
    for n in 1..=30 {
        let start = Instant::now();
        publish(&bus, vec![event(&stream, Some(0), n, 10)], Some(checkpoint(&source, n))).await.unwrap();
        fastest = fastest.min(start.elapsed());
    }
    assert!(fastest < Duration::from_millis(90), "{fastest:?}");
}

/// What arrives while the next transaction gathers shares it. What comes alone does not wait, nor does much.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrives_soon_after_a_transaction_shares_the_next() {
    let interval = Duration::from_secs(6);
    let config = config(&Kafka::shared().await.unwrap().brokers());
    let bus = open(&KafkaConfig { commit_interval: Some(interval), ..config }).await;
    let (stream, source) = (unique("stream"), unique("source"));
    within(bus.ensure(&spec(&stream, 1))).await.unwrap();
    within(bus.checkpoint(&source)).await.unwrap();
    let events = |from: u64, to: u64| (from..=to).map(|n| event(&stream, Some(0), n, 10)).collect::<Vec<_>>();
    let start = Instant::now();
    publish(&bus, events(1, 1), Some(checkpoint(&source, 1))).await.unwrap();
    assert!(start.elapsed() < interval, "the first has nothing to wait for");
    let two = accept(&bus, events(2, 2), Some(checkpoint(&source, 2))).await.unwrap();
    let three = accept(&bus, events(3, 3), Some(checkpoint(&source, 3))).await.unwrap();
    within(two.durable()).await.unwrap();
    within(three.durable()).await.unwrap();
    assert!(start.elapsed() >= interval);
    let start = Instant::now();
    publish(&bus, events(4, 600), Some(checkpoint(&source, 4))).await.unwrap();
    assert!(start.elapsed() < interval, "many do not wait");
    // The end of a transaction takes a place of its own.
    let places: Vec<u64> =
        within(read(&bus, &stream, 600)).await.iter().map(|record| record.offset).collect();
    assert_eq!(places[..4], [0, 2, 3, 5]);
}

/// Whoever takes a source over opens its writer first. That takes as long as the brokers need, and waits for no timer: of
/// many, the fastest tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opening_a_writer_waits_for_no_timer() {
    let bus = open(&config(&Kafka::shared().await.unwrap().brokers())).await;
    // The first also waits for the brokers to be ready for transactions.
    within(bus.writer("source/0")).await.unwrap();
    let mut fastest = Duration::MAX;
    for n in 1..=15 {
        let start = Instant::now();
        within(bus.writer(&format!("source/{n}"))).await.unwrap();
        fastest = fastest.min(start.elapsed());
    }
    assert!(fastest < Duration::from_millis(450), "{fastest:?}");
}

/// A user may produce and not use transactional ids; and the brokers allow less time than is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_brokers_refuse_of_transactions_says_what_to_do() {
    let settings = Kafka::settings().user("app", "app-secret").authorizes();
    let kafka = settings.set("transaction.max.timeout.ms", 30_000).start().await.unwrap();
    kafka.allow("app", &[Right::Read, Right::Write, Right::Create]).await.unwrap();
    let mut app = config(&kafka.sasl_brokers());
    for (key, value) in [
        ("security.protocol", "SASL_PLAINTEXT"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", "app"),
        ("sasl.password", "app-secret"),
    ] {
        app.options.insert(key.into(), value.into());
    }
    let refused = async |config: &KafkaConfig| {
        let bus = open(config).await;
        let error = within(bus.writer("shop")).await.err().unwrap();
        assert_eq!(error.kind(), Kind::Refused, "{error}");
        error.to_string()
    };
    let short = KafkaConfig { transaction_timeout: Some(Duration::from_secs(20)), ..app.clone() };
    let text = refused(&short).await;
    let id = app.transactional_id.unwrap();
    assert!(text.contains("--transactional-id") && text.contains(&id), "{text}");
    let long = config(&kafka.brokers());
    let text = refused(&long).await;
    assert!(text.contains("transaction.max.timeout.ms is less than `transaction_timeout`"), "{text}");
    let short = KafkaConfig { transaction_timeout: Some(Duration::from_secs(20)), ..long };
    within(open(&short).await.writer("shop")).await.unwrap();
}
