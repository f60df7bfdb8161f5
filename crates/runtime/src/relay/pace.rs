//! When to look for rows again.

use std::time::{Duration, Instant};

/// The shortest pause between two looks that found nothing.
const SHORTEST: Duration = Duration::from_millis(4);

/// Of the time, looks from the beginning take no more than one part in this many.
const SHARE: u32 = 20;

/// The shortest pause between two looks from the beginning: they find what nobody foresaw.
const FROM_BEGINNING: Duration = Duration::from_secs(1);

/// How often rows that are to be tried again are looked for.
const RETRIES: Duration = Duration::from_millis(200);

/// Looks often while there is something to find, rarely while there is not.
#[derive(Debug)]
pub struct Pace {
    longest: Duration,
    pause: Duration,
    beginning: Instant,
    retries: Instant,
}

impl Pace {
    /// Never pauses for longer than `longest`.
    pub fn new(longest: Duration) -> Self {
        let now = Instant::now();
        Self { longest, pause: SHORTEST, beginning: now, retries: now }
    }

    /// How long to pause before the next look.
    pub fn pause(&self) -> Duration {
        self.pause.min(self.longest)
    }

    /// Whether the next look is to begin at the beginning.
    pub fn is_from_beginning(&self, now: Instant) -> bool {
        now >= self.beginning
    }

    /// Whether the next look is for rows to be tried again, too; it will be.
    pub fn retries(&mut self, now: Instant) -> bool {
        let due = now >= self.retries;
        if due {
            self.retries = now + RETRIES;
        }
        due
    }

    /// A look from the beginning took this long.
    pub fn looked_from_beginning(&mut self, now: Instant, took: Duration) {
        self.beginning = now + (took * SHARE).max(FROM_BEGINNING);
    }

    /// A look found something in the time it took, and maybe there is more. Where there is not, looks take no
    /// more than half of the time: one that takes long is better off with more to find.
    pub fn found(&mut self, more: bool, took: Duration) {
        self.pause = if more { Duration::ZERO } else { SHORTEST.max(took) };
    }

    /// A look found nothing.
    pub fn found_nothing(&mut self) {
        self.pause = (self.pause.max(SHORTEST) * 3 / 2).min(self.longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_while_there_is_nothing_and_shrink_at_once() {
        let mut pace = Pace::new(Duration::from_millis(50));
        for _ in 0..20 {
            pace.found_nothing();
        }
        assert_eq!(pace.pause(), Duration::from_millis(50));
        pace.found(false, Duration::from_millis(1));
        assert_eq!(pace.pause(), SHORTEST);
        pace.found(true, Duration::from_millis(1));
        assert_eq!(pace.pause(), Duration::ZERO);
    }

    #[test]
    fn a_look_that_takes_long_is_followed_by_a_pause_as_long() {
        let mut pace = Pace::new(Duration::from_millis(50));
        pace.found(false, Duration::from_millis(20));
        assert_eq!(pace.pause(), Duration::from_millis(20));
        pace.found(false, Duration::from_millis(200));
        assert_eq!(pace.pause(), Duration::from_millis(50), "never longer than it may be");
        pace.found(true, Duration::from_millis(20));
        assert_eq!(pace.pause(), Duration::ZERO);
    }

    #[test]
    fn looks_from_the_beginning_take_a_twentieth_of_the_time_at_most() {
        let mut pace = Pace::new(Duration::from_millis(50));
        let now = Instant::now();
        pace.looked_from_beginning(now, Duration::from_secs(1));
        assert!(!pace.is_from_beginning(now + Duration::from_secs(19)));
        assert!(pace.is_from_beginning(now + Duration::from_secs(20)));
    }
}
