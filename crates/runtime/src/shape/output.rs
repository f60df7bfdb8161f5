//! Events under construction: their bytes in a few large buffers, never one allocation each.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use headwater_core::{Event, EventId, Micros, Position, partition_of};
use headwater_wire::format::Headers;

use super::{EventOrigin, Shaped};

/// A buffer is closed when it holds this many bytes.
const CHUNK: usize = 256 << 10;

/// Collects the events of a batch.
#[derive(Default)]
pub struct Output {
    /// What is being made.
    pub shaped: Shaped,
    /// Where keys and payloads are written; see [`Output::begin`].
    pub buffer: Vec<u8>,
    open: Vec<Parts>,
}

/// Everything of an event but its bytes.
pub struct Head {
    /// The change it comes from.
    pub change: u32,
    /// The outbox it was a row of.
    pub outbox: Option<Arc<str>>,
    /// Its id.
    pub id: EventId,
    /// Its stream.
    pub stream: Arc<str>,
    /// Its kind.
    pub kind: Arc<str>,
    /// Its headers.
    pub headers: Headers,
    /// When its change was committed.
    pub time: Micros,
    /// Where its change stands.
    pub position: Position,
}

/// Where the parts of an event lie in [`Output::buffer`].
#[derive(Debug, Clone, Default)]
pub struct Parts {
    /// Its key.
    pub key: Option<Range<usize>>,
    /// Its order key, where that is not its key.
    pub order_key: Option<Range<usize>>,
    /// Its payload.
    pub payload: Option<Range<usize>>,
}

/// Which partition an event goes to.
#[derive(Clone, Copy)]
pub enum To {
    /// The one that the order key decides, of this many.
    Key(u32),
    /// This one.
    Partition(u32),
}

impl Output {
    /// Where the next bytes will lie. Closes a buffer that is full, so that what is cut off after an
    /// error is only what was appended since.
    pub fn begin(&mut self) -> usize {
        if self.buffer.len() >= CHUNK {
            self.close();
        }
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(CHUNK + CHUNK / 4);
        }
        self.buffer.len()
    }

    /// The order key that `parts` has.
    pub fn order_key(&self, parts: &Parts) -> Option<&[u8]> {
        let range = parts.order_key.as_ref().or(parts.key.as_ref())?;
        self.buffer.get(range.clone())
    }

    /// Adds an event whose bytes lie in the buffer.
    pub fn push(&mut self, head: Head, parts: Parts, to: To) {
        let partition = match to {
            To::Partition(partition) => Some(partition),
            To::Key(partitions) => self.order_key(&parts).map(|key| partition_of(key, partitions)),
        };
        let Head { change, outbox, id, stream, kind, headers, time, position } = head;
        let (key, payload) = (None, None);
        self.shaped.events.push(Event { id, stream, partition, kind, key, payload, headers, time, position });
        self.shaped.origins.push(EventOrigin { change, order_key: None, outbox });
        self.open.push(parts);
    }

    /// The finished batch.
    pub fn finish(mut self) -> Shaped {
        self.close();
        self.shaped
    }

    fn close(&mut self) {
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        let slice = |range: Option<Range<usize>>| range.map(|range| bytes.slice(range));
        let first = self.shaped.events.len() - self.open.len();
        let (_, events) = self.shaped.events.split_at_mut(first);
        let (_, origins) = self.shaped.origins.split_at_mut(first);
        for ((parts, event), origin) in self.open.drain(..).zip(events).zip(origins) {
            event.key = slice(parts.key);
            event.payload = slice(parts.payload);
            origin.order_key = slice(parts.order_key);
        }
    }
}
