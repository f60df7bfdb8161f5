//! Reading streams.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{Micros, Record, Result};

/// What to read.
#[derive(Debug, Clone)]
pub struct Subscribe {
    /// The streams; each must exist.
    pub streams: Vec<Arc<str>>,
    /// The group that shares the work and remembers cursors; `None` reads everything and remembers nothing.
    pub group: Option<String>,
    /// Where to begin in a partition that the group has no cursor for.
    pub start: Start,
}

/// Where a reader without a cursor begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the oldest event still held.
    Beginning,
    /// With the first event after now.
    End,
    /// With the first event committed at or after this time.
    Time(Micros),
}

/// An open reader of streams.
#[async_trait]
pub trait Subscription: Send {
    /// The next thing that happened; waits when there is nothing. Cancel-safe.
    async fn next(&mut self) -> Result<Delivery>;

    /// Remembers that the group has done everything below `cursor.offset`. An error of kind `Busy`
    /// when the epoch is no longer the partition's: it was revoked, and another may have gone on.
    async fn commit(&mut self, cursor: &Cursor) -> Result<()>;

    /// Goes on at another place of a partition that is assigned.
    async fn seek(&mut self, stream: &str, partition: u32, to: SeekTo) -> Result<()>;
}

/// Where to seek.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTo {
    /// The oldest event still held.
    Beginning,
    /// After the newest event.
    End,
    /// The first event at or after this offset.
    Offset(u64),
    /// The first event committed at or after this time.
    Time(Micros),
}

/// A place in a partition, with the epoch under which the reader holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The stream.
    pub stream: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// The lease's epoch, from [`Delivery`].
    pub epoch: u64,
    /// The offset to go on with: one past the last event done.
    pub offset: u64,
}

/// What a subscription yields.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// A partition is now this reader's; it begins at `cursor`.
    Assigned(Cursor),
    /// Events of one partition, in order.
    Batch {
        /// The stream.
        stream: Arc<str>,
        /// The partition.
        partition: u32,
        /// The lease's epoch, to commit with.
        epoch: u64,
        /// The events; never empty.
        records: Vec<Record>,
    },
    /// The partition is no longer this reader's.
    Revoked {
        /// The stream.
        stream: Arc<str>,
        /// The partition.
        partition: u32,
        /// The epoch that ended.
        epoch: u64,
    },
}
