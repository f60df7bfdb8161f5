//! Streams, batches, checkpoints.

use std::sync::Arc;

use bytes::Bytes;
use headwater_core::ports::{Bus, Published, Start};
use headwater_core::{Event, Header, Kind, Position};

use super::Factory;
use super::tools::{
    Reader, accept, begin, checkpoint, event, events, kind, payloads, payloads_of, publish, spec, stream,
    texts, unique, within, writer,
};

/// Once `durable()` says so, a reader that comes later finds it.
pub async fn what_is_durable_is_there(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let stream = stream(&bus, 1).await;
    publish(&bus, events(&stream, 0, 0..3), None).await;
    let mut reader = Reader::open(&bus, &stream, None, Start::Beginning).await;
    assert_eq!(payloads(&reader.take(3).await), texts(0, 0..3));
}

/// Invariant 2.
pub async fn order_holds_within_a_partition_and_across_batches(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let stream = stream(&bus, 3).await;
    let writer = writer(&bus, &unique("source")).await;
    let mut durable = Vec::new();
    for batch in 0..20 {
        let mixed = (batch * 50..batch * 50 + 50).flat_map(|n| (0..3).map(move |partition| (partition, n)));
        let mixed = mixed.map(|(partition, n)| event(&stream, partition, n)).collect();
        durable.push(accept(&*writer, mixed, None).await);
    }
    for accepted in durable {
        within(accepted.durable()).await.unwrap();
    }
    let mut reader = Reader::open(&bus, &stream, None, Start::Beginning).await;
    let records = reader.take(3000).await;
    for partition in 0..3 {
        assert_eq!(payloads_of(&records, partition), texts(partition, 0..1000));
    }
}

/// Every field comes back as it was.
pub async fn events_round_trip_exactly(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let stream = stream(&bus, 1).await;
    let header = |name: &str, value: Option<&[u8]>| Header {
        name: name.into(),
        value: value.map(Bytes::copy_from_slice),
    };
    let plain = event(&stream, 0, 1);
    let tombstone = Event { payload: None, kind: "delete".into(), ..event(&stream, 0, 2) };
    let keyless = Event { key: None, time: plain.time + 1, ..event(&stream, 0, 3) };
    let empty = Event { key: Some(Bytes::new()), payload: Some(Bytes::new()), ..event(&stream, 0, 4) };
    let raw: Vec<u8> = (0..=255).collect();
    let binary = Event {
        key: Some(raw.clone().into()),
        payload: Some(raw.clone().into()),
        position: Position::new(u64::MAX, &raw[225..]).unwrap(),
        ..event(&stream, 0, 5)
    };
    let headers = [
        header("trace", Some(b"abc")),
        header("trace", Some(b"again")),
        header("none", None),
        header("empty", Some(b"")),
        header("raw", Some(&raw)),
        header("quoted \"name\" ä", Some("ü\n".as_bytes())),
    ];
    let headed = Event {
        headers: headers.into_iter().collect(),
        kind: "order.placed ä".into(),
        position: Position::ZERO,
        ..event(&stream, 0, 6)
    };
    let all = vec![plain, tombstone, keyless, empty, binary, headed];
    publish(&bus, all.clone(), None).await;
    let mut reader = Reader::open(&bus, &stream, None, Start::Beginning).await;
    let read: Vec<Event> = reader.take(all.len()).await.into_iter().map(|record| record.event).collect();
    for (read, published) in read.iter().zip(&all) {
        assert_eq!(*read, factory.capabilities().carried(published));
    }
}

/// The bus chooses a partition where none is given.
pub async fn events_without_a_partition_arrive(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let stream = stream(&bus, 4).await;
    let free = |event: Event| Event { partition: None, key: None, ..event };
    publish(&bus, events(&stream, 0, 0..100).into_iter().map(free).collect(), None).await;
    let mut reader = Reader::open(&bus, &stream, None, Start::Beginning).await;
    let mut read = payloads(&reader.take(100).await);
    read.sort();
    let mut expected = texts(0, 0..100);
    expected.sort();
    assert_eq!(read, expected);
}

/// Payloads of any size that the bus takes.
pub async fn big_payloads_pass(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let stream = stream(&bus, 1).await;
    let sizes = [1, 5_000, 70_000, 500_000, factory.capabilities().max_payload];
    let body = |size: usize| -> Bytes { (0..size).map(|at| (at * 31 % 251) as u8).collect() };
    let sized =
        |(n, size): (usize, &usize)| Event { payload: Some(body(*size)), ..event(&stream, 0, n as u64) };
    let batch: Vec<Event> = sizes.iter().enumerate().map(sized).collect();
    publish(&bus, batch.clone(), None).await;
    let mut reader = Reader::open(&bus, &stream, None, Start::Beginning).await;
    let records = reader.take(sizes.len()).await;
    for (record, event) in records.iter().zip(&batch) {
        assert!(
            record.event == factory.capabilities().carried(event),
            "an event of {} bytes changed on its way",
            event.size()
        );
    }
}

/// Calls one after the other publish in that order, whatever is still in flight.
pub async fn many_batches_in_flight_keep_their_order(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let (stream, source) = (stream(&bus, 1).await, unique("source"));
    let writer = writer(&bus, &source).await;
    let mut in_flight = Vec::new();
    for batch in 0..200 {
        let at = checkpoint(&source, batch);
        in_flight.push(accept(&*writer, events(&stream, 0, batch * 5..batch * 5 + 5), Some(at)).await);
    }
    for accepted in in_flight {
        within(accepted.durable()).await.unwrap();
    }
    assert_eq!(begin(&bus, &source).await.unwrap(), Some(checkpoint(&source, 199)));
    let mut reader = Reader::open(&bus, &stream, None, Start::Beginning).await;
    assert_eq!(payloads(&reader.take(1000).await), texts(0, 0..1000));
}

/// A batch that was accepted goes its way though nobody waits for it.
pub async fn nobody_need_wait_for_durable(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let stream = stream(&bus, 1).await;
    let writer = writer(&bus, &unique("source")).await;
    drop(accept(&*writer, events(&stream, 0, 0..3), None).await);
    let mut reader = Reader::open(&bus, &stream, None, Start::Beginning).await;
    assert_eq!(payloads(&reader.take(3).await), texts(0, 0..3));
}

/// The newest checkpoint of each source, exactly as it was handed over.
pub async fn checkpoints_come_with_their_events(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let stream = stream(&bus, 1).await;
    let (first, second) = (unique("source"), unique("source"));
    assert_eq!(begin(&bus, &first).await.unwrap(), None);
    publish(&bus, events(&stream, 0, 0..2), Some(checkpoint(&first, 1))).await;
    publish(&bus, events(&stream, 0, 2..4), Some(checkpoint(&first, 2))).await;
    publish(&bus, events(&stream, 0, 4..6), Some(checkpoint(&second, 7))).await;
    publish(&bus, events(&stream, 0, 6..8), None).await;
    assert_eq!(begin(&bus, &first).await.unwrap(), Some(checkpoint(&first, 2)));
    assert_eq!(begin(&bus, &second).await.unwrap(), Some(checkpoint(&second, 7)));
}

/// Invariant 1: who sees a checkpoint sees its events; on an atomic bus also the other way round.
pub async fn the_checkpoint_never_leads(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let (stream, source) = (stream(&bus, 1).await, unique("source"));
    let beside = factory.open_reader().await.unwrap();
    // Some kinds of bus know of a stream once they were told of it.
    let _reader = Reader::open(&beside, &stream, None, Start::End).await;
    let publisher = {
        let (writer, stream, source) = (writer(&bus, &source).await, Arc::clone(&stream), source.clone());
        tokio::spawn(async move {
            for batch in 1..=100 {
                let (numbers, at) = ((batch - 1) * 3..batch * 3, checkpoint(&source, batch * 3));
                let accepted = accept(&*writer, events(&stream, 0, numbers), Some(at)).await;
                within(accepted.durable()).await.unwrap();
            }
        })
    };
    let count = async || {
        let status = within(beside.status()).await.unwrap();
        status.streams.iter().find(|status| status.stream == stream).map_or(0, |status| status.events)
    };
    let stored = async || {
        let checkpoint = within(beside.status()).await.unwrap().checkpoints;
        let checkpoint = checkpoint.into_iter().find(|checkpoint| checkpoint.source == source);
        checkpoint.map_or(0, |checkpoint| checkpoint.position.numbers()[0])
    };
    loop {
        let last = publisher.is_finished();
        let (before, at, after) = (count().await, stored().await, count().await);
        assert!(after >= at, "the checkpoint says {at}, there are only {after} events");
        if factory.capabilities().atomic_checkpoint && !factory.capabilities().gaps {
            assert!(at >= before, "there were {before} events, their checkpoint says {at}");
        }
        if last {
            assert_eq!(stored().await, 300);
            break;
        }
    }
    publisher.await.unwrap();
}

/// A source that begins again must not be overtaken by events of its own: the checkpoint that it begins
/// from counts everything handed over before, whether or not anybody waits for it.
pub async fn a_checkpoint_waits_for_what_is_on_its_way(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let (stream, source) = (stream(&bus, 1).await, unique("source"));
    let opened = within(bus.writer(&source)).await.unwrap();
    assert_eq!(opened.checkpoint, None);
    let mut writer = opened.writer;
    for batch in 1..=20 {
        let numbers = batch * 100..batch * 100 + 100;
        drop(accept(&*writer, events(&stream, 0, numbers), Some(checkpoint(&source, batch))).await);
        if batch % 5 == 0 {
            let opened = within(bus.writer(&source)).await.unwrap();
            assert_eq!(opened.checkpoint, Some(checkpoint(&source, batch)));
            writer = opened.writer;
        }
    }
}

/// Whoever opens a source's writer is not overtaken by an earlier one.
pub async fn an_earlier_writer_is_fenced(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let (stream, source) = (stream(&bus, 1).await, unique("source"));
    let earlier = writer(&bus, &source).await;
    within(accept(&*earlier, events(&stream, 0, 0..1), Some(checkpoint(&source, 1))).await.durable())
        .await
        .unwrap();
    let other = writer(&bus, &unique("source")).await;
    let opened = within(bus.writer(&source)).await.unwrap();
    assert_eq!(opened.checkpoint, Some(checkpoint(&source, 1)));
    let late = within(earlier.publish(events(&stream, 0, 100..101), Some(checkpoint(&source, 100)))).await;
    let late = match late {
        Ok(Published::Accepted(accepted)) => within(accepted.durable()).await.map(drop),
        Ok(Published::Rejected { rejections, .. }) => panic!("rejected: {rejections:?}"),
        Err(error) => Err(error),
    };
    assert_eq!(kind(late), Kind::Busy);
    for (writer, n) in [(other, 1), (opened.writer, 2)] {
        within(accept(&*writer, events(&stream, 0, n..n + 1), None).await.durable()).await.unwrap();
    }
    assert_eq!(begin(&bus, &source).await.unwrap(), Some(checkpoint(&source, 1)));
    let mut reader = Reader::open(&bus, &stream, None, Start::Beginning).await;
    assert_eq!(payloads(&reader.take(3).await), texts(0, 0..3));
}

/// A checkpoint may come without events.
pub async fn an_empty_batch_moves_the_checkpoint(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let source = unique("source");
    publish(&bus, Vec::new(), Some(checkpoint(&source, 5))).await;
    assert_eq!(begin(&bus, &source).await.unwrap(), Some(checkpoint(&source, 5)));
    publish(&bus, Vec::new(), None).await;
    assert_eq!(begin(&bus, &source).await.unwrap(), Some(checkpoint(&source, 5)));
}

/// One event that cannot be published gives the whole batch back.
pub async fn a_rejected_batch_leaves_nothing(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let (stream, source) = (stream(&bus, 2).await, unique("source"));
    let mut bad = vec![event(&stream, 2, 0)];
    if let Some(size) = factory.capabilities().rejected_payload {
        bad.push(Event { payload: Some(vec![b'x'; size].into()), ..event(&stream, 1, 0) });
    }
    let writer = writer(&bus, &source).await;
    for bad in bad {
        let batch = vec![event(&stream, 0, 0), bad, event(&stream, 1, 0)];
        match within(writer.publish(batch.clone(), Some(checkpoint(&source, 1)))).await.unwrap() {
            Published::Accepted(_) => panic!("accepted what cannot be published"),
            Published::Rejected { events, rejections } => {
                assert!(events == batch, "the batch came back changed");
                assert_eq!(rejections.iter().map(|rejection| rejection.index).collect::<Vec<_>>(), [1]);
                assert!(!rejections[0].reason.is_empty());
            }
        }
    }
    assert_eq!(begin(&bus, &source).await.unwrap(), None);
    publish(&bus, events(&stream, 0, 7..8), None).await;
    let mut reader = Reader::open(&bus, &stream, None, Start::Beginning).await;
    assert_eq!(payloads(&reader.take(1).await), texts(0, 7..8));
}

/// The second time finds the stream of the first.
pub async fn ensuring_twice_is_one_stream(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let stream = stream(&bus, 3).await;
    publish(&bus, events(&stream, 2, 0..1), None).await;
    assert_eq!(within(bus.ensure(&spec(&stream, 3))).await.unwrap(), 3);
    let mut reader = Reader::open(&bus, &stream, None, Start::Beginning).await;
    assert_eq!(payloads(&reader.take(1).await), texts(2, 0..1));
}

/// Keys would change places, and their order with it.
pub async fn another_partition_count_is_a_contract_error(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let stream = stream(&bus, 3).await;
    for partitions in [2, 4] {
        assert_eq!(kind(within(bus.ensure(&spec(&stream, partitions))).await), Kind::Contract);
    }
    publish(&bus, events(&stream, 2, 0..1), None).await;
}

/// Streams, events, offsets and checkpoints are there when the bus is opened again.
pub async fn everything_survives_reopening(factory: &dyn Factory) {
    let source = unique("source");
    let bus = factory.open().await.unwrap();
    let stream = stream(&bus, 2).await;
    publish(&bus, events(&stream, 1, 0..10), Some(checkpoint(&source, 10))).await;
    let offset = async |bus: &Arc<dyn Bus>, count: usize| {
        let mut reader = Reader::open(bus, &stream, None, Start::Beginning).await;
        reader.take(count).await.last().map(|record| record.offset).unwrap()
    };
    let last = offset(&bus, 10).await;
    drop(bus);
    let bus = factory.open().await.unwrap();
    assert_eq!(begin(&bus, &source).await.unwrap(), Some(checkpoint(&source, 10)));
    assert_eq!(within(bus.ensure(&spec(&stream, 2))).await.unwrap(), 2);
    publish(&bus, events(&stream, 1, 10..20), Some(checkpoint(&source, 20))).await;
    assert!(offset(&bus, 20).await > last);
    let mut reader = Reader::open(&bus, &stream, None, Start::Beginning).await;
    assert_eq!(payloads(&reader.take(20).await), texts(1, 0..20));
}
