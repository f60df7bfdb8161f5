//! What a stream carries.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;
use xxhash_rust::xxh3::Xxh3Default;

use crate::{Micros, Position};

/// An event's id: stable across redelivery and replay (invariant 3).
///
/// Laid out and printed as a UUID version 7 (RFC 9562): its time is the commit's, and what that
/// layout leaves to chance is a hash of where the event comes from, so the same change has the same id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId([u8; 16]);

impl EventId {
    /// The id of what happened at `time` and is told apart by `parts` (system identifier, stream, place).
    pub fn derive(time: Micros, parts: &[&[u8]]) -> Self {
        let mut hasher = Xxh3Default::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut bytes = hasher.digest128().to_be_bytes();
        let millis = u64::try_from(time.div_euclid(1000)).unwrap_or(0);
        bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
        bytes[6] = 0x70 | bytes[6] & 0x0f;
        bytes[8] = 0x80 | bytes[8] & 0x3f;
        Self(bytes)
    }

    /// An id that an outbox row brought along.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The 36 characters of its text form, without an allocation.
    pub fn to_text(self) -> [u8; 36] {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = [b'-'; 36];
        let mut at = 0;
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                at += 1;
            }
            text[at] = HEX[usize::from(byte >> 4)];
            text[at + 1] = HEX[usize::from(byte & 15)];
            at += 2;
        }
        text
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_text().iter().try_for_each(|byte| fmt::Write::write_char(f, char::from(*byte)))
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventId({self})")
    }
}

/// Reads the text form; dashes may stand anywhere or be missing.
impl FromStr for EventId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut bytes = [0; 16];
        let mut digits = text.chars().filter(|c| *c != '-').map(|c| c.to_digit(16).ok_or(()));
        for byte in &mut bytes {
            let high = digits.next().ok_or(())??;
            let low = digits.next().ok_or(())??;
            *byte = (high << 4 | low) as u8;
        }
        if digits.next().is_some() { Err(()) } else { Ok(Self(bytes)) }
    }
}

/// A named value beside the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: Arc<str>,
    /// Its value; usually UTF-8. `None` is a header without a value.
    pub value: Option<Bytes>,
}

/// What a stream carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Stable across redelivery.
    pub id: EventId,
    /// The stream it belongs to.
    pub stream: Arc<str>,
    /// The partition its order key decided; `None` leaves the choice to the bus (no key, no order).
    pub partition: Option<u32>,
    /// What it is: an op's word (`create`), or the type that an outbox row gave.
    pub kind: Arc<str>,
    /// The identity of its entity, as consumers of the bus see it.
    pub key: Option<Bytes>,
    /// The formatted event; `None` is a tombstone, which lets a compacted stream forget the key.
    pub payload: Option<Bytes>,
    /// Values beside the payload.
    pub headers: SmallVec<[Header; 2]>,
    /// When the change was committed.
    pub time: Micros,
    /// Where in its source it stands.
    pub position: Position,
}

impl Event {
    /// About how many bytes it takes on a bus.
    pub fn size(&self) -> usize {
        let header = |header: &Header| header.name.len() + header.value.as_ref().map_or(0, Bytes::len) + 8;
        let body = self.key.as_ref().map_or(0, Bytes::len) + self.payload.as_ref().map_or(0, Bytes::len);
        body + self.headers.iter().map(header).sum::<usize>() + 96
    }
}

/// An event as a subscription hands it out: with its place in its partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place: offsets rise within a partition, with gaps allowed.
    pub offset: u64,
    /// The event; its `partition` is always set.
    pub event: Event,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_parts_same_id_and_no_part_bleeds_into_the_next() {
        let id = |parts: &[&[u8]]| EventId::derive(1_700_000_000_000_000, parts);
        assert_eq!(id(&[b"a", b"b"]), id(&[b"a", b"b"]));
        assert_ne!(id(&[b"a", b"b"]), id(&[b"ab", b""]));
        assert_ne!(id(&[b"a"]), EventId::derive(1_700_000_000_001_000, &[b"a"]));
    }

    #[test]
    fn text_is_a_version_7_uuid_and_reads_back() {
        let id = EventId::derive(1_700_000_000_123_456, &[b"x"]);
        let text = id.to_string();
        assert_eq!(&text[..13], "018bcfe5-687b");
        assert_eq!(&text[14..15], "7");
        assert_eq!(text.parse(), Ok(id));
        assert_eq!("12".parse::<EventId>(), Err(()));
    }
}
