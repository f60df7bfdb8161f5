//! Publishing through a table of a service's own database, and sharing the work of emptying it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::source::Finding;
use crate::{EventId, Micros, Result, Row, Table};

/// An event as a service writes it, before it is on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// Its id, the same wherever it arrives.
    pub id: EventId,
    /// The stream it is for.
    pub stream: String,
    /// What happened.
    pub kind: String,
    /// Which entity it is about; without one there is no order.
    pub key: Option<String>,
    /// What it says, as JSON.
    pub payload: Option<String>,
    /// Names and values beside the payload.
    pub headers: Vec<(String, String)>,
    /// The version of its schema.
    pub version: u32,
}

/// Writes events in a service's own transaction: what commits with it is published, and nothing else.
#[async_trait]
pub trait OutboxWriter: Send + Sync {
    /// A transaction of the service's database library.
    type Transaction<'t>: Send;

    /// Writes events, in order. Takes the locks of their keys first and keeps them until the transaction
    /// ends, so that the sequence within a key follows commit order.
    async fn insert(&self, transaction: &mut Self::Transaction<'_>, events: &[NewEvent]) -> Result<()>;
}

/// A share of an outbox: the rows whose keys hash to it.
pub type Lane = u16;

/// How many lanes an outbox has, where relays can share it. Few: each publishes on its own.
pub const LANES: Lane = 8;

/// The outbox table of a service's database, as the relays that empty it together see it.
#[async_trait]
pub trait OutboxStore: Send + Sync {
    /// Tells that a relay is alive, renews its leases, and gives it a fair share of the lanes. Called
    /// several times within `ask.ttl`. Returns every lane that the relay may work now. Without `ask.renew` it only
    /// looks, and takes what is free. A lease that has run out is not renewed: its lane is free, for its last holder
    /// too.
    async fn lease(&self, ask: &LeaseAsk) -> Result<Vec<Lease>>;

    /// Reads rows that are due, of each lane in the order of their sequence. Takes nothing away: what is
    /// claimed already is the relay's to know, and to say ([`Claim::known`]).
    async fn claim(&self, claims: &[Claim], limit: ClaimLimit) -> Result<Claimed>;

    /// Writes down what became of rows, all at once. Of a lane whose lease has passed to another nothing is
    /// written; returns these lanes.
    async fn settle(&self, relay: &str, settled: &[Settled]) -> Result<Vec<Lane>>;

    /// Says what is missing for a relay to work, and how to mend it, changing nothing.
    async fn check(&self) -> Result<Vec<Finding>>;

    /// Returns `true` when there may be new rows, or `false` after `at_most`. Only a hint: it may miss any of them.
    async fn wait(&self, at_most: Duration) -> bool;

    /// Deletes published and dropped rows that are older than `retention`, in small batches. Returns how
    /// many; more may be left when it is not 0.
    async fn clean(&self, retention: Duration) -> Result<u64>;
}

/// What a relay asks for when it renews its leases.
#[derive(Debug, Clone)]
pub struct LeaseAsk {
    /// The relay's name, its own among all that ever ran.
    pub relay: String,
    /// How long what it is given is its own, unless renewed. By the database's clock.
    pub ttl: Duration,
    /// Lanes it gives back, with their epochs: it has nothing of them on its way.
    pub release: Vec<(Lane, u64)>,
    /// Whether its leases are renewed, and it is known to be alive for as long. Otherwise what it holds lasts as long as
    /// before: a question that costs little and is asked often.
    pub renew: bool,
    /// Whether it ends: it is given nothing, and no longer counts among those that share. What it does not give back
    /// it keeps.
    pub leaving: bool,
}

/// The right to publish the rows of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The lane.
    pub lane: Lane,
    /// Rises whenever the lane is given to a relay: to another, or to the same after its lease has run out or was given
    /// back.
    pub epoch: u64,
    /// Another relay waits for it: to be given back once nothing is on its way.
    pub wanted: bool,
}

/// What to read of one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The lane.
    pub lane: Lane,
    /// Only new rows with a higher sequence than this; 0 for all.
    pub above: i64,
    /// New rows with these sequences are not read, nor counted: they are on their way.
    pub known: Vec<i64>,
    /// Also the rows whose time has come to be tried again.
    pub retries: bool,
    /// Lets go what waits behind nothing any more, and asks which keys are blocked. Only while nothing of
    /// the lane is on its way, and with `above` 0. It may take several claims: see [`Claimed::resuming`].
    pub resume: bool,
}

/// How much to read at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimLimit {
    /// At most this many rows of each lane.
    pub rows: usize,
    /// No further row once those that were read have so many bytes, whatever their lanes (invariant 7).
    pub bytes: usize,
}

/// Rows that are due.
#[derive(Debug, Default)]
pub struct Claimed {
    /// What the columns of the rows are; `None` when there are no rows.
    pub table: Option<Arc<Table>>,
    /// The rows: of each lane those that are tried again first, then new ones in order.
    pub rows: Vec<ClaimedRow>,
    /// No row with this sequence or a lower one can become visible after these rows were read: who drew
    /// such a number has committed or rolled back. 0 where that is not known. It is what the next claim may
    /// begin above: beyond it, a transaction that commits late may have a row that comes before a later one
    /// of the same key (invariants 2 and 4).
    pub horizon: i64,
    /// The blocked keys of the lanes that asked.
    pub blocked: Vec<(Lane, BlockedKey)>,
    /// Lanes that asked to let go what waits, and have more of it: the other lanes are not to wait for that. Nothing
    /// was read of these; they ask again.
    pub resuming: Vec<Lane>,
    /// Lanes of which there may be more: the limit was reached before their end.
    pub more: Vec<Lane>,
}

impl Claimed {
    /// The claims that are answered: all but those that resume still.
    pub fn answered<'a>(&self, claims: &'a [Claim]) -> Vec<&'a Claim> {
        claims.iter().filter(|claim| !self.resuming.contains(&claim.lane)).collect()
    }
}

/// A stream and a key whose first row has yet to go.
pub type BlockedKey = (String, String);

/// One row of an outbox.
#[derive(Debug, Clone)]
pub struct ClaimedRow {
    /// Its lane.
    pub lane: Lane,
    /// Its sequence: rises within a key in the order of commits.
    pub sequence: i64,
    /// The event's id.
    pub id: EventId,
    /// How often it was tried in vain.
    pub attempts: u32,
    /// Whether it is tried again: then it is the first of its key.
    pub again: bool,
    /// The stream it is for.
    pub stream: String,
    /// Its key.
    pub key: Option<String>,
    /// When it was written.
    pub created_at: Micros,
    /// All of it, in the columns of [`Claimed::table`].
    pub row: Row,
}

/// What became of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Its lane.
    pub lane: Lane,
    /// The epoch under which the lane was worked.
    pub epoch: u64,
    /// Its sequence.
    pub sequence: i64,
    /// The event's id.
    pub id: EventId,
    /// What became of it.
    pub outcome: Outcome,
}

/// What can become of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable on the bus.
    Published,
    /// It waits behind the first of its key.
    Waiting,
    /// It is to be tried again after a while.
    Retry {
        /// How often it has been tried.
        attempts: u32,
        /// For how long not to try.
        after: Duration,
        /// Why.
        error: String,
    },
    /// It waits for a person.
    Parked {
        /// How often it was tried.
        attempts: u32,
        /// Why.
        error: String,
    },
}
