//! How many events share a transaction: as many as are handled in a moment.

use std::time::Duration;

/// How long a transaction should be open. Longer ones make effects visible late, and a stop wait.
const MOMENT: Duration = Duration::from_millis(100);

/// What is tried first.
const FIRST: usize = 8;

/// The number of events of the next transaction.
pub(super) struct Pace {
    next: usize,
    most: usize,
    even: bool,
}

impl Pace {
    pub(super) fn new(most: usize) -> Self {
        Self { next: FIRST.min(most), most, even: false }
    }

    /// Always as many as may be.
    pub(super) fn even(most: usize) -> Self {
        Self { next: most, most, even: true }
    }

    pub(super) fn next(&self) -> usize {
        self.next
    }

    /// So many took so long.
    pub(super) fn took(&mut self, events: usize, elapsed: Duration) {
        if self.even {
            return;
        }
        let each = elapsed.div_f64(events.max(1) as f64).max(Duration::from_nanos(1));
        let fits = (MOMENT.as_secs_f64() / each.as_secs_f64()) as usize;
        // One slow disk says little: it grows and shrinks by a factor.
        self.next = fits.clamp(self.next / 4, self.next * 2).clamp(1, self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_events_are_few() {
        let mut pace = Pace::new(100);
        for _ in 0..8 {
            pace.took(pace.next(), Duration::from_micros(pace.next() as u64 * 100));
        }
        assert_eq!(pace.next(), 100);
        for _ in 0..8 {
            pace.took(pace.next(), Duration::from_secs(pace.next() as u64));
        }
        assert_eq!(pace.next(), 1);
        pace.took(1, Duration::ZERO);
        assert_eq!(pace.next(), 2);
        assert_eq!(Pace::new(1).next(), 1);
        let mut even = Pace::even(50);
        even.took(1, Duration::from_secs(1));
        assert_eq!(even.next(), 50);
    }
}
