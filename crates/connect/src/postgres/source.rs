//! The open source: batches from the task that follows the log, confirmations back to the server.

use std::sync::Arc;

use async_trait::async_trait;
use headwater_core::ports::{Durable, Source, SourceState};
use headwater_core::{Batch, Checkpoint, Error, Kind, Result};
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinHandle;

use super::feedback::Feedback;
use super::monitor::Monitor;
use super::state::State;
use crate::requests::Requests;

/// An open PostgreSQL source; its tasks end when it is dropped.
pub struct PostgresSource {
    batches: Receiver<Result<Batch>>,
    /// What was received and did not fit the budget.
    rest: Option<Batch>,
    /// The checkpoint before what comes next.
    before: Checkpoint,
    feedback: Feedback,
    monitor: Arc<Monitor>,
    requests: Requests,
    /// The request that was followed and removed.
    settled: Option<String>,
    tasks: [JoinHandle<()>; 3],
}

impl PostgresSource {
    /// A source that goes on after `before`, with what its tasks hand out.
    pub fn new(
        batches: Receiver<Result<Batch>>,
        before: Checkpoint,
        feedback: Feedback,
        monitor: Arc<Monitor>,
        requests: Requests,
        tasks: [JoinHandle<()>; 3],
    ) -> Self {
        Self { batches, rest: None, before, feedback, monitor, requests, settled: None, tasks }
    }

    /// Cuts a batch to the budget. A checkpoint within it has the place of the last change, and confirms
    /// what was to be confirmed before.
    fn cut(&mut self, mut batch: Batch, budget: usize) -> Batch {
        let mut bytes = 0;
        let over = |change: &headwater_core::Change| {
            bytes += change.size();
            bytes > budget
        };
        let at = batch.changes.iter().position(over).unwrap_or(batch.changes.len()).max(1);
        if at >= batch.changes.len() {
            if let Some(checkpoint) = &batch.checkpoint {
                self.before.clone_from(checkpoint);
            }
            return batch;
        }
        let rest = batch.changes.split_off(at);
        if let Some(last) = batch.changes.last() {
            self.before.position = last.position;
        }
        self.rest = Some(Batch { changes: rest, checkpoint: batch.checkpoint });
        Batch { changes: batch.changes, checkpoint: Some(self.before.clone()) }
    }

    /// A request that a durable checkpoint names need not be kept.
    async fn settle(&mut self, request: Option<String>) -> Result<()> {
        if request.is_none() || request == self.settled {
            return Ok(());
        }
        let (requests, id) = (self.requests.clone(), request.clone().unwrap_or_default());
        let removed = tokio::task::spawn_blocking(move || requests.done(&id)).await;
        self.settled = request;
        removed.unwrap_or_else(|error| Err(Error::new(Kind::Internal, "removing a request").because(error)))
    }
}

#[async_trait]
impl Source for PostgresSource {
    async fn next(&mut self, budget: usize) -> Result<Batch> {
        let batch = match self.rest.take() {
            Some(batch) => batch,
            None => {
                let ended = || Err(Error::new(Kind::Unavailable, "the replication ended"));
                self.batches.recv().await.unwrap_or_else(ended)?
            }
        };
        Ok(self.cut(batch, budget))
    }

    async fn confirm(&mut self, checkpoint: &Checkpoint, _proof: Durable) -> Result<()> {
        let state = State::read(checkpoint)?;
        self.feedback.confirm(state.confirmed);
        self.monitor.confirmed(state.confirmed);
        self.settle(state.request).await
    }
}

impl Drop for PostgresSource {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.monitor.state(SourceState::Closed);
    }
}
