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
    /// Why it cannot read.
    stuck: Option<Failing>,
    /// Why events fail, where nothing but failures came.
    failing: Option<Failing>,
    /// Why it could not read the last time, as long as nothing was handled.
    said: Option<String>,
    /// Why streams cannot be read that are waited for.
    missing: Vec<String>,
    /// That there was no room to set anything aside, and when it was said the last time.
    full: Option<(Micros, String)>,
}

/// What was said last, and since when and how often it failed.
#[derive(Clone)]
struct Failing {
    error: String,
    since: Micros,
    times: u32,
}

impl Failing {
    fn again(failing: &mut Option<Self>, error: &str) {
        let (since, times) = failing.take().map_or_else(|| (now(), 0), |before| (before.since, before.times));
        *failing = Some(Self { error: error.to_owned(), since, times: times.saturating_add(1) });
    }
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
        (state.failing, state.said) = (None, None);
    }

    /// No event fails any more as far as is known.
    pub(super) fn none_fail(&self) {
        self.lock().failing = None;
    }

    /// An event failed, or what is needed to handle any.
    pub(super) fn failed(&self, error: &str) {
        Failing::again(&mut self.lock().failing, error);
    }

    /// The bus does not let it read, or the database does not say from where on.
    pub(super) fn stuck(&self, error: &str) {
        let mut state = self.lock();
        state.said = Some(error.to_owned());
        Failing::again(&mut state.stuck, error);
    }

    /// The bus has something for it.
    pub(super) fn reads(&self) {
        self.lock().stuck = None;
    }

    /// Whether it could not read the last time.
    pub(super) fn is_stuck(&self) -> bool {
        self.lock().stuck.is_some()
    }

    /// There is no room to set anything aside, and what has to be waits.
    pub(super) fn full(&self, error: &str) {
        self.lock().full = Some((now(), error.to_owned()));
    }

    /// These streams cannot be read and are waited for, each with why; the others are read.
    pub fn missing(&self, why: Vec<String>) {
        self.lock().missing = why;
    }

    /// Whether it is this that kept it from reading the last time.
    pub(super) fn says(&self, error: &str) -> bool {
        self.lock().said.as_deref() == Some(error)
    }

    /// Events handled since the start.
    pub(super) fn count(&self) -> u64 {
        self.lock().handled
    }

    pub(super) fn phase(&self, phase: Phase) {
        self.lock().phase = phase;
    }

    /// What it says of a push.
    pub fn report(&self, name: &str) -> PushReport {
        let state = self.lock();
        let trouble = state.stuck.as_ref().or(state.failing.as_ref());
        let failing = trouble.filter(|_| state.phase != Phase::Stopped);
        let full = state.full.as_ref().filter(|(at, _)| now().saturating_sub(*at) < FULL);
        let full = full.filter(|_| state.phase != Phase::Stopped).map(|(_, error)| error.clone());
        let missing = (!state.missing.is_empty()).then(|| state.missing.join("; "));
        let waits = missing.is_some() && state.phase == Phase::Starting;
        let retries = failing.is_some() || full.is_some() || waits;
        PushReport {
            name: name.to_owned(),
            phase: if retries { Phase::Retrying } else { state.phase },
            full: full.is_some(),
            error: full.or_else(|| trouble.map(|trouble| trouble.error.clone())).or(missing),
            retrying_since: failing.map(|failing| failing.since),
            attempts: failing.map_or(0, |failing| failing.times),
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

    #[test]
    fn events_that_fail_and_a_bus_that_is_away_are_told_apart() {
        let watch = Watch::default();
        watch.phase(Phase::Streaming);
        watch.failed("it answered 503");
        watch.stuck("the bus is away");
        watch.stuck("the bus is away");
        let report = watch.report("push");
        assert_eq!((report.error.as_deref(), report.attempts), (Some("the bus is away"), 2));
        watch.handled(1);
        assert_eq!(
            watch.report("push").phase,
            Phase::Retrying,
            "what was read before says nothing of the bus"
        );
        watch.failed("it answered 503");
        watch.reads();
        assert_eq!(watch.report("push").error.as_deref(), Some("it answered 503"));
        watch.none_fail();
        assert_eq!((watch.report("push").phase, watch.report("push").error), (Phase::Streaming, None));
    }
}
