//! How a consumer is doing.

use std::sync::{Mutex, MutexGuard, PoisonError};

use headwater_core::Micros;

use crate::clock::now;
use crate::pipeline::Rate;
use crate::status::{Phase, PushReport};

/// Where a consumer writes down how it is doing, and status reads it.
#[derive(Default)]
pub struct Watch(Mutex<State>);

#[derive(Default)]
struct State {
    phase: Phase,
    /// Events handled since the start.
    handled: u64,
    rate: Rate,
    /// What was said the last time that an event failed.
    error: Option<String>,
    /// Since when nothing but failures came, and how many.
    failing: Option<(Micros, u32)>,
    /// Why streams cannot be read that are waited for.
    missing: Vec<String>,
    /// That there was no room to set anything aside, and when it was said the last time.
    full: Option<(Micros, String)>,
}

/// How long it counts that there was no room: it is said again while there is none, more often than that.
const FULL: Micros = 15_000_000;

impl Watch {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Events were handled.
    pub(super) fn handled(&self, events: usize) {
        if events == 0 {
            return;
        }
        let mut state = self.lock();
        state.handled += events as u64;
        state.rate.add(events as u64);
        (state.error, state.failing) = (None, None);
    }

    /// An event failed, or what is needed to handle any.
    pub(super) fn failed(&self, error: &str) {
        let mut state = self.lock();
        state.error = Some(error.to_owned());
        let (_, times) = state.failing.get_or_insert_with(|| (now(), 0));
        *times = times.saturating_add(1);
    }

    /// There is no room to set anything aside, and what has to be waits.
    pub(super) fn full(&self, error: &str) {
        self.lock().full = Some((now(), error.to_owned()));
    }

    /// These streams cannot be read and are waited for, each with why; the others are read.
    pub fn missing(&self, why: Vec<String>) {
        self.lock().missing = why;
    }

    /// Whether it is this that went wrong the last time.
    pub(super) fn says(&self, error: &str) -> bool {
        self.lock().error.as_deref() == Some(error)
    }

    /// Events handled since the start.
    pub(super) fn count(&self) -> u64 {
        self.lock().handled
    }

    pub(super) fn phase(&self, phase: Phase) {
        self.lock().phase = phase;
    }

    /// What it says of a push.
    pub(crate) fn report(&self, name: &str) -> PushReport {
        let state = self.lock();
        let failing = state.failing.filter(|_| state.phase != Phase::Stopped);
        let full = state.full.as_ref().filter(|(at, _)| now().saturating_sub(*at) < FULL);
        let full = full.filter(|_| state.phase != Phase::Stopped).map(|(_, error)| error.clone());
        let missing = (!state.missing.is_empty()).then(|| state.missing.join("; "));
        let waits = missing.is_some() && state.phase == Phase::Starting;
        let retries = failing.is_some() || full.is_some() || waits;
        PushReport {
            name: name.to_owned(),
            phase: if retries { Phase::Retrying } else { state.phase },
            full: full.is_some(),
            error: full.or_else(|| state.error.clone()).or(missing),
            retrying_since: failing.map(|(since, _)| since),
            attempts: failing.map_or(0, |(_, times)| times),
            events: state.handled,
            events_per_second: state.rate.per_second(),
            aside: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_said_while_nothing_else_is_wrong() {
        let watch = Watch::default();
        watch.missing(vec!["a cannot be read: no".into(), "b cannot be read: no".into()]);
        let report = watch.report("push");
        assert_eq!(report.phase, Phase::Retrying, "nothing is read yet");
        assert_eq!(report.error.as_deref(), Some("a cannot be read: no; b cannot be read: no"));
        watch.phase(Phase::Streaming);
        watch.failed("it answered 503");
        assert_eq!(watch.report("push").error.as_deref(), Some("it answered 503"));
        watch.handled(1);
        let report = watch.report("push");
        assert_eq!(report.phase, Phase::Streaming);
        assert!(report.error.unwrap().starts_with("a cannot"));
        watch.missing(Vec::new());
        assert_eq!(watch.report("push").error, None);
    }
}
