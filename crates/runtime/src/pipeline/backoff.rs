//! How long to wait before trying again.

use std::time::Duration;

/// The first step; each further one doubles it.
const FIRST: Duration = Duration::from_millis(100);

/// Exponential backoff with full jitter: each wait is drawn evenly between nothing and a bound that
/// doubles from 100 ms to `max`, so that many who lost the same server do not come back at once.
#[derive(Debug)]
pub struct Backoff {
    max: Duration,
    attempts: u32,
}

impl Backoff {
    /// One that has not waited yet.
    pub fn new(max: Duration) -> Self {
        Self { max, attempts: 0 }
    }

    /// Things went well: the next wait is a short one.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// How many waits there were since things went well.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The next wait.
    #[expect(clippy::should_implement_trait, reason = "it never ends, and nobody iterates over it")]
    pub fn next(&mut self) -> Duration {
        let bound = self.bound();
        self.attempts = self.attempts.saturating_add(1);
        bound.mul_f64(rand::random_range(0.0..=1.0))
    }

    fn bound(&self) -> Duration {
        FIRST.saturating_mul(1 << self.attempts.min(20)).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound_and_begin_anew() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        for bound in [100, 200, 400, 800, 1000, 1000] {
            assert_eq!(backoff.bound(), Duration::from_millis(bound));
            assert!(backoff.next() <= Duration::from_millis(bound));
        }
        assert_eq!(backoff.attempts(), 6);
        backoff.reset();
        assert_eq!(backoff.bound(), Duration::from_millis(100));
    }

    #[test]
    fn waits_are_spread() {
        let waits: std::collections::HashSet<Duration> =
            (0..50).map(|_| Backoff::new(Duration::from_secs(1)).next()).collect();
        assert!(waits.len() > 10, "{waits:?}");
    }
}
