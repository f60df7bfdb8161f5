//! Which keys, and which whole streams, are held back because something of theirs is parked.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use headwater_core::ports::{HoldsBack, Parked, ParkedStore};
use headwater_core::{Change, Event, EventId, Micros, Position, Result};

use super::codec;
use crate::shape::{EventOrigin, Shaped, Trouble};

/// What is held back of one source. Keys are remembered by a hash of 64 bits, so memory stays small
/// with any number of parked keys; two keys of one hash are held back together.
#[derive(Default)]
pub struct Holds {
    source: Arc<str>,
    streams: HashMap<Arc<str>, StreamHolds>,
    hasher: RandomState,
}

#[derive(Default)]
struct StreamHolds {
    whole: Option<Whole>,
    keys: HashMap<u64, Key>,
}

/// A stream held back as a whole.
pub struct Whole {
    reason: String,
    /// What stands before this was published: a redelivery of it passes.
    first: Position,
}

/// A key held back.
#[derive(Clone, Copy)]
pub struct Key {
    first: Position,
    behind: EventId,
}

/// What was held back, while it is let by.
pub enum Suspended {
    /// A stream.
    Whole(Whole),
    /// A key.
    Key(Key),
}

/// A batch, sorted into what goes to the bus and what is set aside.
#[derive(Default)]
pub struct Admitted {
    /// What goes to the bus.
    pub events: Vec<Event>,
    /// Where each event comes from.
    pub origins: Vec<EventOrigin>,
    /// What is set aside, and which of the batch's changes each is.
    pub parked: Vec<(u32, Parked)>,
}

impl Holds {
    /// What the parked store holds back of a source.
    pub async fn load(source: &Arc<str>, store: &dyn ParkedStore) -> Result<Self> {
        let mut holds = Self { source: Arc::clone(source), ..Self::default() };
        for usage in store.usage().await?.into_iter().filter(|usage| usage.source == *source) {
            let oldest = store.list(source, &usage.stream, &usage.holds, 0).await?;
            let Some(oldest) = oldest.first() else { continue };
            // What cannot be read back holds from the beginning: nothing may overtake it.
            let first = codec::decode(&oldest.change).map_or(Position::ZERO, |change| change.position);
            match &usage.holds {
                HoldsBack::Stream => holds.hold(&usage.stream, usage.reason.clone(), first),
                HoldsBack::Key(key) => holds.block(&usage.stream, key, Key { first, behind: oldest.id }),
                HoldsBack::Nothing => {}
            }
        }
        Ok(holds)
    }

    /// Holds back a whole stream: all of it from `first` on, or from where it is held already.
    pub fn hold(&mut self, stream: &Arc<str>, reason: String, first: Position) {
        let holds = self.streams.entry(Arc::clone(stream)).or_default();
        let whole = holds.whole.get_or_insert(Whole { reason, first });
        whole.first = whole.first.min(first);
    }

    /// The streams that are held back as a whole, and why.
    pub fn held(&self) -> impl Iterator<Item = (&Arc<str>, &str)> {
        self.streams
            .iter()
            .filter_map(|(stream, holds)| Some((stream, holds.whole.as_ref()?.reason.as_str())))
    }

    /// Whether a stream is held back as a whole.
    pub fn is_held(&self, stream: &str) -> bool {
        self.streams.get(stream).is_some_and(|holds| holds.whole.is_some())
    }

    /// `oldest` is what is parked first of a stream or key: whatever stood before it was published.
    pub fn begin_with(&mut self, oldest: &Parked) {
        let Ok(change) = codec::decode(&oldest.change) else { return };
        let Some(holds) = self.streams.get_mut(&oldest.stream) else { return };
        match &oldest.holds {
            HoldsBack::Stream => holds.whole.iter_mut().for_each(|whole| whole.first = change.position),
            HoldsBack::Key(order_key) => {
                let key = holds.keys.get_mut(&self.hasher.hash_one(&**order_key));
                key.into_iter().for_each(|key| *key = Key { first: change.position, behind: oldest.id });
            }
            HoldsBack::Nothing => {}
        }
    }

    /// Lets a stream go on, or one of its keys.
    pub fn let_go(&mut self, stream: &str, what: &HoldsBack) {
        let Some(holds) = self.streams.get_mut(stream) else { return };
        match what {
            HoldsBack::Stream => holds.whole = None,
            HoldsBack::Key(key) => drop(holds.keys.remove(&self.hasher.hash_one(&**key))),
            HoldsBack::Nothing => {}
        }
        if holds.whole.is_none() && holds.keys.is_empty() {
            self.streams.remove(stream);
        }
    }

    /// Lets what is parked itself go by, while it is published; see [`Holds::resume`].
    pub fn suspend(&mut self, stream: &str, what: &HoldsBack) -> Option<Suspended> {
        let holds = self.streams.get_mut(stream)?;
        match what {
            HoldsBack::Stream => holds.whole.take().map(Suspended::Whole),
            HoldsBack::Key(key) => holds.keys.remove(&self.hasher.hash_one(&**key)).map(Suspended::Key),
            HoldsBack::Nothing => None,
        }
    }

    /// Holds back again what [`Holds::suspend`] let by.
    pub fn resume(&mut self, stream: &Arc<str>, what: &HoldsBack, suspended: Option<Suspended>) {
        match (suspended, what) {
            (Some(Suspended::Whole(whole)), _) => self.hold(stream, whole.reason, whole.first),
            (Some(Suspended::Key(key)), HoldsBack::Key(order_key)) => self.block(stream, order_key, key),
            _ => {}
        }
    }

    /// Whether nothing is held back.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Holds back a key from there on, or from where it is held already.
    fn block(&mut self, stream: &Arc<str>, order_key: &[u8], key: Key) {
        let hash = self.hasher.hash_one(order_key);
        let held = self.streams.entry(Arc::clone(stream)).or_default().keys.entry(hash).or_insert(key);
        if key.first < held.first {
            *held = key;
        }
    }

    /// Sorts a batch: what is in trouble is set aside, and what waits behind something set aside
    /// follows it; the rest goes on. The batch keeps its changes.
    pub fn admit(&mut self, batch: &mut Shaped, now: Micros) -> Result<Admitted> {
        let (events, origins) = (std::mem::take(&mut batch.events), std::mem::take(&mut batch.origins));
        if batch.troubles.is_empty() && self.is_empty() {
            return Ok(Admitted { events, origins, parked: Vec::new() });
        }
        let mut sorting =
            Sorting { holds: self, changes: &batch.changes, now, out: Admitted::default(), last: None };
        let mut troubles = std::mem::take(&mut batch.troubles).into_iter().peekable();
        for (event, origin) in events.into_iter().zip(origins) {
            while let Some(trouble) = troubles.next_if(|trouble| trouble.change <= origin.change) {
                sorting.trouble(trouble)?;
            }
            sorting.event(event, origin)?;
        }
        troubles.try_for_each(|trouble| sorting.trouble(trouble))?;
        Ok(sorting.out)
    }
}

struct Sorting<'a> {
    holds: &'a mut Holds,
    changes: &'a [Change],
    now: Micros,
    out: Admitted,
    /// What was parked last: a delete and its tombstone are one change and parked once.
    last: Option<(u32, Arc<str>, HoldsBack)>,
}

impl Sorting<'_> {
    fn event(&mut self, event: Event, origin: EventOrigin) -> Result<()> {
        if let Some(outbox) = &origin.outbox
            && let Some(whole) = self.holds.streams.get(outbox).and_then(|held| held.whole.as_ref())
            && event.position >= whole.first
        {
            let reason = whole.reason.clone();
            return self.park(origin.change, outbox, event.id, HoldsBack::Stream, reason);
        }
        let Some(stream) = self.holds.streams.get(&event.stream) else { return self.pass(event, origin) };
        if let Some(whole) = stream.whole.as_ref().filter(|whole| event.position >= whole.first) {
            let reason = whole.reason.clone();
            return self.park(origin.change, &event.stream, event.id, HoldsBack::Stream, reason);
        }
        // Without a key there is no order, so nothing is waited for.
        let Some(order_key) = origin.order_key(&event) else { return self.pass(event, origin) };
        match stream.keys.get(&self.holds.hasher.hash_one(&**order_key)) {
            Some(key) if event.position >= key.first => {
                let reason = format!("waits behind {}", key.behind);
                let holds = HoldsBack::Key(order_key.clone());
                self.park(origin.change, &event.stream, event.id, holds, reason)
            }
            _ => self.pass(event, origin),
        }
    }

    fn pass(&mut self, event: Event, origin: EventOrigin) -> Result<()> {
        self.out.events.push(event);
        self.out.origins.push(origin);
        Ok(())
    }

    fn trouble(&mut self, trouble: Trouble) -> Result<()> {
        let Some(change) = self.changes.get(trouble.change as usize) else { return Ok(()) };
        let (stream, position) = (Arc::clone(&trouble.stream), change.position);
        let held = self.holds.streams.get(&stream).and_then(|holds| holds.whole.as_ref());
        let holds = match held {
            Some(whole) if position >= whole.first => HoldsBack::Stream,
            _ => trouble.holds,
        };
        match &holds {
            HoldsBack::Stream => self.holds.hold(&stream, trouble.reason.clone(), position),
            HoldsBack::Key(key) => {
                self.holds.block(&stream, key, Key { first: position, behind: trouble.id });
            }
            HoldsBack::Nothing => {}
        }
        self.park(trouble.change, &stream, trouble.id, holds, trouble.reason)
    }

    fn park(
        &mut self,
        at: u32,
        stream: &Arc<str>,
        id: EventId,
        holds: HoldsBack,
        reason: String,
    ) -> Result<()> {
        let Some(change) = self.changes.get(at as usize) else { return Ok(()) };
        let this = (at, Arc::clone(stream), holds.clone());
        if self.last.as_ref() == Some(&this) {
            return Ok(());
        }
        self.last = Some(this);
        let parked = Parked {
            id: if holds == HoldsBack::Stream { held_id(change, stream) } else { id },
            source: Arc::clone(&self.holds.source),
            stream: Arc::clone(stream),
            holds,
            position: change.position,
            reason,
            change: codec::encode(change)?,
            parked_at: self.now,
        };
        self.out.parked.push((at, parked));
        Ok(())
    }
}

/// The id under which a change is held with its whole stream: another one than its event's, under
/// which it may be parked again by its key when the stream goes on.
fn held_id(change: &Change, stream: &str) -> EventId {
    let transaction = &change.transaction;
    let origin = transaction.origin.system_id.as_bytes();
    let parts = [b"held", origin, stream.as_bytes(), change.position.bytes()];
    EventId::derive(transaction.committed_at, &parts)
}
