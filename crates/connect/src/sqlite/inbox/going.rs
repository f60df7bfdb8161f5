//! What was set aside and is on its way now. A person may drop it meanwhile.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use headwater_core::EventId;
use headwater_core::ports::{Arrival, Due, Held, Taken};

/// An event that was set aside, as long as it is being handled.
#[derive(Debug)]
pub(super) struct Going {
    consumer: String,
    stream: Arc<str>,
    key: Option<Bytes>,
    pub(super) sequence: i64,
    pub(super) id: EventId,
    /// How often it will have been tried.
    pub(super) attempts: u32,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct AllGoing(Mutex<Vec<Weak<Going>>>);

impl AllGoing {
    fn list<T>(&self, with: impl FnOnce(&mut Vec<Weak<Going>>) -> T) -> T {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|going| going.strong_count() > 0);
        with(&mut list)
    }

    /// It goes until what is returned is dropped.
    pub(super) fn begin(&self, consumer: &str, due: &Due, held: &Held) -> Arc<Going> {
        let going = Arc::new(Going {
            consumer: consumer.to_owned(),
            stream: Arc::clone(&due.stream),
            key: due.key.clone(),
            sequence: held.sequence,
            id: held.record.event.id,
            attempts: held.attempts.saturating_add(1),
        });
        self.list(|list| list.push(Arc::downgrade(&going)));
        going
    }

    /// Marks what is new and has the key of one of them.
    pub(super) fn block(&self, consumer: &str, arrivals: &[Arrival], taken: &mut [Taken]) {
        let going: Vec<_> = self.list(|list| list.iter().filter_map(Weak::upgrade).collect());
        let going = going.iter().filter(|going| going.consumer == consumer);
        let keys: HashSet<_> =
            going.filter_map(|going| Some((&*going.stream, going.key.as_ref()?))).collect();
        for (arrival, taken) in arrivals.iter().zip(taken).filter(|(_, taken)| **taken == Taken::New) {
            if arrival.key.as_ref().is_some_and(|key| keys.contains(&(&*arrival.stream, key))) {
                *taken = Taken::Blocked;
            }
        }
    }
}
