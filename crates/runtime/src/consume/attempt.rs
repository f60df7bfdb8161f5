//! One transaction: events are taken, handled or set aside, and the cursor moves with them.

use std::any::Any;
use std::collections::{BTreeMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use headwater_core::ports::{Arrival, Aside, Inbox, Mark, Settlement, Taken, Trouble};
use headwater_core::{Error, EventId, Kind};

use super::seat::Seat;
use super::{Failure, Handle, Item, Received, Shared};
use crate::metrics;

/// How a transaction ended.
pub(super) enum Ended {
    /// Everything of it is done.
    Done,
    /// Nothing of it is, for a reason of an event; its place among them, where that is known.
    Failed(Failure, Option<usize>),
    /// Nothing of it is as far as is known: the database is away.
    Away(Error),
    /// It was over before anything was begun.
    Over,
}

/// The events of one seat in a transaction.
struct Share<'a> {
    seat: &'a Arc<Seat>,
    done: Vec<u64>,
    wrote: Option<u64>,
}

impl<I, H> Shared<I, H>
where
    I: Inbox,
    H: Handle<I::Transaction>,
{
    /// Handles events in one transaction; with `park`, the one event is set aside instead, to be tried again
    /// after the time that is given, or when a person says so.
    pub(super) async fn attempt(&self, items: &[Item], park: Option<(&Trouble, Option<Duration>)>) -> Ended {
        let Some(_turn) = self.turn().await else { return Ended::Over };
        let (arrivals, first) = arrivals(items);
        let (mut transaction, taken) = match self.inbox.begin(&self.name, &arrivals).await {
            Ok(begun) => begun,
            Err(error) => return self.away(error),
        };
        let mut taken = taken.into_iter();
        let (mut fresh, mut aside): (Vec<&Received>, Vec<Aside>) = (Vec::new(), Vec::new());
        let mut places = Vec::new();
        for (place, (item, first)) in items.iter().zip(first).enumerate() {
            let taken = if first { taken.next().unwrap_or(Taken::Seen) } else { Taken::Seen };
            match (taken, park) {
                (Taken::New, None) => {
                    fresh.push(&item.received);
                    places.push(place);
                }
                (Taken::New, Some((trouble, again))) => aside.push(item.aside(Some(trouble.clone()), again)),
                (Taken::Blocked, _) => aside.push(item.aside(None, None)),
                (Taken::Seen, _) => {}
            }
        }
        let alone = if let [one] = items { Some(one.received.id()) } else { None };
        match self.handled(&mut transaction, &fresh).await {
            Some(Ok(())) => {}
            Some(Err(failure)) => {
                let rolled_back = self.inbox.rollback(transaction).await;
                return match rolled_back {
                    Err(error) if !self.is_to_blame(alone).await => Ended::Away(error),
                    _ => {
                        let place = failure.at.and_then(|at| places.get(at).copied());
                        Ended::Failed(failure, place)
                    }
                };
            }
            None => {
                return self.inbox.rollback(transaction).await.map_or_else(Ended::Away, |()| Ended::Over);
            }
        }
        let (handled, set_aside, handles) = (fresh.len(), aside.len(), park.is_none());
        let (mut shares, cursors) = shares(items);
        let settlement = Settlement { cursors, aside, held: Vec::new() };
        let committed = self.inbox.commit(transaction, &self.name, &settlement).await;
        for share in &mut shares {
            share.seat.ended(&share.done, share.wrote, committed.is_ok());
        }
        match committed {
            Ok(()) => {
                self.watch.handled(handled);
                metrics::consumed(&self.name, handled, set_aside);
                Ended::Done
            }
            Err(error) if handles && self.is_of_the_event(&error, alone).await => {
                tracing::warn!(consumer = %self.name, events = items.len(), %error, "not committed");
                Ended::Failed(Failure::retry(error.to_string()), None)
            }
            Err(error) if error.is_retryable() => Ended::Away(error),
            Err(error) => Ended::Failed(Failure::retry(error.to_string()), None),
        }
    }

    /// Whether events are to blame for a transaction that did not commit: for a constraint or a trigger of the
    /// handler's rows that is checked at the end, and fails or never ends.
    pub(super) async fn is_of_the_event(&self, error: &Error, alone: Option<EventId>) -> bool {
        match error.kind() {
            Kind::Unavailable => self.is_to_blame(alone).await,
            _ => !error.is_retryable(),
        }
    }

    /// Handles events; a handler that panics, or takes too long, has failed. `None` where it is over before it has
    /// begun.
    pub(super) async fn handled(
        &self,
        transaction: &mut I::Transaction,
        events: &[&Received],
    ) -> Option<Result<(), Failure>> {
        if events.is_empty() {
            return Some(Ok(()));
        }
        let _permit = tokio::select! {
            biased;
            () = self.halt.cancelled() => return None,
            permit = self.handle.admit() => permit,
        };
        let handled = AssertUnwindSafe(self.handle.handle(transaction, events)).catch_unwind();
        let handled = match self.settings.handler_timeout {
            None => handled.await,
            Some(timeout) => tokio::time::timeout(timeout, handled).await.unwrap_or_else(|_| {
                Ok(Err(Failure::retry(format!("the handler took longer than {timeout:?}, and was given up"))))
            }),
        };
        let panicked = |panic: Box<dyn Any + Send>| {
            Err(Failure::retry(format!("the handler panicked: {}", said(&*panic))))
        };
        Some(handled.unwrap_or_else(panicked))
    }

    /// Whether events are to blame for a transaction of which the database said nothing more when their handler had
    /// failed, or at its end, and not a database that went away: it must be there. For an event alone that counts from the second time on, since
    /// the database may have been away for a moment only; several are merely tried apart.
    pub(super) async fn is_to_blame(&self, alone: Option<EventId>) -> bool {
        let there = match self.inbox.begin(&self.name, &[]).await {
            Ok((transaction, _)) => self.inbox.rollback(transaction).await.is_ok(),
            Err(_) => false,
        };
        there && alone.is_none_or(|id| self.suspects.again(id))
    }

    /// A database that said no for good ends the consumer; one that is away is waited for.
    pub(super) fn away(&self, error: Error) -> Ended {
        if !error.is_retryable() {
            self.fail(Error::new(error.kind(), error.to_string()));
        }
        Ended::Away(error)
    }

    /// Writes the cursors that no transaction has written since their last event was done.
    pub(super) async fn flush(&self, seats: impl Iterator<Item = &Arc<Seat>>) -> Result<(), Error> {
        let begun = seats.filter_map(|seat| Some((seat, seat.begin(&[])?)));
        let begun: Vec<(&Arc<Seat>, u64)> = begun.collect();
        if begun.is_empty() {
            return Ok(());
        }
        let cursors: Vec<Mark> = begun.iter().map(|(seat, low)| seat.mark(*low)).collect();
        let written = async {
            let (transaction, _) = self.inbox.begin(&self.name, &[]).await?;
            let settlement = Settlement { cursors, ..Settlement::default() };
            self.inbox.commit(transaction, &self.name, &settlement).await
        };
        let written = written.await;
        for (seat, low) in begun {
            seat.ended(&[], Some(low), written.is_ok());
        }
        written
    }
}

impl Item {
    fn aside(&self, parked: Option<Trouble>, again: Option<Duration>) -> Aside {
        Aside { record: self.received.record.clone(), key: self.key.clone(), parked, again }
    }
}

/// What is taken, each id once; and of each event whether it is the first of its id. (A delete and the
/// tombstone that follows it are one.)
fn arrivals(items: &[Item]) -> (Vec<Arrival>, Vec<bool>) {
    let mut seen = HashSet::with_capacity(items.len());
    let mut arrivals = Vec::with_capacity(items.len());
    let first = items.iter().map(|item| {
        let event = &item.received.record.event;
        let first = seen.insert(event.id);
        if first {
            let (id, stream, key) = (event.id, Arc::clone(&event.stream), item.key.clone());
            arrivals.push(Arrival { id, stream, key, attempt: item.received.attempt });
        }
        first
    });
    let first = first.collect();
    (arrivals, first)
}

/// The events by their seats, and the cursors that are to be written with them.
fn shares(items: &[Item]) -> (Vec<Share<'_>>, Vec<Mark>) {
    let mut shares: BTreeMap<*const Seat, Share<'_>> = BTreeMap::new();
    for item in items {
        let share = Share { seat: &item.seat, done: Vec::new(), wrote: None };
        let share = shares.entry(Arc::as_ptr(&item.seat)).or_insert(share);
        share.done.push(item.received.record.offset);
    }
    let (mut shares, mut cursors): (Vec<Share<'_>>, _) = (shares.into_values().collect(), Vec::new());
    for share in &mut shares {
        share.done.sort_unstable();
        share.wrote = share.seat.begin(&share.done);
        cursors.extend(share.wrote.map(|low| share.seat.mark(low)));
    }
    (shares, cursors)
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}
