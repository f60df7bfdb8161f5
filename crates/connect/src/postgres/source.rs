//! The open source: batches from the task that follows the log, confirmations back to the server.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use headwater_core::ports::{Durable, Source, SourceState};
use headwater_core::{Batch, Change, Checkpoint, Error, Kind, Position, Result};
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::feedback::Feedback;
use super::follow::Ready;
use super::lane::Lane;
use super::monitor::Monitor;
use super::outbox::Settling;
use super::state::State;
use crate::requests::Requests;

/// How long a server that does not take the last confirmation may hold up a stop.
const GOODBYE: Duration = Duration::from_secs(1);

/// An open PostgreSQL source; its tasks end when it is dropped.
pub struct PostgresSource {
    batches: Receiver<Result<Ready>>,
    /// What was received and did not fit the budget.
    rest: Option<Ready>,
    /// The checkpoint before what comes next.
    before: Checkpoint,
    feedback: Feedback,
    monitor: Arc<Monitor>,
    requests: Requests,
    /// The request that was followed and removed.
    settled: Option<String>,
    tasks: Tasks,
}

/// What works for an open source; it ends when this is dropped.
pub struct Tasks {
    /// Tells the server how far we are.
    pub writing: JoinHandle<()>,
    /// The others.
    pub others: [JoinHandle<()>; 2],
    /// Settles the rows of an outbox.
    pub settling: Option<Settling>,
    /// Ends the connection that reads the log.
    pub end: CancellationToken,
    /// The thread that one of them runs on.
    pub _lane: Lane,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.writing.abort();
        self.others.iter().for_each(JoinHandle::abort);
        self.settling.iter().for_each(Settling::abort);
    }
}

impl PostgresSource {
    /// A source that goes on after `before`, with what its tasks hand out.
    pub fn new(
        batches: Receiver<Result<Ready>>,
        before: Checkpoint,
        feedback: Feedback,
        monitor: Arc<Monitor>,
        requests: Requests,
        tasks: Tasks,
    ) -> Self {
        Self { batches, rest: None, before, feedback, monitor, requests, settled: None, tasks }
    }

    /// Hands out as much as the budget allows. A checkpoint within a batch has the place of the last
    /// change, and confirms what was to be confirmed before.
    fn hand_out(&mut self, ready: Ready, budget: usize) -> Batch {
        let Ready { mut batch, news } = ready;
        let mut bytes = 0;
        let over = |change: &Change| {
            bytes += change.size();
            bytes > budget
        };
        let at = batch.changes.iter().position(over).unwrap_or(batch.changes.len()).max(1);
        if at < batch.changes.len() {
            let rest = Batch { changes: batch.changes.split_off(at), checkpoint: batch.checkpoint.take() };
            self.rest = Some(Ready { batch: rest, news });
            let last = batch.changes.last().map_or(Position::ZERO, |last| last.position);
            self.before.position = self.before.position.max(last);
            batch.checkpoint = Some(self.before.clone());
        } else {
            news.into_iter().for_each(|news| self.monitor.tell(news));
            if let Some(checkpoint) = &batch.checkpoint {
                self.before.clone_from(checkpoint);
            }
        }
        self.monitor.read(&batch.changes);
        batch
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
        let ready = match self.rest.take() {
            Some(ready) => ready,
            None => {
                let ended = || Err(Error::new(Kind::Unavailable, "the replication ended"));
                self.batches.recv().await.unwrap_or_else(ended)?
            }
        };
        if let Some(settling) = &self.tasks.settling {
            settling.ours()?;
        }
        Ok(self.hand_out(ready, budget))
    }

    async fn confirm(&mut self, checkpoint: &Checkpoint, _proof: Durable) -> Result<()> {
        let state = State::read(checkpoint)?;
        self.feedback.confirm(state.confirmed);
        self.monitor.confirmed(state.confirmed);
        if let Some(settling) = &self.tasks.settling {
            settling.confirm(&state);
        }
        self.settle(state.request).await
    }

    /// The last confirmation may not have been written yet.
    async fn close(&mut self) {
        self.tasks.end.cancel();
        let _ = tokio::time::timeout(GOODBYE, &mut self.tasks.writing).await;
        if let Some(settling) = self.tasks.settling.take() {
            let _ = tokio::time::timeout(GOODBYE, settling.end()).await;
        }
    }
}

impl Drop for PostgresSource {
    fn drop(&mut self) {
        self.monitor.state(SourceState::Closed);
    }
}
