//! How a consumer works.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use headwater_core::{Error, Event, Kind, Result};

use super::received::YEAR;

/// What events keep their order by; `None` for an event that waits for nothing.
pub type OrderBy = Arc<dyn Fn(&Event) -> Option<Bytes> + Send + Sync>;

/// How a consumer works.
#[derive(Clone)]
pub struct ConsumeSettings {
    /// How many transactions it has open at once, each with events of other keys, whether those arrive or were set
    /// aside and go on; 8.
    pub concurrency: usize,
    /// How many of them may be of what was set aside, where it must leave room for what arrives; all.
    pub held: Option<usize>,
    /// How many events may share a transaction; 100. With 1, each has its own.
    pub batch: usize,
    /// Whether what is handled at once goes out as one call: events of one partition only, as many as there are up to
    /// `batch` however long it takes, and tried again together when it fails for a while; no.
    pub one_call: bool,
    /// How many events may be read and not handled; 10,000, and one batch of the bus.
    pub max_events: usize,
    /// How many bytes they may have; 8 MiB.
    pub max_bytes: usize,
    /// How often an event is tried before its key is parked; 10.
    pub attempts: u32,
    /// After how many tries an event whose key fails while others succeed waits in the inbox, still tried again,
    /// and no longer in memory with what comes behind it; 5.
    pub attempts_in_memory: u32,
    /// How long a handler may take for what it is handed at once, if there is a bound: it is given up then, and has
    /// failed; none.
    pub handler_timeout: Option<Duration>,
    /// How long an event waits before it is tried again for the first time; each further wait doubles; 100 ms.
    pub retry_min: Duration,
    /// The longest wait; 30 s.
    pub retry_max: Duration,
    /// How long inbox rows stay; 7 days. What comes again later than that is handled again.
    pub retention: Duration,
    /// How far back the streams reach, if that is known: a `retention` below it is refused.
    pub longest_replay: Option<Duration>,
    /// How often cursors are written to the bus, and what is set aside is looked through; 1 s.
    pub interval: Duration,
    /// How long what is begun may take to finish at a stop; 30 s.
    pub drain_timeout: Duration,
    /// What events keep their order by, where that is not their key.
    pub order_by: Option<OrderBy>,
}

impl Default for ConsumeSettings {
    fn default() -> Self {
        Self {
            concurrency: 8,
            held: None,
            batch: 100,
            one_call: false,
            max_events: 10_000,
            max_bytes: 8 << 20,
            attempts: 10,
            attempts_in_memory: 5,
            handler_timeout: None,
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(30),
            retention: Duration::from_hours(7 * 24),
            longest_replay: None,
            interval: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(30),
            order_by: None,
        }
    }
}

impl ConsumeSettings {
    /// An error of kind `Config` where the settings make no sense.
    pub fn check(&self) -> Result<()> {
        let zero = [
            (self.concurrency == 0, "concurrency"),
            (self.held == Some(0), "held"),
            (self.batch == 0, "batch"),
            (self.max_events == 0, "max_events"),
            (self.max_bytes == 0, "max_bytes"),
            (self.attempts == 0, "attempts"),
            (self.interval.is_zero(), "interval"),
            (self.handler_timeout.is_some_and(|timeout| timeout.is_zero()), "handler_timeout"),
        ];
        if let Some((_, name)) = zero.iter().find(|(zero, _)| *zero) {
            return Err(Error::new(Kind::Config, format!("a consumer's {name} cannot be 0")));
        }
        match self.longest_replay {
            Some(replay) if self.retention < replay => {
                let doing = format!(
                    "inbox rows are kept for {:?}, and the streams reach back {replay:?}: a replay would make \
                     effects twice",
                    self.retention
                );
                Err(Error::new(Kind::Config, doing)
                    .hint("give the consumer a retention at least as long as the streams'"))
            }
            _ => Ok(()),
        }
    }

    /// Without waits that no clock can tell.
    pub(super) fn clamped(mut self) -> Self {
        for wait in [&mut self.retry_min, &mut self.retry_max, &mut self.interval, &mut self.drain_timeout] {
            *wait = YEAR.min(*wait);
        }
        self.handler_timeout = self.handler_timeout.map(|timeout| timeout.min(YEAR));
        self
    }

    /// The wait after so many attempts: doubles, and is spread so that keys do not come back together.
    pub(super) fn wait(&self, attempts: u32) -> Duration {
        let doubled = self.retry_min.saturating_mul(1 << attempts.saturating_sub(1).min(20));
        doubled.min(self.retry_max).mul_f64(rand::random_range(0.5..=1.0))
    }
}

impl fmt::Debug for ConsumeSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumeSettings")
            .field("concurrency", &self.concurrency)
            .field("batch", &self.batch)
            .field("attempts", &self.attempts)
            .field("retention", &self.retention)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retention_below_the_longest_replay_is_refused() {
        let mut settings =
            ConsumeSettings { longest_replay: Some(Duration::from_hours(1)), ..Default::default() };
        settings.check().unwrap();
        settings.retention = Duration::from_mins(59);
        let refused = settings.check().unwrap_err();
        assert_eq!(refused.kind(), Kind::Config);
        assert!(refused.to_string().contains("effects twice"), "{refused}");
    }

    #[test]
    fn waits_double_up_to_a_bound() {
        let settings = ConsumeSettings::default();
        for (attempts, most) in [(1, 100), (2, 200), (3, 400), (20, 30_000), (u32::MAX, 30_000)] {
            let (wait, most) = (settings.wait(attempts), Duration::from_millis(most));
            assert!(wait <= most && wait >= most / 2, "{attempts}: {wait:?}");
        }
    }
}
