//! Subscriptions without a group, and status.

use std::sync::Arc;
use std::time::Duration;

use headwater_core::Record;
use headwater_core::ports::{Delivery, SeekTo, Start, Subscribe};

use super::Factory;
use super::tools::{
    EPOCH, Reader, accept, event, events, payloads, payloads_of, publish, stream, texts, unique, within,
    writer,
};

/// With the oldest, after the newest, or at a time.
pub async fn starts_where_it_was_asked_to(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let stream = stream(&bus, 2).await;
    publish(&bus, events(&stream, 0, 0..10), None).await;
    publish(&bus, events(&stream, 1, 0..4), None).await;
    let read = async |start, count| {
        let mut reader = Reader::open(&bus, &stream, None, start).await;
        reader.take(count).await
    };
    let records = read(Start::Beginning, 14).await;
    assert_eq!(payloads_of(&records, 0), texts(0, 0..10));
    assert_eq!(payloads_of(&records, 1), texts(1, 0..4));
    let records = read(Start::Time(EPOCH + 3_000), 8).await;
    assert_eq!(payloads_of(&records, 0), texts(0, 3..10));
    assert_eq!(payloads_of(&records, 1), texts(1, 3..4));
    let mut end = Reader::open(&bus, &stream, None, Start::End).await;
    let mut later = Reader::open(&bus, &stream, None, Start::Time(EPOCH + 3_600_000_000)).await;
    publish(&bus, events(&stream, 0, 10..12), None).await;
    assert_eq!(payloads(&end.take(2).await), texts(0, 10..12));
    assert_eq!(payloads(&later.take(2).await), texts(0, 10..12), "there was nothing at that time yet");
}

/// To either end, to an offset, to a time.
pub async fn seeks(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let stream = stream(&bus, 1).await;
    publish(&bus, events(&stream, 0, 0..10), None).await;
    let mut reader = Reader::open(&bus, &stream, None, Start::Beginning).await;
    let first: Vec<Record> = reader.take(10).await;
    reader.seek(&stream, 0, SeekTo::Offset(first[6].offset)).await;
    assert_eq!(payloads(&reader.take(4).await), texts(0, 6..10));
    reader.seek(&stream, 0, SeekTo::Time(EPOCH + 8_000)).await;
    assert_eq!(payloads(&reader.take(2).await), texts(0, 8..10));
    reader.seek(&stream, 0, SeekTo::Beginning).await;
    assert_eq!(payloads(&reader.take(10).await), texts(0, 0..10));
    reader.seek(&stream, 0, SeekTo::Beginning).await;
    reader.seek(&stream, 0, SeekTo::End).await;
    publish(&bus, events(&stream, 0, 10..11), None).await;
    assert_eq!(payloads(&reader.take(1).await), texts(0, 10..11));
}

/// After a seek nothing comes that was read before it.
pub async fn seeking_drops_what_was_read_ahead(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let stream = stream(&bus, 1).await;
    publish(&bus, events(&stream, 0, 0..10_000), None).await;
    let mut reader = Reader::open(&bus, &stream, None, Start::Beginning).await;
    reader.take_some().await;
    for _ in 0..50 {
        reader.seek(&stream, 0, SeekTo::Beginning).await;
        tokio::task::yield_now().await; // it may read ahead, or not
        reader.seek(&stream, 0, SeekTo::Time(EPOCH + 9_999_000)).await;
        assert_eq!(payloads(&reader.take(1).await), texts(0, 9_999..10_000));
    }
}

/// A reader that has read everything is woken by the next batch.
pub async fn a_waiting_reader_gets_what_comes(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let stream = stream(&bus, 1).await;
    let mut reader = Reader::open(&bus, &stream, None, Start::Beginning).await;
    for n in 0..20 {
        let read = tokio::spawn(async move {
            let records = reader.take(1).await;
            (reader, records)
        });
        tokio::task::yield_now().await;
        publish(&bus, events(&stream, 0, n..n + 1), None).await;
        let (same, records) = within(read).await.unwrap();
        reader = same;
        assert_eq!(payloads(&records), texts(0, n..n + 1));
    }
}

/// Another process follows what this one publishes.
pub async fn a_reader_beside_the_publisher_follows(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let stream = stream(&bus, 2).await;
    publish(&bus, events(&stream, 1, 0..5), None).await;
    let beside = factory.open_reader().await.unwrap();
    let mut reader = Reader::open(&beside, &stream, None, Start::Beginning).await;
    assert_eq!(payloads(&reader.take(5).await), texts(1, 0..5));
    for n in 5..50 {
        publish(&bus, events(&stream, 1, n..n + 1), None).await;
        assert_eq!(payloads(&reader.take(1).await), texts(1, n..n + 1));
    }
}

/// One batch may go to several streams, one subscription read them.
pub async fn several_streams_in_one_subscription(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let (a, b) = (stream(&bus, 1).await, stream(&bus, 2).await);
    let batch = (0..100).flat_map(|n| [event(&a, 0, n), event(&b, 1, n)]).collect();
    publish(&bus, batch, None).await;
    let mut reader = Reader::of(&bus, &[Arc::clone(&a), Arc::clone(&b)], None, Start::Beginning).await;
    let records = reader.take(200).await;
    assert_eq!(reader.held.len(), 3);
    let of = |stream: &Arc<str>| -> Vec<Record> {
        records.iter().filter(|record| record.event.stream == *stream).cloned().collect()
    };
    assert_eq!(payloads(&of(&a)), texts(0, 0..100));
    assert_eq!(payloads(&of(&b)), texts(1, 0..100));
}

/// `next` may be dropped at any moment and called again.
pub async fn cancelled_reads_lose_nothing(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let stream = stream(&bus, 1).await;
    let publisher = {
        let (writer, stream) = (writer(&bus, &unique("source")).await, Arc::clone(&stream));
        tokio::spawn(async move {
            for n in 0..200 {
                let accepted = accept(&*writer, events(&stream, 0, n * 5..n * 5 + 5), None).await;
                within(accepted.durable()).await.unwrap();
            }
        })
    };
    let mut reader = Reader::open(&bus, &stream, None, Start::Beginning).await;
    let mut read = Vec::new();
    within(async {
        while read.len() < 1000 {
            let next = tokio::time::timeout(Duration::from_micros(300), reader.raw().next()).await;
            let Ok(delivery) = next else { continue };
            let delivery = delivery.unwrap();
            reader.note(&delivery);
            if let Delivery::Batch { records, .. } = delivery {
                read.extend(payloads(&records));
            }
        }
    })
    .await;
    assert_eq!(read, texts(0, 0..1000));
    publisher.await.unwrap();
}

/// Nobody waits for a stream that is not there.
pub async fn an_unknown_stream_is_an_error(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let streams = vec![unique("no-such-stream").into()];
    let subscribe = Subscribe { streams, group: None, start: Start::Beginning };
    assert!(within(bus.subscribe(subscribe)).await.is_err());
}

/// Streams with their events, groups with their lag, checkpoints.
pub async fn status_says_what_there_is(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let (stream, source, group) = (stream(&bus, 2).await, unique("source"), unique("group"));
    let at = super::tools::checkpoint(&source, 1);
    publish(&bus, events(&stream, 0, 0..10), Some(at.clone())).await;
    publish(&bus, events(&stream, 1, 0..5), None).await;
    let mut reader = Reader::open(&bus, &stream, Some(&group), Start::Beginning).await;
    let records = reader.take(15).await;
    let third = records.iter().filter(|record| record.event.partition == Some(0)).nth(2).unwrap();
    reader.commit(&stream, 0, third.offset + 1).await.unwrap();
    let last = records.iter().rfind(|record| record.event.partition == Some(1)).unwrap();
    reader.commit(&stream, 1, last.offset + 1).await.unwrap();
    let status = within(bus.status()).await.unwrap();
    let found = status.streams.iter().find(|status| status.stream == stream).unwrap();
    let gaps = factory.capabilities().gaps;
    assert!(found.partitions == 2 && (found.events == 15 || gaps && found.events > 15), "{found:?}");
    assert!(found.newest.is_none_or(|newest| newest == EPOCH + 9_000));
    let group = found.groups.iter().find(|status| status.group == group).unwrap();
    assert!(group.lag_events == 7 || gaps && group.lag_events > 7, "{group:?}");
    assert!(group.lag_seconds.is_some_and(|lag| lag > 3600.0), "{group:?}");
    assert!(status.checkpoints.contains(&at));
}
