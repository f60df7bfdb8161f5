//! An event as a Kafka record, and back.
//!
//! Key and payload are the record's; the record's time is the commit's in milliseconds (never later
//! than now: brokers refuse times of the future). The headers `id` (a UUID's text) and `type` (the
//! event's type) come first, the event's own follow; an event's own header of those names wins.
//! A record's place in its source is not carried.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use headwater_core::{Event, EventId, Header, Position, Record};
use rdkafka::Message;
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Header as KafkaHeader, Headers, OwnedHeaders};
use rdkafka::producer::BaseRecord;
use rdkafka::util::IntoOpaque;

use super::topics::Topic;

const ID: &str = "id";
const TYPE: &str = "type";

/// The most bytes that a record batch of this one event takes before compression: the format of
/// record batches (version 2) with every variable number at its longest.
pub fn size(event: &Event) -> usize {
    let size = |header: &Header| header_size(&header.name, header.value.as_deref());
    let headers: usize = event.headers.iter().map(size).sum();
    let own = header_size(ID, Some(&[0; 36])) + header_size(TYPE, Some(event.kind.as_bytes()));
    own + headers + body_size(event.key.as_deref(), event.payload.as_deref())
}

/// The same of a record that was produced: never more than its event's [`size`].
pub fn sent_size(message: &BorrowedMessage<'_>) -> usize {
    let headers = message.headers().into_iter().flat_map(readable);
    let headers: usize = headers.map(|header| header_size(header.key, header.value)).sum();
    headers + body_size(message.key(), message.payload())
}

fn body_size(key: Option<&[u8]>, payload: Option<&[u8]>) -> usize {
    const BATCH: usize = 61;
    const RECORD: usize = 5 + 1 + 10 + 5 + 5 + 5 + 5;
    BATCH + RECORD + key.map_or(0, <[u8]>::len) + payload.map_or(0, <[u8]>::len)
}

fn header_size(name: &str, value: Option<&[u8]>) -> usize {
    10 + name.len() + value.map_or(0, <[u8]>::len)
}

/// The headers of an event's record.
pub fn headers(event: &Event) -> OwnedHeaders {
    let own = |name: &str| event.headers.iter().any(|header| &*header.name == name);
    let mut headers = OwnedHeaders::new_with_capacity(event.headers.len() + 2);
    if !own(ID) {
        headers = headers.insert(KafkaHeader { key: ID, value: Some(&event.id.to_text()) });
    }
    if !own(TYPE) {
        headers = headers.insert(KafkaHeader { key: TYPE, value: Some(event.kind.as_bytes()) });
    }
    for header in &event.headers {
        let value = header.value.as_deref();
        headers = headers.insert(KafkaHeader { key: &header.name, value });
    }
    headers
}

/// An event as a record of a topic. `now` is the time in milliseconds.
pub fn produced<'a, O: IntoOpaque>(
    topic: &'a str,
    event: &'a Event,
    now: i64,
    opaque: O,
) -> BaseRecord<'a, [u8], [u8], O> {
    let mut record = BaseRecord::with_opaque_to(topic, opaque);
    record.partition = event.partition.and_then(|partition| i32::try_from(partition).ok());
    record.key = event.key.as_deref();
    record.payload = event.payload.as_deref();
    record.timestamp = Some(event.time.div_euclid(1000).clamp(1, now));
    record.headers = Some(headers(event));
    record
}

/// The headers whose name is UTF-8, as Kafka says they must be: at the others rdkafka panics.
fn readable(headers: &BorrowedHeaders) -> impl Iterator<Item = KafkaHeader<'_, &[u8]>> {
    let get = |index| catch_unwind(AssertUnwindSafe(|| headers.try_get(index))).ok().flatten();
    (0..headers.count()).filter_map(get)
}

/// Why an event can be no record of a topic, whatever its size.
pub fn impossible(event: &Event, topic: &Topic) -> Option<String> {
    let Topic { name, partitions, .. } = topic;
    if let Some(partition) = event.partition.filter(|partition| partition >= partitions) {
        return Some(format!("the event is for partition {partition}, its topic has {partitions}"));
    }
    if event.key.is_none() && topic.compacted {
        return Some(format!(
            "the event ({}) has no key, and topic {name} is compacted: Kafka takes no record without a key there",
            event.kind
        ));
    }
    if event.key.is_none() && topic.needs_key {
        return Some(format!(
            "the event ({}) has no key, and the brokers refused one without a key in topic {name}: if it is no longer \
             compacted, start Headwater again",
            event.kind
        ));
    }
    let name = event.headers.iter().find(|header| header.name.contains('\0')).map(|header| &header.name)?;
    Some(format!("the name of the header {name:?} holds a zero character, which Kafka's client cannot send"))
}

/// The event of a record that anybody may have written.
pub fn event(message: &BorrowedMessage<'_>, stream: &Arc<str>) -> Record {
    let time = message.timestamp().to_millis().unwrap_or(0).saturating_mul(1000);
    let offset = u64::try_from(message.offset()).unwrap_or(0);
    let partition = u32::try_from(message.partition()).unwrap_or(0);
    let mut id = None;
    let mut kind: Arc<str> = Arc::from("");
    let mut headers = smallvec::SmallVec::new();
    for header in message.headers().into_iter().flat_map(readable) {
        let text = header.value.and_then(|value| std::str::from_utf8(value).ok());
        match (header.key, text) {
            (ID, Some(text)) if id.is_none() && text.parse::<EventId>().is_ok() => id = text.parse().ok(),
            (TYPE, Some(text)) if kind.is_empty() => kind = text.into(),
            (name, _) => {
                let value = header.value.map(Bytes::copy_from_slice);
                headers.push(Header { name: name.into(), value });
            }
        }
    }
    // Where there is none, its place is what tells it apart.
    let place =
        || EventId::derive(time, &[stream.as_bytes(), &partition.to_be_bytes(), &offset.to_be_bytes()]);
    let event = Event {
        id: id.unwrap_or_else(place),
        stream: Arc::clone(stream),
        partition: Some(partition),
        kind,
        key: message.key().map(Bytes::copy_from_slice),
        payload: message.payload().map(Bytes::copy_from_slice),
        headers,
        time,
        position: Position::ZERO,
    };
    Record { offset, event }
}
