//! What was set aside and may go on: in order, and before anything newer of its key.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use headwater_core::Result;
use headwater_core::ports::{Backlog, Due, Fate, Settlement, Trouble};

use super::{Failure, Handle, Received, Shared, Then};
use crate::metrics;

/// How many keys are asked for at once.
const KEYS: usize = 100;

/// How much longer than a look the pause after it is at least.
const EASE: u32 = 20;

/// Looks for what may go on until it is over.
pub(super) async fn run<I, H>(shared: Arc<Shared<I, H>>)
where
    I: Backlog,
    H: Handle<I::Transaction>,
{
    loop {
        let began = Instant::now();
        let due = shared.inbox.due(&shared.name, KEYS).await;
        let pause = shared.settings.interval.max(began.elapsed().saturating_mul(EASE));
        match due {
            Ok(due) => {
                let more = due.len() == KEYS;
                let all = futures::stream::iter(due)
                    .for_each_concurrent(shared.settings.concurrency, |due| shared.let_go(due));
                all.await;
                if more && !shared.halt.is_cancelled() {
                    continue;
                }
            }
            Err(error) => tracing::warn!(consumer = %shared.name, %error, "parked events wait"),
        }
        if !shared.wait(pause).await {
            return;
        }
    }
}

impl<I, H> Shared<I, H>
where
    I: Backlog,
    H: Handle<I::Transaction>,
{
    /// Handles the events of a key one after the other, until one fails or none is left.
    async fn let_go(&self, due: Due) {
        loop {
            if self.halt.is_cancelled() {
                return;
            }
            match self.let_one_go(&due).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(consumer = %self.name, stream = %due.stream, %error, "a parked key waits");
                    return;
                }
            }
        }
    }

    /// Whether the first event of a key was there and went.
    async fn let_one_go(&self, due: &Due) -> Result<bool> {
        let Some((mut transaction, held)) = self.inbox.head(&self.name, due).await? else { return Ok(false) };
        let attempts = held.attempts.saturating_add(1);
        let received = Received { record: held.record, attempt: attempts };
        match self.handled(&mut transaction, &[&received]).await {
            Ok(()) => {
                self.settle(transaction, held.sequence, Fate::Done).await?;
                self.watch.handled(1);
                metrics::consumed(&self.name, 1, 0);
                Ok(true)
            }
            Err(failure) => {
                self.inbox.rollback(transaction).await?;
                let (id, error) = (received.record.event.id, &failure.error);
                tracing::warn!(consumer = %self.name, stream = %due.stream, %id, attempts, error, "still fails");
                let (transaction, _) = self.inbox.begin(&self.name, &[]).await?;
                self.settle(transaction, held.sequence, self.fate(failure, attempts)).await?;
                Ok(false)
            }
        }
    }

    fn fate(&self, failure: Failure, attempts: u32) -> Fate {
        let trouble = Trouble { attempts, error: failure.error };
        match failure.then {
            Then::Retry(after) if attempts < self.settings.attempts => {
                Fate::Retry(trouble, self.settings.wait(attempts).max(after.unwrap_or(Duration::ZERO)))
            }
            _ => Fate::Parked(trouble),
        }
    }

    async fn settle(&self, transaction: I::Transaction, sequence: i64, fate: Fate) -> Result<()> {
        let settlement = Settlement { held: vec![(sequence, fate)], ..Settlement::default() };
        self.inbox.commit(transaction, &self.name, &settlement).await
    }
}
