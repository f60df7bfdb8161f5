//! Brokers that die, hang and come back.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use headwater_connect::kafka::KafkaConfig;
use headwater_core::ports::{Bus, Cursor, Delivery, Start, Subscribe};
use headwater_core::{Error, Kind};
use headwater_testkit::servers::Kafka;
use rdkafka::admin::{NewTopic, TopicReplication};

use super::tools::{
    Client, accept, admin, checkpoint, event, first_deliveries, number, open, publish, read, spec, unique,
    until, within,
};

/// Killed with -9 while it is published to, twice: nothing is lost, and first deliveries are in order. A
/// broker that was killed may have forgotten what it took last, and take it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_is_waited_for() {
    let kafka = Kafka::start().await.unwrap();
    let bus = open(&KafkaConfig::new([kafka.brokers()])).await;
    let (stream, source) = (unique("stream"), unique("source"));
    bus.ensure(&spec(&stream, 2)).await.unwrap();
    assert_eq!(bus.checkpoint(&source).await.unwrap(), None);
    let mut accepted = Vec::new();
    for batch in 0..200 {
        let numbers = batch * 50..batch * 50 + 50;
        let events = numbers.map(|n| event(&stream, Some((n % 2) as u32), n, 200)).collect();
        accepted.push(accept(&bus, events, Some(checkpoint(&source, batch))).await.unwrap());
        if batch % 80 == 40 {
            kafka.kill();
        }
        if batch % 80 == 79 {
            kafka.restart().await.unwrap();
        }
    }
    for accepted in accepted {
        within(accepted.durable()).await.unwrap();
    }
    assert_eq!(bus.checkpoint(&source).await.unwrap(), Some(checkpoint(&source, 199)));
    let records = first_deliveries(&bus, &stream, 10_000).await;
    for partition in 0..2 {
        let of = |record: &&headwater_core::Record| record.event.partition == Some(partition as u32);
        let numbers: Vec<u64> = records.iter().filter(of).map(number).collect();
        assert_eq!(numbers, (0..5_000).map(|n| n * 2 + partition).collect::<Vec<_>>());
    }
}

/// While the brokers do not answer, `publish` takes what its budget allows and then waits; `status`
/// says so; nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_hangs_holds_publishing_back() {
    let kafka = Kafka::settings().proxied().start().await.unwrap();
    let config = KafkaConfig { queue_bytes: 1 << 20, ..KafkaConfig::new([kafka.proxied_brokers().unwrap()]) };
    let bus = open(&config).await;
    let stream = unique("stream");
    bus.ensure(&spec(&stream, 1)).await.unwrap();
    publish(&bus, vec![event(&stream, Some(0), 0, 100)], None).await.unwrap();
    let proxy = kafka.proxy().unwrap();
    proxy.hold();
    let mut accepted = Vec::new();
    let mut next = 1;
    loop {
        let events = vec![event(&stream, Some(0), next, 100_000)];
        match tokio::time::timeout(Duration::from_secs(2), bus.publish(events, None)).await {
            Ok(published) => match published.unwrap() {
                headwater_core::ports::Published::Accepted(taken) => accepted.push(taken),
                headwater_core::ports::Published::Rejected { .. } => panic!("rejected"),
            },
            Err(_) => break,
        }
        next += 1;
    }
    assert!((9..=11).contains(&accepted.len()), "{} of 100 kB each in 1 MiB", accepted.len());
    until(async || bus.status().await.ok()?.waiting_since).await;
    proxy.cut();
    proxy.release();
    for accepted in accepted {
        within(accepted.durable()).await.unwrap();
    }
    let numbers: Vec<u64> = read(&bus, &stream, next as usize).await.iter().map(number).collect();
    assert_eq!(numbers, (0..next).collect::<Vec<_>>());
    assert_eq!(until(async || bus.status().await.ok()).await.waiting_since, None);
}

/// Without a cluster, questions fail in time with an error that a retry may mend.
#[tokio::test]
async fn no_broker_is_unavailable() {
    let config = KafkaConfig { timeout: Duration::from_millis(500), ..KafkaConfig::new(["127.0.0.1:1"]) };
    let bus = open(&config).await;
    let error = within(bus.ensure(&spec(&unique("stream"), 1))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.hint_text().is_some(), "{error}");
    assert_eq!(within(bus.checkpoint("s")).await.unwrap_err().kind(), Kind::Unavailable);
}

/// A reader that is busy for longer than the group waits for who does not poll stays in its group.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_stays_in_its_group() {
    let mut config = KafkaConfig::new([Kafka::shared().await.unwrap().brokers()]);
    for (option, value) in [("session.timeout.ms", "3000"), ("max.poll.interval.ms", "4000")] {
        config.options.insert(option.into(), value.into());
    }
    let bus = open(&config).await;
    let (stream, group) = (unique("stream"), Some(unique("group").to_string()));
    bus.ensure(&spec(&stream, 1)).await.unwrap();
    let events = (0..100).map(|n| event(&stream, Some(0), n, 100_000)).collect();
    publish(&bus, events, None).await.unwrap();
    let subscribe = Subscribe { streams: vec![stream.clone()], group, start: Start::Beginning };
    let mut slow = bus.subscribe(subscribe.clone()).await.unwrap();
    let Delivery::Assigned(cursor) = within(slow.next()).await.unwrap() else { panic!("not assigned") };
    // Another member would get its partition.
    let mut other = open(&config).await.subscribe(subscribe).await.unwrap();
    let evicted = tokio::time::timeout(Duration::from_secs(10), other.next()).await;
    assert!(evicted.is_err(), "{evicted:?}");
    let mut read = Vec::new();
    while read.len() < 100 {
        match within(slow.next()).await.unwrap() {
            Delivery::Batch { records, .. } => read.extend(records),
            lost => panic!("{lost:?}"),
        }
    }
    assert!(read.iter().map(number).eq(0..100), "each once, in order");
    within(slow.commit(&Cursor { offset: 100, ..cursor })).await.unwrap();
}

/// A topic whose broker is away is not one to be made: it is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_without_a_leader_is_unavailable() {
    let kafka = Kafka::start().await.unwrap();
    let second = Kafka::settings().joins(&kafka, 2).start().await.unwrap();
    let config = KafkaConfig { timeout: Duration::from_secs(5), ..KafkaConfig::new([kafka.brokers()]) };
    let (stream, (admin, options)) = (unique("stream"), admin(&kafka.brokers()));
    let replicas: [&[i32]; 2] = [&[1], &[2]];
    let topic = NewTopic::new(&stream, 2, TopicReplication::Variable(&replicas));
    admin.create_topics([&topic], &options).await.unwrap().remove(0).unwrap();
    let bus = open(&config).await;
    until(async || bus.ensure(&spec(&stream, 2)).await.ok()).await;
    second.kill();
    // At first the one that is left may not know of it.
    let leaderless = |error: &Error| error.to_string().contains("has no leader");
    let error = until(async || bus.ensure(&spec(&stream, 2)).await.err().filter(leaderless)).await;
    assert_eq!(error.kind(), Kind::Unavailable);
    second.restart().await.unwrap();
    until(async || bus.ensure(&spec(&stream, 2)).await.ok()).await;
}

/// Publishes as the runtime does: after a failure it begins again from the checkpoint.
async fn insist(bus: &Client, stream: &Arc<str>, source: &Arc<str>, numbers: Range<u64>) {
    until(async || {
        let events = numbers.clone().map(|n| event(stream, Some(0), n, 10)).collect();
        let error = publish(bus, events, Some(checkpoint(source, numbers.end))).await.err();
        let Some(error) = error else { return Some(()) };
        assert!(error.is_retryable(), "{error}");
        assert_eq!(
            until(async || bus.checkpoint(source).await.ok()).await,
            Some(checkpoint(source, numbers.start))
        );
        until(async || bus.ensure(&spec(stream, 1)).await.ok()).await;
        None
    })
    .await;
}

/// Somebody deletes a topic that is published to, and makes it again or does not: what is published from
/// then on is in the new one, whole and in order.
#[tokio::test]
async fn a_topic_that_is_deleted_underway_is_published_to_when_it_is_there_again() {
    let mut config = KafkaConfig::new([Kafka::shared().await.unwrap().brokers()]);
    config.options.insert("topic.metadata.propagation.max.ms".into(), "1000".into());
    config.options.insert("topic.metadata.refresh.interval.ms".into(), "500".into());
    let bus = open(&config).await;
    let (stream, source, (admin, options)) = (unique("stream"), unique("source"), admin(&config.brokers[0]));
    within(bus.ensure(&spec(&stream, 1))).await.unwrap();
    assert_eq!(within(bus.checkpoint(&source)).await.unwrap(), None);
    publish(&bus, (0..10).map(|n| event(&stream, Some(0), n, 10)).collect(), Some(checkpoint(&source, 10)))
        .await
        .unwrap();
    let end = || admin.inner().fetch_watermarks(&stream, 0, Duration::from_secs(5)).ok().map(|(_, end)| end);
    for (numbers, made_again) in [(10..20, true), (20..30, false)] {
        admin.delete_topics(&[&stream], &options).await.unwrap().remove(0).unwrap();
        if made_again {
            let topic = NewTopic::new(&stream, 1, TopicReplication::Fixed(1));
            admin.create_topics([&topic], &options).await.unwrap().remove(0).unwrap();
        }
        // Until the broker knows.
        until(async || (end() == if made_again { Some(0) } else { None }).then_some(())).await;
        insist(&bus, &stream, &source, numbers.clone()).await;
        let arrived: Vec<u64> = first_deliveries(&bus, &stream, 10).await.iter().map(number).collect();
        assert_eq!(arrived, numbers.collect::<Vec<_>>());
    }
}
