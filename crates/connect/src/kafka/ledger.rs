//! Which published batches are durable, in the order in which they were published (invariant 1).

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use headwater_core::{Checkpoint, Error, Kind, Result};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Records that were produced together; counts those that the brokers have yet to report.
#[derive(Debug)]
pub struct Batch {
    remaining: AtomicUsize,
    /// Whether these are checkpoints, not events.
    positions: bool,
}

impl Batch {
    /// A batch of that many records. It does not complete before [`Ledger::sent`] has been told.
    fn new(records: usize, positions: bool) -> Arc<Self> {
        Arc::new(Self { remaining: AtomicUsize::new(records + 1), positions })
    }

    /// Counts one record, or the sending itself, as done; whether it was the last.
    fn count(&self) -> bool {
        self.remaining.fetch_sub(1, Ordering::AcqRel) == 1
    }

    fn is_complete(&self) -> bool {
        self.remaining.load(Ordering::Acquire) == 0
    }
}

/// A published batch that is not durable yet.
#[derive(Debug)]
struct Entry {
    batch: Arc<Batch>,
    checkpoint: Option<Checkpoint>,
    promise: oneshot::Sender<Result<()>>,
    since: Instant,
    /// Its share of the budget.
    _permit: OwnedSemaphorePermit,
}

/// The batches of one producer, oldest first.
#[derive(Debug, Default)]
pub struct Ledger {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Entry>,
    /// Those that wait for their checkpoint to be written.
    writing: Vec<Entry>,
    /// Why nothing more is published; from then on every promise is broken.
    broken: Option<String>,
}

/// Checkpoints to write, the newest of each source, and the batch to produce them under.
pub struct Write {
    /// The checkpoints.
    pub checkpoints: Vec<Checkpoint>,
    /// Their batch.
    pub batch: Arc<Batch>,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a batch before its records are produced.
    pub fn begin(
        &self,
        records: usize,
        checkpoint: Option<Checkpoint>,
        permit: OwnedSemaphorePermit,
    ) -> Result<(Arc<Batch>, oneshot::Receiver<Result<()>>)> {
        let mut state = self.lock();
        if let Some(why) = &state.broken {
            return Err(broken(why));
        }
        let (promise, kept) = oneshot::channel();
        let batch = Batch::new(records, false);
        let entry =
            Entry { batch: Arc::clone(&batch), checkpoint, promise, since: Instant::now(), _permit: permit };
        state.queue.push_back(entry);
        Ok((batch, kept))
    }

    /// One record of the batch was delivered, or all of it was handed over: returns the checkpoints
    /// that are to be written now.
    pub fn count(&self, batch: &Batch) -> Option<Write> {
        if !batch.count() {
            return None;
        }
        let mut state = self.lock();
        if batch.positions {
            for entry in state.writing.drain(..) {
                // Whoever published need not wait for the outcome.
                drop(entry.promise.send(Ok(())));
            }
        }
        state.advance()
    }

    /// A record of the batch can never be delivered: breaks every promise. Batches after the failed
    /// one must not pass it, and whether those beside it arrived is not worth knowing. Whoever published
    /// the failed one hears why; of checkpoints, the first of those that wait for them.
    pub fn fail(&self, batch: &Batch, error: Error) {
        let mut state = self.lock();
        if state.broken.is_some() {
            return;
        }
        let why = error.to_string();
        tracing::warn!(error = why, "publishing stops, and goes on from the last checkpoint");
        let mut error = Some(error);
        let State { queue, writing, .. } = &mut *state;
        for entry in writing.drain(..).chain(queue.drain(..)) {
            let is_own = batch.positions || std::ptr::eq(&*entry.batch, batch);
            let its_own = is_own.then(|| error.take()).flatten();
            drop(entry.promise.send(Err(its_own.unwrap_or_else(|| broken(&why)))));
        }
        state.broken = Some(why);
    }

    /// Whether a record could not be delivered.
    pub fn is_broken(&self) -> bool {
        self.lock().broken.is_some()
    }

    /// Since when the oldest batch waits.
    pub fn oldest(&self) -> Option<Instant> {
        let state = self.lock();
        state.writing.first().or(state.queue.front()).map(|entry| entry.since)
    }
}

impl State {
    /// Keeps the promises of all batches from the oldest on that are complete; those with a checkpoint
    /// wait until the newest one is written.
    fn advance(&mut self) -> Option<Write> {
        if self.broken.is_some() || !self.writing.is_empty() {
            return None;
        }
        let mut newest: BTreeMap<String, Checkpoint> = BTreeMap::new();
        while self.queue.front().is_some_and(|entry| entry.batch.is_complete()) {
            let Some(mut entry) = self.queue.pop_front() else { break };
            match entry.checkpoint.take() {
                None => drop(entry.promise.send(Ok(()))),
                Some(checkpoint) => {
                    newest.insert(checkpoint.source.clone(), checkpoint);
                    self.writing.push(entry);
                }
            }
        }
        let checkpoints: Vec<Checkpoint> = newest.into_values().collect();
        let batch = Batch::new(checkpoints.len(), true);
        (!checkpoints.is_empty()).then_some(Write { checkpoints, batch })
    }
}

fn broken(why: &str) -> Error {
    Error::new(Kind::Unavailable, format!("publishing stopped and goes on from the last checkpoint: {why}"))
}

#[cfg(test)]
mod tests {
    use headwater_core::Position;
    use tokio::sync::Semaphore;

    use super::*;

    type Kept = oneshot::Receiver<Result<()>>;

    fn begin(ledger: &Ledger, records: usize, n: Option<u64>) -> (Arc<Batch>, Kept) {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let at = |n| Checkpoint { source: "s".into(), position: Position::of(1, [n]), state: n.into() };
        let (batch, kept) = ledger.begin(records, n.map(at), permit).unwrap();
        assert!(records == 0 || ledger.count(&batch).is_none(), "handed over");
        (batch, kept)
    }

    #[test]
    fn checkpoints_wait_for_all_before_them_and_only_the_newest_is_written() {
        let ledger = Ledger::default();
        let (first, mut a) = begin(&ledger, 2, Some(1));
        let (second, mut b) = begin(&ledger, 1, Some(2));
        assert!(ledger.count(&second).is_none() && ledger.count(&first).is_none());
        assert!(a.try_recv().is_err() && b.try_recv().is_err());
        let write = ledger.count(&first).unwrap();
        assert_eq!(write.checkpoints.iter().map(|c| c.position.numbers()[0]).collect::<Vec<_>>(), [2]);
        assert!(ledger.count(&write.batch).is_none());
        assert!(a.try_recv().is_err() && b.try_recv().is_err(), "not yet acknowledged");
        let (third, mut c) = begin(&ledger, 1, Some(3));
        assert!(ledger.count(&third).is_none(), "one write at a time");
        let write = ledger.count(&write.batch).unwrap();
        assert!(a.try_recv().unwrap().is_ok() && b.try_recv().unwrap().is_ok() && c.try_recv().is_err());
        assert_eq!(write.checkpoints[0].position.numbers()[0], 3);
    }

    #[test]
    fn a_failure_breaks_every_promise_and_names_its_own_cause() {
        let ledger = Ledger::default();
        let (_, mut a) = begin(&ledger, 1, None);
        let (second, mut b) = begin(&ledger, 1, None);
        ledger.fail(&second, Error::new(Kind::Refused, "no"));
        assert_eq!(a.try_recv().unwrap().unwrap_err().kind(), Kind::Unavailable);
        assert_eq!(b.try_recv().unwrap().unwrap_err().kind(), Kind::Refused);
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        assert!(ledger.begin(1, None, permit).is_err());
    }

    #[test]
    fn a_checkpoint_that_cannot_be_written_is_told_to_the_first_that_waits_for_it() {
        let ledger = Ledger::default();
        let (first, mut a) = begin(&ledger, 1, Some(1));
        let write = ledger.count(&first).unwrap();
        let (_, mut b) = begin(&ledger, 1, Some(2));
        ledger.fail(&write.batch, Error::new(Kind::Refused, "no"));
        assert_eq!(a.try_recv().unwrap().unwrap_err().kind(), Kind::Refused);
        assert_eq!(b.try_recv().unwrap().unwrap_err().kind(), Kind::Unavailable);
    }

    #[test]
    fn without_checkpoints_complete_is_durable_in_order() {
        let ledger = Ledger::default();
        let (first, mut a) = begin(&ledger, 1, None);
        let (second, mut b) = begin(&ledger, 1, None);
        ledger.count(&second);
        assert!(b.try_recv().is_err(), "the one before it is not there yet");
        ledger.count(&first);
        assert!(a.try_recv().unwrap().is_ok() && b.try_recv().unwrap().is_ok());
        assert!(ledger.oldest().is_none());
    }
}
