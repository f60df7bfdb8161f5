//! Trying again: what is needed for it is little, and goes around.

use std::sync::atomic::Ordering;
use std::time::Duration;

use headwater_core::ports::Inbox;
use tokio::time::Instant;

use super::{ConsumeSettings, Handle, Shared};

/// How long it is waited at the most before a permit is asked for again, and at the least by who leaves the next to others.
const PAUSE: Duration = Duration::from_millis(100);

/// Who tries again, now and then, what failed before. Nobody waits for a permit in a queue, as it would lie idle for
/// one who is busy when it comes: it is asked for, and asked again after a pause.
pub(super) struct Again {
    /// Until when nothing is tried again, as there was no permit for it, or as others come first.
    paused: Instant,
    longest: Duration,
}

/// That something is tried again, and since when.
pub(super) struct Trying<P> {
    _permit: P,
    since: Instant,
}

impl Again {
    pub(super) fn new(settings: &ConsumeSettings) -> Self {
        Self { paused: Instant::now(), longest: settings.retry_max }
    }

    /// From when on it may be tried again.
    pub(super) fn from(&self) -> Instant {
        self.paused
    }

    /// How long that is from now.
    pub(super) fn left(&self) -> Duration {
        self.paused.saturating_duration_since(Instant::now())
    }

    /// Waits for what is needed to try again; `None` where it is over.
    pub(super) async fn turn<I, H>(&mut self, shared: &Shared<I, H>) -> Option<Trying<H::Permit>>
    where
        I: Inbox,
        H: Handle<I::Transaction>,
    {
        while shared.wait(self.left()).await {
            let begun = self.begin(shared);
            if begun.is_some() {
                return begun;
            }
        }
        None
    }

    /// What is needed to try again, if there is any now; if not, it is asked for after a pause.
    pub(super) fn begin<I, H>(&mut self, shared: &Shared<I, H>) -> Option<Trying<H::Permit>>
    where
        I: Inbox,
        H: Handle<I::Transaction>,
    {
        if self.paused > Instant::now() {
            return None;
        }
        if let Some(permit) = shared.handle.again() {
            return Some(Trying { _permit: permit, since: Instant::now() });
        }
        shared.refused.store(true, Ordering::Relaxed);
        self.paused = Instant::now() + PAUSE.min(self.longest).mul_f64(rand::random_range(0.0..=1.0));
        None
    }

    /// It was tried. Where others wait for a try of theirs they come first, see [`yields`].
    pub(super) fn end<I, H, P>(&mut self, trying: Trying<P>, shared: &Shared<I, H>) {
        if shared.refused.swap(false, Ordering::Relaxed) {
            self.paused = Instant::now() + yields(trying.since.elapsed(), self.longest);
        }
    }
}

/// For how long others come first behind a try that took so long: they have as much of the time then, whatever keeps them
/// busy between their questions; and it is no less than it takes them to ask again.
fn yields(took: Duration, longest: Duration) -> Duration {
    took.max(PAUSE).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_tried_for_long_leaves_others_as_long() {
        let (second, most) = (Duration::from_secs(1), Duration::from_secs(30));
        assert_eq!(yields(Duration::from_millis(1), most), PAUSE);
        assert_eq!(yields(10 * second, most), 10 * second);
        assert_eq!(yields(100 * second, most), most);
        assert_eq!(yields(second, Duration::from_millis(5)), Duration::from_millis(5));
    }
}
