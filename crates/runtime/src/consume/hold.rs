//! Events that went out as one call, and failed together: tried again together, or parted until the one at fault
//! is found.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::ConsumeSettings;
use super::waiting::Troubled;

/// After how many tries of a part of a call that fails, while others succeed, it is parted further.
const PART: u32 = 2;

/// How many times as long a call is tried that fails while nothing else succeeds, before it is parted all the same:
/// what is at fault may be the only thing that goes on.
const ALONE: u32 = 4;

/// What is known of the events in front of a lane. They are counted only: what is in front is always tried first,
/// so that no key loses its order whatever is counted here.
#[derive(Default)]
pub(super) struct Hold {
    tried: Option<Tried>,
    /// Among so many events in front is one that the call failed for.
    suspect: usize,
    /// How many events the consumer had handled when what is in front failed for the first time, before it was parted.
    since: Option<u64>,
}

/// A call that failed and is to be made again.
struct Tried {
    count: usize,
    attempts: u32,
    until: Instant,
    /// How many events the consumer had handled when it failed for the first time.
    handled: u64,
    _troubled: Troubled,
}

impl Hold {
    /// How many events in front are tried next; `None` for as many as there are.
    pub(super) fn next(&self) -> Option<usize> {
        let part = || (self.suspect > 0).then(|| (self.suspect / 2).max(1));
        self.tried.as_ref().map(|tried| tried.count).or_else(part)
    }

    /// How often they were tried.
    pub(super) fn attempts(&self) -> u32 {
        self.tried.as_ref().map_or(0, |tried| tried.attempts)
    }

    /// Until when nothing is to be tried.
    pub(super) fn until(&self) -> Option<Instant> {
        self.tried.as_ref().map(|tried| tried.until).filter(|until| *until > Instant::now())
    }

    /// So many events in front are gone: done, or for their key to wait with.
    pub(super) fn gone(&mut self, count: usize) {
        self.tried = None;
        self.suspect = self.suspect.saturating_sub(count);
        self.since = self.since.filter(|_| self.suspect > 0);
    }

    /// One of so many in front is at fault.
    pub(super) fn refused(&mut self, count: usize) {
        self.tried = None;
        self.suspect = count;
    }

    /// So many in front failed, maybe for a while. Says how long they wait for the next try, or `None` where they
    /// are parted now: they alone are in trouble. `handled` is what the consumer has handled so far.
    pub(super) fn failed(
        &mut self,
        count: usize,
        handled: u64,
        after: Option<Duration>,
        settings: &ConsumeSettings,
        troubled: &Troubled,
    ) -> Option<Duration> {
        self.since.get_or_insert(handled);
        let troubled = Arc::clone(troubled);
        let new = Tried { count, attempts: 0, until: Instant::now(), handled, _troubled: troubled };
        let mut tried = self.tried.take().filter(|tried| tried.count == count).unwrap_or(new);
        tried.attempts = tried.attempts.saturating_add(1);
        let attempts = tried.attempts;
        let enough = if self.suspect > 0 { PART } else { settings.attempts_in_memory };
        let alone = attempts >= enough && handled > tried.handled;
        let long = attempts >= settings.attempts_in_memory.saturating_mul(ALONE);
        if alone || long || attempts >= settings.attempts {
            self.suspect = count;
            return None;
        }
        let wait = settings.wait(attempts).max(after.unwrap_or_default());
        tried.until = Instant::now() + wait;
        self.tried = Some(tried);
        Some(wait)
    }

    /// Parts what waits and does not have to: others were handled since it failed, and it waits long, or what is behind
    /// it `crowds`. Says of how many it was.
    pub(super) fn part(&mut self, handled: u64, crowds: bool, settings: &ConsumeSettings) -> Option<usize> {
        let others = self.since.is_some_and(|since| handled > since);
        let tried = self.tried.take_if(|tried| {
            let wait = tried.until.saturating_duration_since(Instant::now());
            others && (crowds || wait > settings.retry_max)
        })?;
        self.suspect = tried.count;
        Some(tried.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> ConsumeSettings {
        ConsumeSettings { attempts: u32::MAX, ..ConsumeSettings::default() }
    }

    /// Tries what is in front until all of `events` are through; the sizes of the calls.
    fn calls(events: usize, bad: usize) -> Vec<usize> {
        let (mut hold, mut front, mut calls) = (Hold::default(), 0, Vec::new());
        while front < events {
            let count = hold.next().unwrap_or(events).min(events - front);
            calls.push(count);
            match count {
                1 => {}
                _ if (front..front + count).contains(&bad) => {
                    hold.refused(count);
                    continue;
                }
                _ => {}
            }
            hold.gone(count);
            front += count;
        }
        calls
    }

    #[test]
    fn the_one_at_fault_is_found_by_halves() {
        assert_eq!(calls(8, 5), [8, 4, 2, 1, 1, 2]);
        for bad in 0..100 {
            assert!(calls(100, bad).len() <= 16, "{bad}: {:?}", calls(100, bad));
        }
    }

    #[test]
    fn what_fails_for_a_while_is_tried_again_as_it_was() {
        let (mut hold, settings, hour) = (Hold::default(), settings(), Duration::from_hours(1));
        assert_eq!(hold.failed(50, 7, Some(hour), &settings, &Troubled::default()), Some(hour));
        assert_eq!((hold.next(), hold.attempts(), hold.until().is_some()), (Some(50), 1, true));
        for attempts in 2..=10 {
            assert!(
                hold.failed(50, 7, None, &settings, &Troubled::default()).is_some(),
                "nothing else gets on either"
            );
            assert_eq!((hold.next(), hold.attempts()), (Some(50), attempts));
        }
        assert_eq!(hold.failed(50, 8, None, &settings, &Troubled::default()), None, "others get on");
        assert_eq!((hold.next(), hold.until()), (Some(25), None));
        assert!(hold.failed(25, 8, None, &settings, &Troubled::default()).is_some());
        assert_eq!(hold.failed(25, 9, None, &settings, &Troubled::default()), None);
        assert_eq!(hold.next(), Some(12));
    }

    #[test]
    fn what_waits_long_or_crowds_is_parted_once_others_get_on() {
        let (mut hold, settings, troubled) = (Hold::default(), settings(), Troubled::default());
        let (short, long) = (Duration::ZERO, Duration::from_hours(1));
        for (count, after, handled, crowds, parted) in [
            (50, long, 7, true, None),
            (50, long, 8, false, Some(50)),
            (25, short, 8, false, None),
            // Others got on before: with no room they cannot any more.
            (25, short, 8, true, Some(25)),
        ] {
            assert!(hold.failed(count, handled.min(7), Some(after), &settings, &troubled).is_some());
            assert_eq!(hold.part(handled, crowds, &settings), parted, "{count} {after:?} {handled} {crowds}");
        }
        assert_eq!((hold.next(), hold.until(), hold.attempts()), (Some(12), None, 0));
        hold.gone(25);
        assert!(hold.failed(50, 8, Some(long), &settings, &troubled).is_some());
        assert_eq!(hold.part(8, true, &settings), None, "that was of those before");
    }

    #[test]
    fn what_nothing_is_known_of_beside_it_is_parted_in_the_end() {
        let (mut hold, settings) = (Hold::default(), settings());
        let tries = std::iter::from_fn(|| hold.failed(2, 0, None, &settings, &Troubled::default())).count();
        assert_eq!(tries, 19);
    }
}
