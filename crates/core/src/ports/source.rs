//! Reading changes.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::Durable;
use crate::{Batch, Checkpoint, Result, Table};

/// A configured system that changes can be read from; opened anew after every failure.
#[async_trait]
pub trait Connector: Send + Sync {
    /// Starts reading after `from`, or with whatever the config asks for when there is no checkpoint.
    async fn open(&self, from: Option<&Checkpoint>) -> Result<Box<dyn Source>>;

    /// An error of kind `Busy` while another reads it, in this process or another: whoever is to open it asks
    /// first, and leaves the other's writer alone. May be wrong by the time that it is opened.
    async fn free(&self) -> Result<()> {
        Ok(())
    }

    /// Connects and says what is missing and how to mend it, and what its tables are, changing nothing.
    async fn check(&self) -> Result<Check>;

    /// What it is doing now; cheap, callable at any time.
    fn status(&self) -> SourceStatus;
}

/// An open source.
#[async_trait]
pub trait Source: Send {
    /// The next changes in commit order: what is ready, about `budget` bytes at most, at least one
    /// change or a moved checkpoint; waits when there is neither.
    ///
    /// Cancel-safe: dropping the future loses nothing.
    async fn next(&mut self, budget: usize) -> Result<Batch>;

    /// Tells the source that everything up to `checkpoint` is safe elsewhere. The proof comes from
    /// the bus (invariant 1).
    async fn confirm(&mut self, checkpoint: &Checkpoint, proof: Durable) -> Result<()>;

    /// A graceful stop, after the last [`Source::confirm`]: returns when the system itself has been told of
    /// it. A source that is dropped without this loses nothing: the system hears of it the next time.
    async fn close(&mut self) {}
}

/// What a source is doing.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SourceStatus {
    /// The phase.
    pub state: SourceState,
    /// The newest confirmed place, in words the database's own tools understand.
    pub position: Option<String>,
    /// Bytes of log between what is confirmed and the end, where the source can tell.
    pub lag_bytes: Option<u64>,
    /// The tables of a snapshot, while one is taken.
    pub snapshot: Vec<TableProgress>,
}

/// The phase a source is in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceState {
    /// Not open.
    #[default]
    Closed,
    /// Connecting and checking.
    Connecting,
    /// Reading tables.
    Snapshot,
    /// Following the log.
    Streaming,
}

/// How far the snapshot of one table is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TableProgress {
    /// `schema.name`.
    pub table: String,
    /// Rows read so far.
    pub rows: u64,
    /// About how many there are, where known.
    pub estimate: Option<u64>,
    /// Whether all of it was read.
    pub done: bool,
}

/// What a check found.
#[derive(Debug, Clone, Default)]
pub struct Check {
    /// What was looked at.
    pub findings: Vec<Finding>,
    /// The captured tables, as changes made now describe them; `None` when not all of them could be
    /// looked at, which a finding says.
    pub tables: Option<Vec<Arc<Table>>>,
}

/// Something a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Whether it stops Headwater.
    pub severity: Severity,
    /// What was looked at, and what is so.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// It works, but not as one might expect.
    Warning,
    /// It cannot work.
    Error,
}

impl Finding {
    /// As it should be.
    pub fn ok(message: impl Into<String>) -> Self {
        Self { severity: Severity::Ok, message: message.into(), hint: None }
    }

    /// It works, but the operator should know.
    pub fn warning(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, message: message.into(), hint: Some(hint.into()) }
    }

    /// It cannot work until the hint is followed.
    pub fn error(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { severity: Severity::Error, message: message.into(), hint: Some(hint.into()) }
    }
}
