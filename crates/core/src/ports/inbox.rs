//! Consuming with effect exactly once: a consumer's memory in its service's own database.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::{EventId, Record, Result};

/// What a consumer has handled, how far it has come, and what it has set aside, all in one database.
///
/// An event is taken by writing its inbox row, which there can be only one of: whoever commits it has handled
/// the event or set it aside, in the same transaction, and nobody does it again (invariant 5). So it is safe for
/// two members of a group to hold one partition for a moment.
pub trait Inbox: Send + Sync + 'static {
    /// A transaction of the service's database library. Dropping it rolls back.
    type Transaction: Send + 'static;

    /// The same, for a handler that is given up after this time: soon after it the server, too, gives up a
    /// statement of its transactions, where it can, and does not keep open those that nobody goes on with.
    #[must_use]
    fn bounded(self, _handler: Duration) -> Self
    where
        Self: Sized,
    {
        self
    }

    /// How far a consumer has come in a partition: everything below is handled or set aside. `None` where it
    /// was never written.
    fn cursor(
        &self,
        consumer: &str,
        stream: &str,
        partition: u32,
    ) -> impl Future<Output = Result<Option<u64>>> + Send;

    /// Opens a transaction and takes events in it, whose ids differ; says of each what is to be done with it.
    /// Waits for others that have taken one and not ended.
    fn begin(
        &self,
        consumer: &str,
        arrivals: &[Arrival],
    ) -> impl Future<Output = Result<(Self::Transaction, Vec<Taken>)>> + Send;

    /// Writes down what became of events and commits. After an error that a retry can mend it may have
    /// happened or not: taking the events again tells.
    fn commit(
        &self,
        transaction: Self::Transaction,
        consumer: &str,
        settlement: &Settlement,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Rolls back. An error means that the connection is gone: the database is away, so that what failed before
    /// was not the event's fault, or what failed broke it.
    fn rollback(&self, transaction: Self::Transaction) -> impl Future<Output = Result<()>> + Send;

    /// Deletes inbox rows of a consumer that are older than `retention`, in small batches. Returns how many;
    /// more may be left when it is not 0.
    fn clean(&self, consumer: &str, retention: Duration) -> impl Future<Output = Result<u64>> + Send;
}

/// An inbox whose set-aside events can go on.
pub trait Backlog: Inbox {
    /// The keys (and events without one) whose first event may be tried now, at most `limit`: it waits behind
    /// nothing any more, or a person or a delay has let it go.
    fn due(&self, consumer: &str, limit: usize) -> impl Future<Output = Result<Vec<Due>>> + Send;

    /// Opens a transaction that holds the first event of what is due. `None` when it may not be tried any
    /// more, or another member holds it.
    fn head(
        &self,
        consumer: &str,
        due: &Due,
    ) -> impl Future<Output = Result<Option<(Self::Transaction, Held)>>> + Send;
}

/// An event that has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Its id.
    pub id: EventId,
    /// Its stream.
    pub stream: Arc<str>,
    /// Its order key; without one it waits for nothing.
    pub key: Option<Bytes>,
    /// Which try this is; the first is 1.
    pub attempt: u32,
}

/// What is to be done with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// To be handled.
    New,
    /// To be set aside: an earlier one of its key is.
    Blocked,
    /// Nothing: it was handled or set aside before.
    Seen,
}

/// What a transaction writes down beside the handler's effect.
#[derive(Debug, Clone, Default)]
pub struct Settlement {
    /// How far the consumer has come. A cursor never moves back.
    pub cursors: Vec<Mark>,
    /// Events to set aside, each taken by this transaction, in order.
    pub aside: Vec<Aside>,
    /// What became of events that were set aside, by their sequence. A try that failed is written down where it is the
    /// next one after those that are known: what another, or a person, has said of the event meanwhile stays.
    pub held: Vec<(i64, Fate)>,
}

/// How far a consumer has come in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The stream.
    pub stream: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// Everything below is done.
    pub offset: u64,
}

/// An event to set aside.
#[derive(Debug, Clone)]
pub struct Aside {
    /// The event and its place.
    pub record: Record,
    /// Its order key.
    pub key: Option<Bytes>,
    /// Why, where it is the first of its key; otherwise it waits behind that one.
    pub parked: Option<Trouble>,
    /// After how long it is tried again; `None` leaves that to a person. Only means something for the first.
    pub again: Option<Duration>,
}

/// Why an event did not go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// How often it was tried.
    pub attempts: u32,
    /// What was said the last time.
    pub error: String,
}

/// The first of what is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Its stream.
    pub stream: Arc<str>,
    /// Its order key.
    pub key: Option<Bytes>,
    /// Its sequence, by which an event without a key is found.
    pub sequence: i64,
}

/// An event that was set aside and is tried again.
#[derive(Debug, Clone)]
pub struct Held {
    /// Its sequence: rises within a key.
    pub sequence: i64,
    /// How often it was tried since it was let go.
    pub attempts: u32,
    /// The event and its place.
    pub record: Record,
}

/// What became of an event that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is handled.
    Done,
    /// It is to be tried again after a while.
    Retry(Trouble, Duration),
    /// It waits for a person again.
    Parked(Trouble),
}
