//! In which partitions the brokers know a producer.
//!
//! A broker that knows a producer in a partition refuses a batch behind a gap: nothing passes one that was
//! refused or has yet to be tried again. But of a producer that it does not know there it takes whatever
//! batch arrives first. So the first record of each partition goes alone, and the others of it only
//! once it was taken (invariant 2).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use headwater_core::{Event, partition_of};

/// Brokers forget a producer that was silent for `producer.id.expiration.ms`, a day by default: long before
/// that it is taken for unknown.
const SILENCE: Duration = Duration::from_secs(600);

/// When a producer last sent something to each partition of each stream where it is known.
#[derive(Debug, Default)]
pub struct Warm(Mutex<HashMap<Arc<str>, Vec<Option<Instant>>>>);

/// Which partition an event goes to; `None` for one that may go anywhere, and so has no order.
fn partition(event: &Event, partitions: u32) -> Option<usize> {
    let partition = event.partition.or_else(|| Some(partition_of(event.key.as_deref()?, partitions)));
    partition.map(|partition| partition as usize)
}

impl Warm {
    /// Takes the first event of each partition where the producer is not known out of a batch.
    pub fn take_first(&self, events: &mut Vec<Event>, partitions: impl Fn(&str) -> u32) -> Vec<Event> {
        let now = Instant::now();
        let mut warm = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut first, mut cold) = (HashSet::new(), HashSet::new());
        let mut at = 0;
        for run in events.chunk_by(|one, next| one.stream == next.stream) {
            let Some(stream) = run.first().map(|event| &event.stream) else { continue };
            let count = partitions(stream);
            let known = warm.entry(Arc::clone(stream)).or_default();
            known.resize(count as usize, None);
            for event in run {
                let place = partition(event, count);
                match place.and_then(|place| known.get_mut(place)) {
                    Some(Some(last)) if now.duration_since(*last) < SILENCE => *last = now,
                    Some(_) if cold.insert((stream, place)) => drop(first.insert(at)),
                    _ => {}
                }
                at += 1;
            }
        }
        if first.is_empty() {
            return Vec::new();
        }
        let (mut taken, mut rest) = (Vec::with_capacity(first.len()), Vec::with_capacity(events.len()));
        for (at, event) in std::mem::take(events).into_iter().enumerate() {
            if first.contains(&at) { taken.push(event) } else { rest.push(event) }
        }
        *events = rest;
        taken
    }

    /// The brokers have taken these.
    pub fn known(&self, events: &[Event]) {
        let mut warm = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            let Some(known) = warm.get_mut(&event.stream) else { continue };
            let place = partition(event, u32::try_from(known.len()).unwrap_or(u32::MAX));
            if let Some(last) = place.and_then(|place| known.get_mut(place)) {
                *last = Some(Instant::now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use headwater_core::{EventId, Position};

    use super::*;

    fn event(stream: &str, partition: Option<u32>, n: u64) -> Event {
        Event {
            id: EventId::derive(0, &[&n.to_be_bytes()]),
            stream: stream.into(),
            partition,
            kind: "create".into(),
            key: None,
            payload: None,
            headers: Default::default(),
            time: 0,
            position: Position::of(1, [n]),
        }
    }

    fn places(events: &[Event]) -> Vec<u64> {
        events.iter().map(|event| event.position.numbers()[0]).collect()
    }

    #[test]
    fn the_first_of_each_partition_goes_ahead_until_it_is_known() {
        let warm = Warm::default();
        let batch = || {
            let of =
                [("a", Some(0)), ("a", Some(0)), ("b", Some(0)), ("a", Some(1)), ("a", None), ("a", Some(0))];
            of.iter()
                .zip(1..)
                .map(|((stream, partition), n)| event(stream, *partition, n))
                .collect::<Vec<_>>()
        };
        let mut events = batch();
        let first = warm.take_first(&mut events, |_| 2);
        assert_eq!((places(&first), places(&events)), (vec![1, 3, 4], vec![2, 5, 6]));
        assert_eq!(places(&warm.take_first(&mut batch(), |_| 2)), [1, 3, 4], "not taken yet");
        warm.known(&first[..2]);
        assert_eq!(places(&warm.take_first(&mut batch(), |_| 2)), [4]);
    }
}
