//! Setting aside what cannot go on.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{EventId, Micros, Position, Result};

/// What waits behind a change that is set aside, until it has gone on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HoldsBack {
    /// Its whole stream.
    Stream,
    /// The later changes of its order key, which may be empty.
    Key(Bytes),
    /// Nothing: without a key there is no order.
    Nothing,
}

impl HoldsBack {
    /// An order key, or nothing where there is none.
    pub fn key(order_key: Option<Bytes>) -> Self {
        order_key.map_or(Self::Nothing, Self::Key)
    }
}

/// One change set aside on its way to a stream, with all that is needed to try again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// The id of the event it would be: parking it again, of the same source and stream, after a
    /// redelivery changes nothing.
    pub id: EventId,
    /// The source it comes from.
    pub source: Arc<str>,
    /// The stream it was meant for.
    pub stream: Arc<str>,
    /// What waits behind it.
    pub holds: HoldsBack,
    /// Where it stands in its source.
    pub position: Position,
    /// Why it is here; of those that wait behind another, which one.
    pub reason: String,
    /// The change, as the runtime wrote it.
    pub change: Bytes,
    /// When it was parked.
    pub parked_at: Micros,
}

/// What is parked of one stream and holds back the same: a line of what waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedUsage {
    /// The source.
    pub source: Arc<str>,
    /// The stream.
    pub stream: Arc<str>,
    /// What it holds back.
    pub holds: HoldsBack,
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Why the first of them is here.
    pub reason: String,
}

/// How many changes are parked of one source and stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedCount {
    /// The source.
    pub source: Arc<str>,
    /// The stream.
    pub stream: Arc<str>,
    /// How many.
    pub count: u64,
}

/// The fsynced store of parked changes.
#[async_trait]
pub trait ParkedStore: Send + Sync {
    /// Adds changes; those whose id their source and stream have parked already are left as they are.
    /// Durable on return.
    /// An error of kind `Full` when the budget is used up: then nothing was added.
    async fn park(&self, parked: Vec<Parked>) -> Result<()>;

    /// What is parked, oldest first, by source, stream and what it holds back.
    async fn usage(&self) -> Result<Vec<ParkedUsage>>;

    /// How much is parked: cheap, and waits for nobody who parks.
    async fn counts(&self) -> Result<Vec<ParkedCount>>;

    /// The first of what one line of [`ParkedStore::usage`] counts, in the order of the source, whenever
    /// each was parked. As many as take no more than `bytes`, but always one if there is one.
    async fn list(&self, source: &str, stream: &str, holds: &HoldsBack, bytes: usize) -> Result<Vec<Parked>>;

    /// Forgets what was published or given up, of one source and stream.
    async fn remove(&self, source: &str, stream: &str, ids: &[EventId]) -> Result<()>;
}
