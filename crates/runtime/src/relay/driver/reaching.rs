//! Whether the bus can be reached: whoever cannot publish leaves the lanes to those who can.

use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_core::Result;

use super::{Asking, Driver};
use crate::pipeline::Backoff;

/// What is known of the bus, and what is asked of it.
pub(super) struct Reaching {
    known: Known,
    pub(super) asking: Asking<Result<()>>,
    /// When to ask.
    pub(super) at: Instant,
    backoff: Backoff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// It answers, as far as is known.
    There,
    /// No lane could go on: it is to be asked.
    Doubted,
    /// It does not answer, or was never asked.
    Away,
}

impl Reaching {
    /// Nothing is known yet: it is to be asked before anything is asked for.
    pub(super) fn new(now: Instant, longest: Duration) -> Self {
        Self { known: Known::Away, asking: None, at: now, backoff: Backoff::new(longest) }
    }

    pub(super) fn is_away(&self) -> bool {
        self.known == Known::Away
    }

    /// Whether it is to be asked at [`Reaching::at`].
    pub(super) fn is_due(&self) -> bool {
        self.known != Known::There && self.asking.is_none()
    }

    /// No lane could go on, for whatever reason.
    pub(super) fn doubt(&mut self) {
        if self.known == Known::There {
            (self.known, self.at) = (Known::Doubted, Instant::now());
        }
    }
}

impl Driver {
    pub(super) fn start_reaching(&mut self, now: Instant) {
        if !self.reaching.is_due() || now < self.reaching.at || self.stopping.is_some() {
            return;
        }
        let bus = Arc::clone(&self.task.bus);
        self.reaching.asking = Some(Box::pin(async move { bus.reach().await }));
    }

    pub(super) fn reached(&mut self, reached: Result<()>) {
        let now = Instant::now();
        let Err(error) = reached else {
            if self.reaching.is_away() {
                (self.renew_at, self.share_at) = (now, now);
            }
            self.reaching.known = Known::There;
            self.reaching.backoff.reset();
            return;
        };
        let wait = self.reaching.backoff.next();
        (self.reaching.known, self.reaching.at) = (Known::Away, now + wait);
        tracing::warn!(source = %self.task.name, %error, ?wait, "the bus does not answer: other relays may have this one's lanes meanwhile");
        self.task.board.retrying(&error, self.reaching.backoff.attempts());
    }
}
