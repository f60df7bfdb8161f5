//! The open source: batches from the task that follows the log, confirmations back to the server.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use headwater_core::ports::{Durable, Source, SourceStatus};
use headwater_core::{Batch, Checkpoint, Error, Kind, Result};
use tokio::sync::mpsc::Receiver;
use tokio::task::AbortHandle;

use super::feedback::Feedback;
use super::lsn;
use super::state::State;

/// An open PostgreSQL source; its tasks end when it is dropped.
pub struct PostgresSource {
    /// What the following task hands out.
    pub batches: Receiver<Result<Batch>>,
    /// The way to the server.
    pub feedback: Feedback,
    /// What `status` says.
    pub status: Arc<Mutex<SourceStatus>>,
    /// Ends the tasks.
    pub tasks: Vec<AbortHandle>,
}

#[async_trait]
impl Source for PostgresSource {
    async fn next(&mut self, _budget: usize) -> Result<Batch> {
        let ended = || Err(Error::new(Kind::Unavailable, "the replication ended"));
        self.batches.recv().await.unwrap_or_else(ended)
    }

    async fn confirm(&mut self, checkpoint: &Checkpoint, _proof: Durable) -> Result<()> {
        let state = State::read(checkpoint)?;
        self.feedback.confirm(state.confirmed);
        if let Ok(mut status) = self.status.lock() {
            status.position = Some(lsn::text(state.confirmed));
        }
        Ok(())
    }
}

impl Drop for PostgresSource {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}
