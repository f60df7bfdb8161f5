//! Groups: cursors, leases, epochs.

use std::collections::BTreeSet;

use headwater_core::Kind;
use headwater_core::ports::{Cursor, Start};

use super::Factory;
use super::tools::{Reader, events, kind, payloads, payloads_of, publish, stream, texts, unique};

/// What was committed is not read again; what was not, is.
pub async fn a_group_goes_on_from_its_cursor(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let (stream, group) = (stream(&bus, 1).await, unique("group"));
    publish(&bus, events(&stream, 0, 0..10), None).await;
    let mut reader = Reader::open(&bus, &stream, Some(&group), Start::Beginning).await;
    let records = reader.take(10).await;
    reader.commit(&stream, 0, records[3].offset + 1).await.unwrap();
    drop(reader);
    let mut reader = Reader::open(&bus, &stream, Some(&group), Start::End).await;
    assert_eq!(payloads(&reader.take(6).await), texts(0, 4..10));
}

/// Each group reads everything.
pub async fn groups_do_not_disturb_each_other(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let stream = stream(&bus, 1).await;
    publish(&bus, events(&stream, 0, 0..10), None).await;
    for _ in 0..2 {
        let mut reader = Reader::open(&bus, &stream, Some(&unique("group")), Start::Beginning).await;
        let records = reader.take(10).await;
        assert_eq!(payloads(&records), texts(0, 0..10));
        reader.commit(&stream, 0, records[9].offset + 1).await.unwrap();
    }
}

/// Both work, on different partitions, and together on all.
pub async fn two_members_share(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let (stream, group) = (stream(&bus, 4).await, unique("group"));
    let beside = factory.open_reader().await.unwrap();
    let mut first = Reader::open(&bus, &stream, Some(&group), Start::Beginning).await;
    first.until(|reader| reader.held.len() == 4).await;
    let mut second = Reader::open(&beside, &stream, Some(&group), Start::Beginning).await;
    let (left, right) = tokio::join!(
        first.until(|reader| reader.held.len() == 2),
        second.until(|reader| reader.held.len() == 2),
    );
    assert!(left.is_empty() && right.is_empty());
    let held: BTreeSet<u32> = first.held.keys().chain(second.held.keys()).map(|seat| seat.1).collect();
    assert_eq!(held, (0..4).collect());
    for partition in 0..4 {
        publish(&bus, events(&stream, partition, 0..3), None).await;
    }
    for reader in [&mut first, &mut second] {
        let records = reader.take(6).await;
        for (_, partition) in reader.held.keys() {
            assert_eq!(payloads_of(&records, *partition), texts(*partition, 0..3));
        }
    }
}

/// Who lost a partition cannot move its cursor any more.
pub async fn a_stale_epoch_cannot_commit(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let (stream, group) = (stream(&bus, 2).await, unique("group"));
    publish(&bus, events(&stream, 0, 0..5), None).await;
    publish(&bus, events(&stream, 1, 0..5), None).await;
    let mut first = Reader::open(&bus, &stream, Some(&group), Start::Beginning).await;
    first.take(10).await;
    let mut second = Reader::open(&bus, &stream, Some(&group), Start::Beginning).await;
    tokio::join!(
        first.until(|reader| reader.held.len() == 1 && !reader.revoked.is_empty()),
        second.until(|reader| reader.held.len() == 1),
    );
    let held = second.held.values().next().cloned().unwrap();
    let (_, lost, epoch) = first.revoked.iter().rfind(|seat| seat.1 == held.partition).cloned().unwrap();
    assert!(held.epoch > epoch, "the epoch must rise with a change of hands");
    let stale = Cursor { epoch, offset: held.offset + 5, ..held.clone() };
    assert_eq!(kind(first.commit_cursor(&stale).await), Kind::Busy);
    second.commit(&stream, lost, held.offset + 3).await.unwrap();
}

/// When a member leaves, another goes on where it stood.
pub async fn whoever_takes_over_goes_on_from_the_cursor(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let (stream, group) = (stream(&bus, 1).await, unique("group"));
    publish(&bus, events(&stream, 0, 0..10), None).await;
    let mut first = Reader::open(&bus, &stream, Some(&group), Start::Beginning).await;
    let records = first.take(10).await;
    let beside = factory.open_reader().await.unwrap();
    let mut second = Reader::open(&beside, &stream, Some(&group), Start::Beginning).await;
    first.commit(&stream, 0, records[6].offset + 1).await.ok();
    drop(first);
    let read = second.until(|reader| !reader.held.is_empty()).await;
    assert!(read.is_empty());
    let begins = second.held.values().next().unwrap().offset;
    let expected = if begins == records[0].offset { 0..10 } else { 7..10 };
    let count = (expected.end - expected.start) as usize;
    assert_eq!(payloads(&second.take(count).await), texts(0, expected));
}

/// Cursors are there when the bus is opened again.
pub async fn a_cursor_survives_reopening(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let (stream, group) = (stream(&bus, 1).await, unique("group"));
    publish(&bus, events(&stream, 0, 0..10), None).await;
    let mut reader = Reader::open(&bus, &stream, Some(&group), Start::Beginning).await;
    let records = reader.take(10).await;
    reader.commit(&stream, 0, records[7].offset + 1).await.unwrap();
    drop(reader);
    drop(bus);
    let bus = factory.open().await.unwrap();
    let mut reader = Reader::open(&bus, &stream, Some(&group), Start::Beginning).await;
    assert_eq!(payloads(&reader.take(2).await), texts(0, 8..10));
}

/// A group that begins at the end has a place from then on, even if it was away when events came.
pub async fn a_group_at_the_end_misses_nothing_after_it(factory: &dyn Factory) {
    let bus = factory.open().await.unwrap();
    let (stream, group) = (stream(&bus, 1).await, unique("group"));
    publish(&bus, events(&stream, 0, 0..5), None).await;
    let mut reader = Reader::open(&bus, &stream, Some(&group), Start::End).await;
    reader.until(|reader| reader.held.len() == 1).await;
    publish(&bus, events(&stream, 0, 5..8), None).await;
    assert_eq!(payloads(&reader.take(3).await), texts(0, 5..8));
    drop(reader);
    publish(&bus, events(&stream, 0, 8..10), None).await;
    let mut reader = Reader::open(&bus, &stream, Some(&group), Start::End).await;
    let read = payloads(&reader.take(5).await);
    assert_eq!(read, texts(0, 5..10));
}
