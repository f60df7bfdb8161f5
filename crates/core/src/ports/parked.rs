//! Setting aside what cannot go on.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{EventId, Micros, Result};

/// One change set aside on its way to a stream, with all that is needed to try again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// The id of the event it would be: parking it again after a redelivery changes nothing.
    pub id: EventId,
    /// The source it comes from.
    pub source: Arc<str>,
    /// The stream it was meant for.
    pub stream: Arc<str>,
    /// Its order key; later changes of this key wait behind it. `None` holds the whole stream.
    pub order_key: Option<Bytes>,
    /// Why it is here; of those that wait behind another, which one.
    pub reason: String,
    /// The change, as the runtime wrote it.
    pub change: Bytes,
    /// When it was parked.
    pub parked_at: Micros,
}

/// What is parked for one order key of a stream, or for a stream as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedUsage {
    /// The source.
    pub source: Arc<str>,
    /// The stream.
    pub stream: Arc<str>,
    /// The order key; `None` when the whole stream is held.
    pub order_key: Option<Bytes>,
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
    /// Adds changes in order; those whose id is there already are left as they are. Durable on return.
    /// An error of kind `Full` when the budget is used up: then nothing was added.
    async fn park(&self, parked: Vec<Parked>) -> Result<()>;

    /// What is parked, oldest first, by source, stream and order key.
    async fn usage(&self) -> Result<Vec<ParkedUsage>>;

    /// How much is parked: cheap, and waits for nobody who parks.
    async fn counts(&self) -> Result<Vec<ParkedCount>>;

    /// The oldest of what one line of [`ParkedStore::usage`] counts, in the order it was parked: exactly
    /// this source, stream and order key (`None`: what was held with the whole stream, and only that).
    /// As many as take no more than `bytes`, but always one if there is one.
    async fn list(
        &self,
        source: &str,
        stream: &str,
        order_key: Option<&[u8]>,
        bytes: usize,
    ) -> Result<Vec<Parked>>;

    /// Forgets what was published or given up.
    async fn remove(&self, ids: &[EventId]) -> Result<()>;
}
