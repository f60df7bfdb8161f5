//! What was set aside and may go on: in order, and before anything newer of its key.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use headwater_core::Result;
use headwater_core::ports::{Backlog, Due, Fate, Settlement, Trouble};
use tokio::time::Instant;

use super::again::Again;
use super::{Failure, Handle, Received, Shared, Then};
use crate::metrics;

/// How many keys are asked for at once.
const KEYS: usize = 100;

/// How much longer than a look the pause after it is at least, up to the longest.
const EASE: u32 = 20;
const LONGEST: Duration = Duration::from_secs(30);

/// What became of the first event of a key.
enum Step {
    /// It was handled.
    Gone,
    /// It failed, and is not due for a while.
    PutOff,
}

/// Looks for what may go on until it is over.
pub(super) async fn run<I, H>(shared: Arc<Shared<I, H>>)
where
    I: Backlog,
    H: Handle<I::Transaction>,
{
    loop {
        let began = Instant::now();
        let due = shared.inbox.due(&shared.name, KEYS).await;
        let pause = pause(shared.settings.interval, began.elapsed());
        match due {
            Ok(due) => {
                // A key with much behind it, or with more than can go, must not keep the others from being looked at.
                let until = Instant::now() + pause;
                let more = due.len() == KEYS;
                let all = futures::stream::iter(due).map(|due| shared.let_go(due, until));
                let at_once = shared.settings.held.unwrap_or(shared.settings.concurrency);
                let went = all.buffer_unordered(at_once).fold(false, async |a, b| a | b);
                let again = went.await && (more || Instant::now() >= until);
                if again && !shared.halt.is_cancelled() {
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

/// How long it is waited after a look that took so long. A database that was away, and not the look, may have taken
/// that long.
fn pause(interval: Duration, look: Duration) -> Duration {
    interval.max(look.saturating_mul(EASE).min(LONGEST))
}

impl<I, H> Shared<I, H>
where
    I: Backlog,
    H: Handle<I::Transaction>,
{
    /// Handles the events of a key one after the other, until one fails, none is left, or it is time to look again;
    /// whether any is no longer due.
    async fn let_go(&self, due: Due, until: Instant) -> bool {
        let (mut went, mut again) = (false, Again::new(&self.settings));
        loop {
            let Some(trying) = again.turn(self).await else { return went };
            let Some(step) = self.let_one_go(&due).await.transpose() else { return went };
            again.end(trying, self);
            // Whoever lets the next key go knows nothing of this pause.
            again.give_way(self).await;
            match step {
                Ok(Step::Gone) if Instant::now() >= until => return true,
                Ok(Step::Gone) => went = true,
                // Others of which it is not known yet may be due: it is not these that are asked for next.
                Ok(Step::PutOff) => return true,
                Err(error) => {
                    tracing::warn!(consumer = %self.name, stream = %due.stream, %error, "a parked key waits");
                    return went;
                }
            }
        }
    }

    /// Tries the first event of a key, unless it is another's, or not due any more.
    async fn let_one_go(&self, due: &Due) -> Result<Option<Step>> {
        let Some(_turn) = self.turn().await else { return Ok(None) };
        let head = self.inbox.head(&self.name, due).await?;
        let Some((mut transaction, held)) = head else { return Ok(None) };
        let attempts = held.attempts.saturating_add(1);
        let received = Received { record: held.record, attempt: attempts };
        let Some(handled) = self.handled(&mut transaction, &[&received]).await else {
            return self.inbox.rollback(transaction).await.map(|()| None);
        };
        match handled {
            Ok(()) => match self.settle(transaction, held.sequence, Fate::Done).await {
                Ok(()) => {
                    self.watch.handled(1);
                    metrics::consumed(&self.name, 1, 0);
                    return Ok(Some(Step::Gone));
                }
                Err(error) if self.is_of_the_event(&error, Some(received.id())).await => {
                    self.put_off(&received, held.sequence, Failure::retry(error.to_string())).await?;
                }
                Err(error) => return Err(error),
            },
            Err(failure) => {
                if let Err(error) = self.inbox.rollback(transaction).await
                    && !self.is_to_blame(Some(received.id())).await
                {
                    return Err(error);
                }
                self.put_off(&received, held.sequence, failure).await?;
            }
        }
        Ok(Some(Step::PutOff))
    }

    /// It has failed once more.
    async fn put_off(&self, received: &Received, sequence: i64, failure: Failure) -> Result<()> {
        let (event, attempts, error) = (&received.record.event, received.attempt, &failure.error);
        let (stream, id) = (&event.stream, event.id);
        tracing::warn!(consumer = %self.name, %stream, %id, attempts, error, "still fails");
        metrics::retried(&self.name);
        let fate = self.fate(failure, attempts);
        if let Fate::Retry(trouble, _) = &fate {
            self.watch.failed(&trouble.error);
        }
        let parks = matches!(fate, Fate::Parked(_));
        let (transaction, _) = self.inbox.begin(&self.name, &[]).await?;
        self.settle(transaction, sequence, fate).await?;
        if parks {
            self.fewer_fail();
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_was_away_does_not_keep_what_is_set_aside_waiting_for_long() {
        let seconds = Duration::from_secs;
        assert_eq!(pause(seconds(1), Duration::from_millis(10)), seconds(1));
        assert_eq!(pause(seconds(1), seconds(1)), seconds(20));
        assert_eq!(pause(seconds(1), seconds(30)), LONGEST);
        assert_eq!(pause(seconds(60), seconds(30)), seconds(60));
    }
}
