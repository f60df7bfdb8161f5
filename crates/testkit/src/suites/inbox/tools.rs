//! What the tests of the suite share.

use std::sync::Arc;

use bytes::Bytes;
use headwater_core::ports::{Arrival, Aside, Due, Inbox, Mark, Settlement, Taken, Trouble};
use headwater_core::{Event, EventId, Header, Kind, Position, Record, Result};

pub use super::super::bus::tools::{unique, within};
use super::Factory;

/// The transactions of a factory's inbox.
pub type Tx<F> = <<F as Factory>::Inbox as Inbox>::Transaction;

/// A consumer and a stream that no other test has.
pub struct Names {
    /// The consumer.
    pub consumer: String,
    /// The stream.
    pub stream: Arc<str>,
}

impl Names {
    /// New ones.
    pub fn new() -> Self {
        Self { consumer: unique("consumer"), stream: unique("stream").into() }
    }

    /// Event number `n` of a key.
    pub fn record(&self, n: u64, key: Option<&str>) -> Record {
        let time = 1_700_000_000_000_000 + n as i64;
        let event = Event {
            id: EventId::derive(time, &[self.stream.as_bytes(), &n.to_be_bytes()]),
            stream: Arc::clone(&self.stream),
            partition: Some(2),
            kind: "Placed".into(),
            key: key.map(|key| Bytes::copy_from_slice(key.as_bytes())),
            payload: Some(Bytes::from(format!("{{\"n\":{n}}}"))),
            headers: [Header { name: "traceparent".into(), value: Some(Bytes::from_static(b"00-1")) }]
                .into_iter()
                .collect(),
            time,
            position: Position::ZERO,
        };
        Record { offset: n, event }
    }
}

impl Default for Names {
    fn default() -> Self {
        Self::new()
    }
}

/// What an event is taken by.
pub fn arrival(record: &Record) -> Arrival {
    let event = &record.event;
    Arrival { id: event.id, stream: Arc::clone(&event.stream), key: event.key.clone(), attempt: 1 }
}

/// What events are taken by.
pub fn arrivals(records: &[Record]) -> Vec<Arrival> {
    records.iter().map(arrival).collect()
}

/// An event to set aside: the first of its key, or one behind it.
pub fn aside(record: &Record, first: bool) -> Aside {
    let parked = first.then(|| Trouble { attempts: 3, error: "no stock".into() });
    Aside { record: record.clone(), key: record.event.key.clone(), parked, again: None }
}

/// Sets events aside, the first of each as it says, in one transaction.
pub async fn set_aside<I: Inbox>(inbox: &I, names: &Names, events: &[(&Record, bool)]) {
    let taken: Vec<Arrival> = events.iter().map(|(record, _)| arrival(record)).collect();
    let (transaction, states) = within(inbox.begin(&names.consumer, &taken)).await.unwrap();
    assert!(!states.contains(&Taken::Seen));
    let aside = events.iter().map(|(record, first)| aside(record, *first)).collect();
    let settlement = Settlement { aside, ..Settlement::default() };
    within(inbox.commit(transaction, &names.consumer, &settlement)).await.unwrap();
}

/// How events would be taken; rolled back.
pub async fn states<I: Inbox>(inbox: &I, consumer: &str, records: &[Record]) -> Vec<Taken> {
    let (transaction, states) = within(inbox.begin(consumer, &arrivals(records))).await.unwrap();
    within(inbox.rollback(transaction)).await.unwrap();
    states
}

/// Takes events and commits.
pub async fn take<I: Inbox>(inbox: &I, consumer: &str, records: &[Record]) -> Vec<Taken> {
    let (transaction, states) = within(inbox.begin(consumer, &arrivals(records))).await.unwrap();
    within(inbox.commit(transaction, consumer, &Settlement::default())).await.unwrap();
    states
}

/// A settlement that only moves a cursor.
pub fn marks(names: &Names, offset: u64) -> Settlement {
    let mark = Mark { stream: Arc::clone(&names.stream), partition: 2, offset };
    Settlement { cursors: vec![mark], ..Settlement::default() }
}

/// The key of what is due, for a test with one.
pub fn key_of(due: &[Due]) -> Vec<Option<&str>> {
    due.iter().map(|due| due.key.as_deref().map(|key| std::str::from_utf8(key).unwrap())).collect()
}

/// The kind of an error that must have happened.
pub fn kind<T>(result: Result<T>) -> Kind {
    result.err().expect("no error").kind()
}
