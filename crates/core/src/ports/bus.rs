//! Holding streams.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Subscribe, Subscription};
use crate::{Checkpoint, Event, Micros, Result, StreamSpec};

/// Holds streams of events.
#[async_trait]
pub trait Bus: Send + Sync {
    /// Makes sure the stream exists and returns how many partitions it has. A stream that exists with
    /// another number of partitions than `spec` says is an error of kind `Contract`.
    async fn ensure(&self, spec: &StreamSpec) -> Result<u32>;

    /// Opens the one writer of a source, and says where the source goes on from: its newest durable
    /// checkpoint, once all that its earlier writers were handed has become durable or can no longer
    /// become so. They are fenced: a source that begins again is not overtaken by events of its own that
    /// are still on their way. Where the bus can, this holds for writers in other processes too.
    async fn writer(&self, source: &str) -> Result<Opened>;

    /// Whether its servers answer, where it has any; why not, if they do not.
    async fn reach(&self) -> Result<()> {
        Ok(())
    }

    /// Reads streams.
    async fn subscribe(&self, subscribe: Subscribe) -> Result<Box<dyn Subscription>>;

    /// What it holds and how far its groups have come.
    async fn status(&self) -> Result<BusStatus>;
}

/// What [`Bus::writer`] gives.
pub struct Opened {
    /// Publishes for the source until another writer of it is opened.
    pub writer: Box<dyn Writer>,
    /// Where the source goes on from; `None` when it has published nothing yet.
    pub checkpoint: Option<Checkpoint>,
}

/// Publishes for one source. The bus stays open for as long as a writer of it lives.
#[async_trait]
pub trait Writer: Send + Sync {
    /// Hands over events, and where their source stands after them. Calls made one after the other
    /// publish in that order. Waits while the bus's own buffers are full; on an error, or when the
    /// future is dropped, what became of the batch is unknown: open a writer anew and publish again from
    /// its checkpoint.
    ///
    /// The checkpoint, which is of this writer's source, becomes durable with the events or after them,
    /// never before. An error of kind `Busy`, here or of a promise, says that another writer of the source
    /// was opened.
    async fn publish(&self, events: Vec<Event>, checkpoint: Option<Checkpoint>) -> Result<Published>;
}

/// What became of a batch handed to [`Writer::publish`].
pub enum Published {
    /// Taken; wait for [`Accepted::durable`] before relying on it.
    Accepted(Accepted),
    /// Nothing of it was taken: these events can never be published as they are.
    Rejected {
        /// The whole batch, given back.
        events: Vec<Event>,
        /// Which events, and why.
        rejections: Vec<Rejection>,
    },
}

/// Why one event of a batch can never be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Its place in the batch.
    pub index: usize,
    /// Why, with figures and what to do.
    pub reason: String,
}

/// A batch that the bus took but did not yet promise to keep.
#[must_use = "accepted is not durable: wait for durable()"]
pub struct Accepted(Pin<Box<dyn Future<Output = Result<()>> + Send>>);

impl Accepted {
    /// What an adapter returns: a future that ends when the batch and its checkpoint are durable.
    /// Once the batch is accepted the work must go on whether or not this future is polled.
    pub fn new(durable: impl Future<Output = Result<()>> + Send + 'static) -> Self {
        Self(Box::pin(durable))
    }

    /// Waits until the batch is durable.
    pub async fn durable(self) -> Result<Durable> {
        self.0.await.map(|()| Durable(()))
    }
}

/// Proof that a batch is durable: only [`Accepted::durable`] makes one.
#[derive(Debug)]
pub struct Durable(());

/// What a bus holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct BusStatus {
    /// `embedded` or `kafka`.
    pub kind: String,
    /// Each stream that Headwater made or was told of.
    pub streams: Vec<StreamStatus>,
    /// The newest checkpoint of each source.
    pub checkpoints: Vec<Checkpoint>,
    /// Since when published events wait for a server that does not take them; `None` when all is well.
    #[serde(default)]
    pub waiting_since: Option<Micros>,
}

/// One stream, over all its partitions.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StreamStatus {
    /// Its name.
    pub stream: Arc<str>,
    /// Its partitions.
    pub partitions: u32,
    /// Events it holds now (offsets between its first and its last, where gaps are not known).
    pub events: u64,
    /// Bytes it holds now, where known.
    pub bytes: Option<u64>,
    /// When its newest event was committed, where known.
    pub newest: Option<Micros>,
    /// The groups that read it.
    pub groups: Vec<GroupStatus>,
}

/// How far a group has come in one stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GroupStatus {
    /// The group's name.
    pub group: String,
    /// Events it has yet to read.
    pub lag_events: u64,
    /// How old the oldest of them is, where known.
    pub lag_seconds: Option<f64>,
}
