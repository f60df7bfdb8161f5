//! Which events may have broken their connection.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use headwater_core::EventId;

/// How many are remembered. Each outage leaves as many as were handled at that moment.
const MOST: usize = 1_000;

/// Events whose connection was gone after they had failed.
#[derive(Debug, Default)]
pub(super) struct Suspects(Mutex<HashSet<EventId>>);

impl Suspects {
    /// Its connection was gone: whether it was so before.
    pub(super) fn again(&self, id: EventId) -> bool {
        let mut suspects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if suspects.len() >= MOST && !suspects.contains(&id) {
            suspects.clear();
        }
        !suspects.insert(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_time_it_is_known() {
        let suspects = Suspects::default();
        let id = |n: usize| EventId::derive(1, &[&n.to_be_bytes()]);
        assert!(!suspects.again(id(0)));
        assert!(suspects.again(id(0)));
        (1..MOST).for_each(|n| assert!(!suspects.again(id(n))));
        assert!(suspects.again(id(0)), "it is full, and known");
        assert!(!suspects.again(id(MOST)));
        assert!(!suspects.again(id(0)), "it was forgotten");
    }
}
