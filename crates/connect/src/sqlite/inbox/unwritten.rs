//! What was handled and could not be written down.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use headwater_core::EventId;
use headwater_core::ports::{Arrival, Fate, Settlement, Taken};

/// No more than what was on its way when writing failed, as each is written down before another of its worker.
#[derive(Debug, Default)]
pub(super) struct Unwritten(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Events that arrived, by consumer, and at which try they were handled.
    arrived: HashMap<(String, EventId), u32>,
    /// What became of events that were set aside, by their sequence.
    held: HashMap<i64, Fate>,
}

impl Unwritten {
    fn state<T>(&self, with: impl FnOnce(&mut State) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Marks what has been handled, and at which try: those to write it down do not count. What is written down all the
    /// same, as a commit may have happened that failed, needs to be known no longer.
    pub(super) fn look(&self, consumer: &str, arrivals: &mut [Arrival], taken: &mut [Taken]) {
        self.state(|state| {
            if state.arrived.is_empty() {
                return;
            }
            for (arrival, taken) in arrivals.iter_mut().zip(taken) {
                let event = (consumer.to_owned(), arrival.id);
                if *taken == Taken::Seen {
                    state.arrived.remove(&event);
                } else if let Some(attempt) = state.arrived.get(&event) {
                    (*taken, arrival.attempt) = (Taken::Seen, *attempt);
                }
            }
        });
    }

    /// What became of an event that was set aside, where that is still to be written.
    pub(super) fn fate(&self, sequence: i64) -> Option<Fate> {
        self.state(|state| state.held.get(&sequence).cloned())
    }

    /// What these became was written down, or was not: what was not set aside has been handled.
    pub(super) fn ended(&self, consumer: &str, arrivals: &[Arrival], settlement: &Settlement, written: bool) {
        self.state(|state| {
            if written {
                if !state.arrived.is_empty() {
                    arrivals
                        .iter()
                        .for_each(|arrival| _ = state.arrived.remove(&(consumer.to_owned(), arrival.id)));
                }
                settlement.held.iter().for_each(|(sequence, _)| _ = state.held.remove(sequence));
                return;
            }
            let aside: HashSet<EventId> =
                settlement.aside.iter().map(|aside| aside.record.event.id).collect();
            let handled = arrivals.iter().filter(|arrival| !aside.contains(&arrival.id));
            state.arrived.extend(handled.map(|one| ((consumer.to_owned(), one.id), one.attempt)));
            state.held.extend(settlement.held.iter().cloned());
        });
    }
}
