//! What was handled and could not be written down.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use headwater_core::EventId;
use headwater_core::ports::{Arrival, Fate, Settlement, Taken};

/// No more than what was on its way when writing failed, as each is written down before another of its worker.
#[derive(Debug, Default)]
pub(super) struct Unwritten(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Events that arrived, by consumer.
    arrived: HashSet<(String, EventId)>,
    /// Events that were set aside, by their sequence.
    held: HashSet<i64>,
}

impl Unwritten {
    fn state<T>(&self, with: impl FnOnce(&mut State) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Marks what has been handled. What is written down all the same, as a commit may have happened that failed, needs
    /// to be known no longer.
    pub(super) fn look(&self, consumer: &str, arrivals: &[Arrival], taken: &mut [Taken]) {
        self.state(|state| {
            if state.arrived.is_empty() {
                return;
            }
            for (arrival, taken) in arrivals.iter().zip(taken) {
                let event = (consumer.to_owned(), arrival.id);
                if *taken == Taken::Seen {
                    state.arrived.remove(&event);
                } else if state.arrived.contains(&event) {
                    *taken = Taken::Seen;
                }
            }
        });
    }

    /// Whether the event that was set aside is done.
    pub(super) fn has_held(&self, sequence: i64) -> bool {
        self.state(|state| state.held.contains(&sequence))
    }

    /// What these became was written down, or was not: what was not set aside has been handled.
    pub(super) fn ended(&self, consumer: &str, arrivals: &[Arrival], settlement: &Settlement, written: bool) {
        let done = settlement.held.iter().filter(|(_, fate)| matches!(fate, Fate::Done));
        self.state(|state| {
            if written {
                if !state.arrived.is_empty() {
                    arrivals
                        .iter()
                        .for_each(|arrival| _ = state.arrived.remove(&(consumer.to_owned(), arrival.id)));
                }
                done.for_each(|(sequence, _)| _ = state.held.remove(sequence));
                return;
            }
            let aside: HashSet<EventId> =
                settlement.aside.iter().map(|aside| aside.record.event.id).collect();
            let handled = arrivals.iter().filter(|arrival| !aside.contains(&arrival.id));
            state.arrived.extend(handled.map(|arrival| (consumer.to_owned(), arrival.id)));
            state.held.extend(done.map(|(sequence, _)| *sequence));
        });
    }
}
