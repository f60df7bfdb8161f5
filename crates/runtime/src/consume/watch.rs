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
        PushReport {
            name: name.to_owned(),
            phase: if failing.is_some() || full.is_some() { Phase::Retrying } else { state.phase },
            full: full.is_some(),
            error: full.or_else(|| state.error.clone()),
            retrying_since: failing.map(|(since, _)| since),
            attempts: failing.map_or(0, |(_, times)| times),
            events: state.handled,
            events_per_second: state.rate.per_second(),
            aside: None,
        }
    }
}
