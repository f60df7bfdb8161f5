//! What a topic takes, and topics that change while they are published to.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use headwater_connect::kafka::{Compression, KafkaBus, KafkaConfig};
use headwater_core::ports::{Bus, Delivery, Published, Severity, Start, Subscribe};
use headwater_core::{Event, Header, Kind, Retention, StreamSpec, partition_of};
use headwater_testkit::servers::Kafka;
use rdkafka::admin::{NewPartitions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::producer::{FutureProducer, FutureRecord};

use super::tools::{
    Client, accept, admin, checkpoint, event, large, limit, number, open, publish, read, set, spec, unique,
    until, within,
};

async fn shared() -> KafkaConfig {
    KafkaConfig::new([Kafka::shared().await.unwrap().brokers()])
}

async fn reason(bus: &Client, event: Event) -> String {
    match within(bus.publish(vec![event], None)).await.unwrap() {
        Published::Accepted(_) => panic!("accepted"),
        Published::Rejected { mut rejections, .. } => rejections.remove(0).reason,
    }
}

/// The bus leaves the choice to Kafka's client, which must choose as `partition_of` does.
#[tokio::test]
async fn keys_land_where_java_producers_put_them() {
    let bus = open(&shared().await).await;
    let stream = unique("stream");
    bus.ensure(&spec(&stream, 7)).await.unwrap();
    publish(&bus, (0..500).map(|n| event(&stream, None, n, 1)).collect(), None).await.unwrap();
    for record in read(&bus, &stream, 500).await {
        let key = record.event.key.unwrap();
        assert_eq!(record.event.partition, Some(partition_of(&key, 7)), "{key:?}");
    }
}

/// Of an event's time Kafka keeps the milliseconds: asked for a time within one, all of it is read.
#[tokio::test]
async fn a_start_within_a_millisecond_skips_nothing_of_it() {
    let bus = open(&shared().await).await;
    let stream = unique("stream");
    bus.ensure(&spec(&stream, 1)).await.unwrap();
    let at = |n, micros| {
        let event = event(&stream, Some(0), n, 1);
        Event { time: event.time + micros, ..event }
    };
    let start = Start::Time(at(0, 1_500).time);
    publish(&bus, vec![at(0, 900), at(1, 1_900), at(2, 2_000)], None).await.unwrap();
    let subscribe = Subscribe { streams: vec![stream], group: None, start };
    let mut subscription = within(bus.subscribe(subscribe)).await.unwrap();
    let Delivery::Assigned(cursor) = within(subscription.next()).await.unwrap() else {
        panic!("not assigned")
    };
    assert_eq!(cursor.offset, 1);
}

/// The size that is let through just fits; one byte more would not; whatever the limit, many small
/// events share batches that fit.
#[tokio::test]
async fn the_limit_of_a_topic_is_exact_enough() {
    let config = shared().await;
    let stream = unique("stream");
    let bus = open(&KafkaConfig { compression: Compression::None, ..config.clone() }).await;
    bus.ensure(&spec(&stream, 1)).await.unwrap();
    publish(&bus, vec![event(&stream, Some(0), 0, 1)], None).await.unwrap();
    limit(&config.brokers[0], &stream, "20000").await;
    bus.ensure(&spec(&stream, 1)).await.unwrap();
    let mut fits = 20_000;
    while let Published::Rejected { .. } =
        within(bus.publish(vec![event(&stream, Some(0), 1, fits)], None)).await.unwrap()
    {
        fits -= 1;
    }
    assert!(fits > 19_700, "{fits}");
    assert!(reason(&bus, event(&stream, Some(0), 2, fits + 1)).await.contains("20000"));
    let small = (2..5_000).map(|n| event(&stream, Some(0), n, 100)).collect();
    publish(&bus, small, None).await.unwrap();
    let numbers: Vec<u64> = read(&bus, &stream, 5_000).await.iter().map(number).collect();
    assert_eq!(numbers, (0..5_000).collect::<Vec<_>>());
}

/// The client's own limit holds where the topic would take more.
#[tokio::test]
async fn what_is_larger_than_the_config_allows_is_rejected() {
    let config = KafkaConfig { max_message_bytes: 50_000, ..shared().await };
    let bus = open(&config).await;
    let stream = unique("stream");
    bus.ensure(&spec(&stream, 1)).await.unwrap();
    publish(&bus, vec![event(&stream, Some(0), 0, 49_000)], None).await.unwrap();
    let events = (1..4).map(|n| event(&stream, Some(0), n, if n == 2 { 50_000 } else { 10 })).collect();
    let Published::Rejected { mut rejections, .. } = within(bus.publish(events, None)).await.unwrap() else {
        panic!("accepted")
    };
    assert_eq!((rejections.len(), rejections[0].index), (1, 1));
    let why = rejections.remove(0).reason;
    assert!(why.contains("`max_message_bytes` allows 50000"), "{why}");
    publish(&bus, vec![event(&stream, Some(0), 4, 10)], None).await.unwrap();
    let numbers: Vec<u64> = read(&bus, &stream, 2).await.iter().map(number).collect();
    assert_eq!(numbers, [0, 4], "nothing of a batch is published that has one that cannot be");
}

/// How the brokers keep the record batches of a topic's first partition: what their attributes say.
fn codecs(kafka: &Kafka, topic: &str) -> BTreeSet<u8> {
    let log = kafka.dir().join(format!("data/{topic}-0/00000000000000000000.log"));
    let log = std::fs::read(log).unwrap();
    let mut codecs = BTreeSet::new();
    let mut rest = &log[..];
    // Offset and length, and within the length the leader's epoch, the version, the checksum, the attributes.
    while let Some((head, after)) = rest.split_at_checked(12) {
        let length = u32::from_be_bytes(head[8..].try_into().unwrap()) as usize;
        codecs.insert(after[10] & 7);
        rest = &after[length..];
    }
    codecs
}

#[tokio::test]
async fn every_compression_is_used_and_read_back() {
    let (kafka, config) = (Kafka::shared().await.unwrap(), shared().await);
    let codes = [
        (Compression::None, 0),
        (Compression::Gzip, 1),
        (Compression::Snappy, 2),
        (Compression::Lz4, 3),
        (Compression::Zstd, 4),
    ];
    for (compression, code) in codes {
        let bus = open(&KafkaConfig { compression, ..config.clone() }).await;
        let stream = unique("stream");
        bus.ensure(&spec(&stream, 1)).await.unwrap();
        let events: Vec<Event> = (0..500).map(|n| event(&stream, Some(0), n, 500)).collect();
        publish(&bus, events.clone(), None).await.unwrap();
        let records = read(&bus, &stream, 500).await;
        let payloads = records.iter().map(|record| &record.event.payload);
        assert!(payloads.eq(events.iter().map(|event| &event.payload)), "{compression:?}");
        assert_eq!(codecs(kafka, &stream), [code].into(), "{compression:?}");
    }
}

/// A limit that is lowered while events are on their way: nothing passes the one that no longer fits;
/// once the source opens again it is rejected, and the others go on.
#[tokio::test]
async fn a_limit_lowered_underway_rejects_after_reopening() {
    let config = shared().await;
    let bus = open(&config).await;
    let (stream, source) = (unique("stream"), unique("source"));
    bus.ensure(&spec(&stream, 1)).await.unwrap();
    bus.checkpoint(&source).await.unwrap();
    publish(&bus, vec![event(&stream, Some(0), 1, 10)], Some(checkpoint(&source, 1))).await.unwrap();
    limit(&config.brokers[0], &stream, "5000").await;
    let big = large(&stream, 2, 50_000);
    let large = accept(&bus, vec![big.clone()], Some(checkpoint(&source, 2))).await.unwrap();
    let after = accept(&bus, vec![event(&stream, Some(0), 3, 10)], Some(checkpoint(&source, 3))).await;
    let error = within(large.durable()).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    if let Ok(after) = after {
        within(after.durable()).await.unwrap_err();
    }
    let refused = accept(&bus, vec![event(&stream, Some(0), 4, 10)], None).await.err().unwrap();
    assert_eq!(refused.kind(), Kind::Unavailable);
    // What the runtime does next.
    assert_eq!(within(bus.checkpoint(&source)).await.unwrap(), Some(checkpoint(&source, 1)));
    bus.ensure(&spec(&stream, 1)).await.unwrap();
    let why = reason(&bus, big).await;
    assert!(why.contains("5000") && why.contains("kafka-configs.sh"), "{why}");
    publish(&bus, vec![event(&stream, Some(0), 5, 10)], Some(checkpoint(&source, 5))).await.unwrap();
    let numbers: Vec<u64> = read(&bus, &stream, 2).await.iter().map(number).collect();
    assert_eq!(numbers, [1, 5], "3 must not pass 2, nor 4 come from nowhere");
    assert_eq!(bus.checkpoint(&source).await.unwrap(), Some(checkpoint(&source, 5)));
}

/// A broker takes any first batch of a producer: it must not be one that follows a refused one.
#[tokio::test]
async fn nothing_passes_the_first_record_of_a_partition() {
    let config = shared().await;
    let (stream, source) = (unique("stream"), unique("source"));
    for attempt in 0..5 {
        let bus = open(&config).await;
        limit_is(&config, &bus, &stream, "1000000").await;
        bus.checkpoint(&source).await.unwrap();
        limit(&config.brokers[0], &stream, "5000").await;
        let events = (0..50).map(|n| event(&stream, Some(0), n, 10));
        let events = std::iter::once(large(&stream, 99, 50_000)).chain(events).collect();
        let published = match within(bus.publish(events, None)).await {
            Ok(Published::Accepted(accepted)) => within(accepted.durable()).await.map(drop),
            Ok(Published::Rejected { .. }) => panic!("rejected"),
            Err(error) => Err(error),
        };
        let error = published.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        within(bus.checkpoint(&source)).await.unwrap();
        publish(&bus, vec![event(&stream, Some(0), 1000 + attempt, 10)], None).await.unwrap();
    }
    let numbers: Vec<u64> = read(&*open(&config).await, &stream, 5).await.iter().map(number).collect();
    assert_eq!(numbers, [1000, 1001, 1002, 1003, 1004]);
}

/// Makes sure of a topic that has this limit.
async fn limit_is(config: &KafkaConfig, bus: &KafkaBus, stream: &std::sync::Arc<str>, bytes: &str) {
    bus.ensure(&spec(stream, 1)).await.unwrap();
    limit(&config.brokers[0], stream, bytes).await;
    bus.ensure(&spec(stream, 1)).await.unwrap();
}

/// After a failure nobody publishes again before everyone has heard of it: a source whose batch was
/// lost with another's could publish a later one first.
#[tokio::test]
async fn recovery_waits_until_all_have_heard() {
    // Time to hand over another batch before the first one fails.
    let config = KafkaConfig { linger: Duration::from_millis(500), ..shared().await };
    let bus = open(&config).await;
    let (stream, source) = (unique("stream"), unique("source"));
    bus.ensure(&spec(&stream, 1)).await.unwrap();
    bus.checkpoint(&source).await.unwrap();
    publish(&bus, vec![event(&stream, Some(0), 0, 1)], None).await.unwrap();
    limit(&config.brokers[0], &stream, "1000").await;
    let big = large(&stream, 1, 50_000);
    let one = accept(&bus, vec![big.clone()], None).await.unwrap();
    let other = accept(&bus, vec![event(&stream, Some(0), 2, 10)], None).await.unwrap();
    within(one.durable()).await.unwrap_err();
    let early = tokio::time::timeout(Duration::from_secs(4), bus.checkpoint(&source)).await;
    assert!(early.is_err(), "a promise is still held by someone who has not heard");
    within(other.durable()).await.unwrap_err();
    within(bus.checkpoint(&source)).await.unwrap();
}

/// More partitions would move keys: the stream stops, and opening it again says why.
#[tokio::test]
async fn partitions_added_underway_stop_the_stream() {
    let config = KafkaConfig { refresh_interval: Duration::from_millis(100), ..shared().await };
    let bus = open(&config).await;
    let (stream, other) = (unique("stream"), unique("stream"));
    bus.ensure(&spec(&stream, 2)).await.unwrap();
    bus.ensure(&spec(&other, 2)).await.unwrap();
    let (admin, options) = admin(&config.brokers[0]);
    for result in admin.create_partitions([&NewPartitions::new(&stream, 3)], &options).await.unwrap() {
        result.unwrap();
    }
    let error = until(async || publish(&bus, vec![event(&stream, Some(0), 1, 1)], None).await.err()).await;
    assert!(error.is_retryable() && error.to_string().contains("3 partitions"), "{error}");
    let error = bus.ensure(&spec(&stream, 2)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Contract);
    assert!(error.hint_text().is_some());
    publish(&bus, vec![event(&other, Some(0), 1, 1)], None).await.unwrap();
}

/// Checkpoints in a topic that forgets would make a source begin again.
#[tokio::test]
async fn positions_must_be_kept() {
    let name = unique("positions");
    let config = KafkaConfig { positions_topic: name.to_string(), ..shared().await };
    let (admin, options) = admin(&config.brokers[0]);
    let topic = NewTopic::new(&name, 1, TopicReplication::Fixed(1)).set("cleanup.policy", "delete");
    admin.create_topics([&topic], &options).await.unwrap().remove(0).unwrap();
    let error = until(async || {
        let outcome = open(&config).await.checkpoint("s").await;
        outcome.err().filter(|error| error.kind() == Kind::Refused)
    })
    .await;
    assert!(error.hint_text().unwrap().contains("cleanup.policy=compact"), "{error}");
    let found = within(open(&config).await.check()).await.unwrap_err().to_string();
    assert!(
        found.contains("cleanup.policy is delete") && found.contains("cleanup.policy=compact"),
        "{found}"
    );
}

/// What is to be known of the topic of positions before anything is published.
#[tokio::test]
async fn whether_positions_will_be_kept_is_checked_and_nothing_is_made() {
    let name = unique("positions");
    let config = KafkaConfig { positions_topic: name.to_string(), ..shared().await };
    let bus = open(&config).await;
    let found = within(bus.check()).await.unwrap();
    assert!(found[0].message.contains("made by the first run"), "{found:?}");
    assert!(!bus.know(&name).await.unwrap(), "it was made");
    let (admin, options) = admin(&config.brokers[0]);
    let topic = NewTopic::new(&name, 1, TopicReplication::Fixed(1)).set("cleanup.policy", "compact");
    admin.create_topics([&topic], &options).await.unwrap().remove(0).unwrap();
    let found = until(async || bus.check().await.ok().filter(|found| found.len() == 2)).await;
    assert!(found[0].message.contains("keeps the positions of 0 sources"), "{found:?}");
    let hint = found[1].hint.as_deref().unwrap();
    assert!(found[1].severity == Severity::Warning && hint.contains("segment.bytes=67108864"), "{found:?}");
    admin.create_partitions([&NewPartitions::new(&name, 3)], &options).await.unwrap();
    let error = until(async || bus.check().await.err().filter(|error| error.kind() == Kind::Refused)).await;
    assert!(error.to_string().contains("has 3 partitions"), "{error}");
}

/// Whoever opens a source does not wait for all that others have written there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_is_found_however_much_the_topic_of_positions_holds() {
    let kafka = Kafka::settings().proxied().start().await.unwrap();
    let (name, source) = (unique("positions"), unique("source"));
    let config = KafkaConfig {
        positions_topic: name.to_string(),
        ..KafkaConfig::new([kafka.proxied_brokers().unwrap()])
    };
    let old = unique("old");
    for source in [&old, &source] {
        let bus = open(&config).await;
        assert_eq!(within(bus.checkpoint(source)).await.unwrap(), None);
        publish(&bus, Vec::new(), Some(checkpoint(source, 1))).await.unwrap();
        let other: FutureProducer =
            rdkafka::ClientConfig::new().set("bootstrap.servers", kafka.brokers()).create().unwrap();
        // As what relays write: much of it, none of it short.
        let much = "x".repeat(20_000);
        let record = || FutureRecord::to(&name).partition(0).key("other").payload(&much);
        let many = if *source == old { 3_000 } else { 100 };
        for sent in (0..many).map(|_| other.send_result(record()).unwrap()).collect::<Vec<_>>() {
            within(sent).await.unwrap().unwrap();
        }
    }
    let bus = open(&config).await;
    let before = kafka.proxy().unwrap().sent();
    assert_eq!(within(bus.checkpoint(&source)).await.unwrap(), Some(checkpoint(&source, 1)));
    let sent = kafka.proxy().unwrap().sent() - before;
    assert!(sent < 20_000_000, "{sent} bytes were read of 60 MB");
    assert_eq!(within(open(&config).await.checkpoint(&old)).await.unwrap(), Some(checkpoint(&old, 1)));
    let (admin, options) = admin(&kafka.brokers());
    let described = admin.describe_configs([&ResourceSpecifier::Topic(&name)], &options).await.unwrap();
    let entries = described.into_iter().next().unwrap().unwrap().entries;
    let has =
        |key: &str| entries.iter().find(|entry| entry.name == key).and_then(|entry| entry.value.clone());
    assert_eq!(has("cleanup.policy").as_deref(), Some("compact"));
    assert_eq!(has("segment.bytes").as_deref(), Some("67108864"), "what is old is compacted soon");
}

/// Events in the topic of positions would be taken for checkpoints; what others write there is no source's.
#[tokio::test]
async fn a_stream_cannot_be_the_topic_of_positions() {
    let name = unique("positions");
    let config = KafkaConfig { positions_topic: name.to_string(), ..shared().await };
    let (bus, source) = (open(&config).await, unique("source"));
    assert_eq!(bus.checkpoint(&source).await.unwrap(), None);
    let error = bus.ensure(&spec(&name, 1)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.hint_text().unwrap().contains("positions_topic"), "{error}");
    publish(&bus, Vec::new(), Some(checkpoint(&source, 1))).await.unwrap();
    let foreign: FutureProducer =
        rdkafka::ClientConfig::new().set("bootstrap.servers", &config.brokers[0]).create().unwrap();
    let record = FutureRecord::to(&name).key("other").payload("not a checkpoint");
    foreign.send(record, Duration::from_secs(30)).await.unwrap();
    assert_eq!(bus.checkpoint(&source).await.unwrap(), Some(checkpoint(&source, 1)));
    let status = until(async || bus.status().await.ok()).await;
    assert_eq!(status.checkpoints, [checkpoint(&source, 1)]);
    assert_eq!(bus.checkpoint("other").await.unwrap_err().kind(), Kind::Decode);
}

/// Records that others wrote: without our headers, with strange ones.
#[tokio::test]
async fn foreign_records_are_read() {
    let config = shared().await;
    let bus = open(&config).await;
    let stream = unique("stream");
    bus.ensure(&spec(&stream, 1)).await.unwrap();
    let foreign: FutureProducer =
        rdkafka::ClientConfig::new().set("bootstrap.servers", &config.brokers[0]).create().unwrap();
    let headers = rdkafka::message::OwnedHeaders::new()
        .insert(rdkafka::message::Header { key: "id", value: Some(b"not an id") })
        .insert(rdkafka::message::Header { key: "type", value: Some(&[0xff, 0xfe]) });
    let record = FutureRecord::<(), _>::to(&stream).payload("1").headers(headers);
    foreign.send(record, Duration::from_secs(30)).await.unwrap();
    foreign.send(FutureRecord::<(), _>::to(&stream).payload("2"), Duration::from_secs(30)).await.unwrap();
    let (first, again) = (read(&bus, &stream, 2).await, read(&bus, &stream, 2).await);
    assert_eq!(first, again, "the same record has the same id");
    assert_ne!(first[0].event.id, first[1].event.id);
    let names: Vec<&str> = first[0].event.headers.iter().map(|header| &*header.name).collect();
    assert_eq!(names, ["id", "type"]);
    assert_eq!(first.iter().map(number).collect::<Vec<_>>(), [1, 2]);
}

/// What Kafka's client cannot send is rejected, not a panic.
#[tokio::test]
async fn a_zero_in_a_headers_name_is_rejected() {
    let bus = open(&shared().await).await;
    let stream = unique("stream");
    bus.ensure(&spec(&stream, 1)).await.unwrap();
    let header = Header { name: "a\0b".into(), value: None };
    let event = Event { headers: [header].into_iter().collect(), ..event(&stream, Some(0), 1, 1) };
    assert!(reason(&bus, event).await.contains("zero character"));
}

/// A compacted topic takes no record without a key: the brokers would refuse it for ever.
#[tokio::test]
async fn an_event_without_a_key_is_rejected_where_the_topic_is_compacted() {
    let config = shared().await;
    let bus = open(&config).await;
    let keyless = |stream: &Arc<str>, n| Event { key: None, ..event(stream, Some(0), n, 1) };
    let made = unique("stream");
    let compact = Retention { compact: true, ..Retention::default() };
    bus.ensure(&StreamSpec { retention: compact, ..spec(&made, 1) }).await.unwrap();
    // Somebody else's decision counts as well.
    let altered = unique("stream");
    bus.ensure(&spec(&altered, 1)).await.unwrap();
    publish(&bus, vec![keyless(&altered, 1)], None).await.unwrap();
    set(&config.brokers[0], &altered, "cleanup.policy", "compact,delete").await;
    bus.ensure(&spec(&altered, 1)).await.unwrap();
    for stream in [made, altered] {
        let why = reason(&bus, keyless(&stream, 2)).await;
        assert!(why.contains("no key") && why.contains(&*stream), "{why}");
        publish(&bus, vec![event(&stream, Some(0), 3, 1)], None).await.unwrap();
    }
}

/// Of the cluster's groups those are asked that read our topics, whoever they are.
#[tokio::test]
async fn a_group_of_another_process_is_seen() {
    let config = shared().await;
    let (bus, elsewhere) = (open(&config).await, open(&config).await);
    let stream = unique("stream");
    bus.ensure(&spec(&stream, 1)).await.unwrap();
    publish(&bus, vec![event(&stream, Some(0), 1, 1)], None).await.unwrap();
    let (streams, group) = (vec![Arc::clone(&stream)], Some(format!("reads-{stream}")));
    let subscribe = Subscribe { streams, group, start: Start::Beginning };
    let mut subscription = elsewhere.subscribe(subscribe).await.unwrap();
    let Delivery::Assigned(cursor) = within(subscription.next()).await.unwrap() else {
        panic!("not assigned")
    };
    within(subscription.commit(&cursor)).await.unwrap();
    let status = within(bus.status()).await.unwrap();
    let groups: Vec<_> =
        status.streams[0].groups.iter().map(|group| (&*group.group, group.lag_events)).collect();
    assert_eq!(groups, [(&*format!("reads-{stream}"), 1)]);
}

/// A topic is made as the config says, by the brokers' own word.
#[tokio::test]
async fn a_topic_is_made_as_it_was_asked_for() {
    let config = KafkaConfig { replication: Some(1), ..shared().await };
    let (bus, stream) = (open(&config).await, unique("stream"));
    let compacted = unique("stream");
    let retention =
        Retention { max_age: Some(Duration::from_secs(3600)), max_bytes: Some(1 << 20), compact: false };
    bus.ensure(&StreamSpec { retention, ..spec(&stream, 2) }).await.unwrap();
    let retention = Retention { compact: true, ..retention };
    bus.ensure(&StreamSpec { retention, ..spec(&compacted, 1) }).await.unwrap();
    let (admin, options) = admin(&config.brokers[0]);
    let described = async |topic: &str| {
        let described = admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options).await.unwrap();
        let described = described.into_iter().next().unwrap().unwrap();
        let value = |name: &str| described.get(name).and_then(|entry| entry.value.clone()).unwrap();
        ["cleanup.policy", "retention.ms", "retention.bytes", "min.compaction.lag.ms"].map(value)
    };
    assert_eq!(described(&stream).await, ["delete", "3600000", "1048576", "0"]);
    let [policy, .., lag] = described(&compacted).await;
    assert_eq!([policy, lag], ["compact", "3600000"], "nothing of it is ever deleted for its age");
    let metadata = admin.inner().fetch_metadata(Some(&stream), Duration::from_secs(30)).unwrap();
    let partitions = metadata.topics()[0].partitions();
    let copies: Vec<usize> = partitions.iter().map(|partition| partition.replicas().len()).collect();
    assert_eq!(copies, [1, 1]);
}
