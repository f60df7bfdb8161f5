//! Trying again: what is needed for it is little, and goes around.

use std::sync::Arc;
use std::time::Duration;

use headwater_core::ports::Inbox;
use tokio::time::Instant;

use super::{ConsumeSettings, Handle, Shared};

/// How long it is waited at the most before it is asked again, whether for a permit or whether others still seek one.
const PAUSE: Duration = Duration::from_millis(100);

/// Those who were refused a permit and still seek one: there are as many as there are copies.
#[derive(Default)]
pub(super) struct Seekers(Arc<()>);

impl Seekers {
    fn are_there(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// Who tries again, now and then, what failed before. Nobody waits for a permit in a queue, as it would lie idle for
/// one who is busy when it comes: it is asked for, and asked again after a pause.
pub(super) struct Again {
    /// When it is asked next.
    next: Instant,
    /// Until when others come first who seek a permit.
    yields: Instant,
    /// It seeks one itself.
    seeks: Option<Arc<()>>,
    longest: Duration,
}

/// That something is tried again, and since when.
pub(super) struct Trying<P> {
    _permit: P,
    since: Instant,
}

impl Again {
    pub(super) fn new(settings: &ConsumeSettings) -> Self {
        let now = Instant::now();
        Self { next: now, yields: now, seeks: None, longest: settings.retry_max }
    }

    /// From when on it may be asked whether something may be tried again.
    pub(super) fn from(&self) -> Instant {
        self.next
    }

    /// How long that is from now.
    fn left(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// There is nothing to be tried again now.
    pub(super) fn rest(&mut self) {
        self.seeks = None;
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
        self.ask(&shared.seekers, || shared.handle.again())
    }

    fn ask<P>(&mut self, seekers: &Seekers, permit: impl FnOnce() -> Option<P>) -> Option<Trying<P>> {
        if self.next > Instant::now() || self.gives_way(seekers) {
            return None;
        }
        match permit() {
            Some(permit) => {
                self.seeks = None;
                Some(Trying { _permit: permit, since: Instant::now() })
            }
            None => {
                // Another has its turn now: who seeks gives way to nobody any more.
                self.yields = Instant::now();
                self.seeks.get_or_insert_with(|| Arc::clone(&seekers.0));
                self.pause(rand::random_range(0.0..=1.0));
                None
            }
        }
    }

    /// Whether others come first now.
    fn gives_way(&mut self, seekers: &Seekers) -> bool {
        let gives_way = self.yields > Instant::now() && seekers.are_there();
        if gives_way {
            self.pause(1.0);
        }
        gives_way
    }

    fn pause(&mut self, part: f64) {
        self.next = Instant::now() + PAUSE.min(self.longest).mul_f64(part);
    }

    /// It was tried.
    pub(super) fn end<I, H, P>(&mut self, trying: Trying<P>, shared: &Shared<I, H>) {
        self.tried(&shared.seekers, trying.since.elapsed());
    }

    /// A try took so long. While others seek one of theirs they come first: for as long as this one took, so that one who is
    /// busy between its questions has as much of the time as who tries for long, and for as long as it takes them to ask.
    fn tried(&mut self, seekers: &Seekers, took: Duration) {
        self.yields = Instant::now() + took.max(PAUSE).min(self.longest);
        self.gives_way(seekers);
    }

    /// Waits while others come first.
    pub(super) async fn give_way<I, H>(&mut self, shared: &Shared<I, H>) {
        while self.gives_way(&shared.seekers) && shared.wait(self.left()).await {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    fn none() -> Option<()> {
        None
    }

    #[tokio::test(start_paused = true)]
    async fn who_tried_for_long_leaves_others_as_long_and_no_longer_than_they_seek() {
        let (settings, seekers) = (ConsumeSettings::default(), Seekers::default());
        let (mut one, mut other) = (Again::new(&settings), Again::new(&settings));
        for (asks, left) in [(true, LONG), (false, PAUSE)] {
            assert!(other.ask(&seekers, none).is_none(), "the one is at it");
            one.tried(&seekers, LONG);
            let until = Instant::now() + left;
            if !asks {
                other.rest();
            }
            while Instant::now() < until {
                assert!(one.ask(&seekers, || Some(())).is_none(), "{asks}");
                tokio::time::advance(Duration::from_millis(10)).await;
            }
            assert!(one.ask(&seekers, || Some(())).is_some(), "{asks}");
        }
        tokio::time::advance(PAUSE).await;
        one.tried(&seekers, LONG);
        assert!(one.ask(&seekers, || Some(())).is_some(), "nobody seeks");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_gives_way_to_nobody() {
        let (settings, seekers) = (ConsumeSettings::default(), Seekers::default());
        let mut both = [Again::new(&settings), Again::new(&settings)];
        both.iter_mut().for_each(|one| one.tried(&seekers, LONG));
        assert!(both.iter_mut().all(|one| one.ask(&seekers, none).is_none()));
        tokio::time::advance(PAUSE).await;
        assert!(both.iter_mut().all(|one| one.ask(&seekers, || Some(())).is_some()));
    }

    #[tokio::test(start_paused = true)]
    async fn who_seeks_has_its_turn_and_seeks_no_more() {
        let (settings, seekers) = (ConsumeSettings::default(), Seekers::default());
        let mut one = Again::new(&settings);
        for _ in 0..2 {
            assert!(one.ask(&seekers, none).is_none() && seekers.are_there());
            tokio::time::advance(PAUSE).await;
        }
        assert!(one.ask(&seekers, || Some(())).is_some() && !seekers.are_there());
        assert!(one.ask(&seekers, none).is_none() && seekers.are_there());
        drop(one);
        assert!(!seekers.are_there());
    }
}
