//! What shaping makes of a batch.

use std::sync::Arc;

use bytes::Bytes;
use headwater_core::ports::{HoldsBack, Parked};
use headwater_core::{Change, Checkpoint, Event, EventId, StreamSpec};

/// A batch after shaping: its events, what could not become one, and the changes they come from, kept
/// until the bus has taken the events because a rejected one is parked as its change.
#[derive(Default)]
pub struct Shaped {
    /// The changes that were read, in order.
    pub changes: Vec<Change>,
    /// The events, in order.
    pub events: Vec<Event>,
    /// For each event, where it comes from.
    pub origins: Vec<EventOrigin>,
    /// What could not become an event, in order.
    pub troubles: Vec<Trouble>,
    /// Streams that outbox rows named for the first time.
    pub new_streams: Vec<StreamSpec>,
    /// Where the source stands after the batch.
    pub checkpoint: Option<Checkpoint>,
    /// About how much memory the changes and events hold.
    pub bytes: usize,
    /// How many batches that were read this is made of.
    pub reads: usize,
}

/// Where an event comes from.
pub struct EventOrigin {
    /// Which of the batch's changes.
    pub change: u32,
    /// Its order key, where that is not the event's key.
    pub order_key: Option<Bytes>,
    /// The outbox it was a row of, which may be held back as a whole like a stream.
    pub outbox: Option<Arc<str>>,
}

impl EventOrigin {
    /// The order key of an event, where it has one.
    pub fn order_key<'a>(&'a self, event: &'a Event) -> Option<&'a Bytes> {
        self.order_key.as_ref().or(event.key.as_ref())
    }
}

/// A change that could not become an event of a stream.
#[derive(Debug, Clone)]
pub struct Trouble {
    /// Which of the batch's changes.
    pub change: u32,
    /// The stream it was meant for.
    pub stream: Arc<str>,
    /// The id its event would have.
    pub id: EventId,
    /// What waits behind it; the whole stream when the contract is broken or the key cannot be read.
    pub holds: HoldsBack,
    /// The outbox it was a row of.
    pub outbox: Option<Arc<str>>,
    /// Why.
    pub reason: String,
}

impl Shaped {
    /// Forgets all that is not what a parked change was parked for: its stream, and but for a stream held
    /// whole its order key; or the outbox it was a row of.
    pub fn keep(&mut self, record: &Parked) {
        let whole = record.holds == HoldsBack::Stream;
        let row = |outbox: &Option<Arc<str>>| outbox.as_ref() == Some(&record.stream);
        let ours = |(event, origin): &(Event, EventOrigin)| {
            let holds = || HoldsBack::key(origin.order_key(event).cloned());
            row(&origin.outbox) || event.stream == record.stream && (whole || holds() == record.holds)
        };
        let events = std::mem::take(&mut self.events).into_iter().zip(std::mem::take(&mut self.origins));
        (self.events, self.origins) = events.filter(ours).unzip();
        self.troubles.retain(|trouble| {
            let all = whole || trouble.holds == HoldsBack::Stream;
            row(&trouble.outbox) || trouble.stream == record.stream && (all || trouble.holds == record.holds)
        });
    }

    /// Adds the batch that was read after this one.
    pub fn append(&mut self, mut later: Self) {
        let shift = self.changes.len() as u32;
        later.origins.iter_mut().for_each(|origin| origin.change += shift);
        later.troubles.iter_mut().for_each(|trouble| trouble.change += shift);
        self.changes.append(&mut later.changes);
        self.events.append(&mut later.events);
        self.origins.append(&mut later.origins);
        self.troubles.append(&mut later.troubles);
        self.new_streams.append(&mut later.new_streams);
        self.checkpoint = later.checkpoint.or(self.checkpoint.take());
        self.bytes += later.bytes;
        self.reads += later.reads;
    }
}
