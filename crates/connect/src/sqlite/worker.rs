//! The thread of an open source: reads when asked, waits for commits, prunes what is confirmed.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use headwater_core::ports::SourceState;
use headwater_core::{Batch, Checkpoint, Result};
use tokio::sync::oneshot;

use super::capture::Capture;
use super::outbox;
use super::prune::Prune;
use super::state::State;

/// What a source asks of its thread.
pub enum Command {
    /// The next batch, of about this many bytes.
    Next(usize, oneshot::Sender<Result<Batch>>),
    /// Everything up to here is safe elsewhere.
    Confirm(Box<(Checkpoint, State)>),
}

/// Works until the source is dropped.
pub fn run(capture: Capture, commands: &Receiver<Command>) {
    let poll = Poll::new(capture.setup.config.poll_min, capture.setup.config.poll_max);
    let mut worker = Worker { capture, poll, prune: Prune::default(), waiting: None };
    loop {
        match commands.recv_timeout(worker.pause()) {
            Ok(Command::Next(budget, reply)) => worker.waiting = Some((budget, reply)),
            Ok(Command::Confirm(confirmed)) => worker.confirm(&confirmed.0, &confirmed.1),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        worker.answer();
        let Capture { conn, setup, held, .. } = &mut worker.capture;
        if let Some(held) = held {
            held.renew(conn);
        }
        if worker.prune.run(conn, &setup.name)
            && let Some(outbox) = &setup.config.outbox
        {
            outbox::clean(conn, &setup.name, &outbox.table, setup.keep.retention);
        }
    }
    if let Some(held) = &worker.capture.held {
        held.release(&worker.capture.conn);
    }
    // While the lock is still held, so that a source opened next has the last word.
    worker.capture.setup.say(|status| status.state = SourceState::Closed);
}

struct Worker {
    capture: Capture,
    poll: Poll,
    prune: Prune,
    waiting: Option<(usize, oneshot::Sender<Result<Batch>>)>,
}

impl Worker {
    /// How long nothing has to be done.
    fn pause(&self) -> Duration {
        let poll = self.waiting.as_ref().map_or(Duration::from_secs(3600), |_| self.poll.now);
        let now = Instant::now();
        let lease = self.capture.held.as_ref().map_or(poll, |held| held.due_in(now));
        poll.min(lease).min(self.prune.due_in(now))
    }

    fn answer(&mut self) {
        let Some((budget, reply)) = self.waiting.take() else { return };
        match self.capture.next(budget).transpose() {
            None => {
                self.poll.quiet();
                self.waiting = Some((budget, reply));
            }
            Some(result) => {
                self.poll.busy();
                // Whoever asked may be gone, and the source with it: the checkpoint still says from where.
                let _ = reply.send(result);
            }
        }
    }

    fn confirm(&mut self, checkpoint: &Checkpoint, state: &State) {
        self.prune.confirmed(state.anchor);
        let [id, ..] = checkpoint.position.numbers();
        self.capture.setup.say(|status| status.position = Some(format!("change {id}")));
        if let (Some(requests), Some(request)) = (&self.capture.setup.requests, &state.request)
            && let Err(error) = requests.done(request)
        {
            tracing::warn!(source = self.capture.setup.name, "{error}");
        }
    }
}

/// How long to wait before asking again: little while there are changes, then more and more.
struct Poll {
    min: Duration,
    max: Duration,
    now: Duration,
}

impl Poll {
    fn new(min: Duration, max: Duration) -> Self {
        Self { min, max: max.max(min), now: min }
    }

    fn busy(&mut self) {
        self.now = self.min;
    }

    fn quiet(&mut self) {
        self.now = (self.now * 5 / 4).min(self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_slow_down_and_wake_up() {
        let mut poll = Poll::new(Duration::from_millis(1), Duration::from_millis(20));
        for _ in 0..20 {
            poll.quiet();
        }
        assert_eq!(poll.now, Duration::from_millis(20));
        poll.busy();
        assert_eq!(poll.now, Duration::from_millis(1));
    }
}
