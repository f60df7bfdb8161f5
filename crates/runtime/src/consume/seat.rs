//! A partition that is held: which of its events are on their way, and how far it has come.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use headwater_core::ports::{Cursor, Mark};

/// A partition under one epoch.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) stream: Arc<str>,
    pub(super) partition: u32,
    pub(super) epoch: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Offsets that were read and are not done.
    pending: BTreeSet<u64>,
    /// One past the last that was read.
    next: u64,
    /// The cursor in the inbox's database.
    written: u64,
    /// A transaction is writing the cursor: others leave its row alone, or they would wait for each other.
    writing: bool,
    /// The cursor on the bus.
    committed: u64,
    revoked: bool,
}

impl Seat {
    /// One that begins at `offset`; `committed` is where the group stands on the bus.
    pub(super) fn new(cursor: &Cursor, offset: u64) -> Arc<Self> {
        let state = State {
            pending: BTreeSet::new(),
            next: offset,
            written: offset,
            writing: false,
            committed: cursor.offset,
            revoked: false,
        };
        Arc::new(Self {
            stream: Arc::clone(&cursor.stream),
            partition: cursor.partition,
            epoch: cursor.epoch,
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An event was read.
    pub(super) fn read(&self, offset: u64) {
        let mut state = self.state();
        state.pending.insert(offset);
        state.next = state.next.max(offset + 1);
    }

    /// It is another's now: what waits to be handled is left to that one.
    pub(super) fn revoke(&self) {
        self.state().revoked = true;
    }

    /// Whether it is another's.
    pub(super) fn is_revoked(&self) -> bool {
        self.state().revoked
    }

    /// The cursor that a transaction which ends `done` (sorted) has to write, if it has to write one: then
    /// [`Seat::ended`] must follow.
    pub(super) fn begin(&self, done: &[u64]) -> Option<u64> {
        let mut state = self.state();
        let open = state.pending.iter().find(|offset| done.binary_search(offset).is_err());
        let low = open.copied().unwrap_or(state.next);
        if state.writing || low <= state.written {
            return None;
        }
        state.writing = true;
        Some(low)
    }

    /// A transaction that ended `done` and wrote this cursor has committed, or has not.
    pub(super) fn ended(&self, done: &[u64], wrote: Option<u64>, committed: bool) {
        let mut state = self.state();
        if committed {
            for offset in done {
                state.pending.remove(offset);
            }
        }
        if let Some(low) = wrote {
            state.writing = false;
            if committed {
                state.written = state.written.max(low);
            }
        }
    }

    /// The cursor that the bus does not know yet.
    pub(super) fn to_commit(&self) -> Option<Cursor> {
        let state = self.state();
        let (stream, partition, epoch) = (Arc::clone(&self.stream), self.partition, self.epoch);
        (state.written > state.committed && !state.revoked).then(|| Cursor {
            stream,
            partition,
            epoch,
            offset: state.written,
        })
    }

    /// The bus knows it.
    pub(super) fn committed(&self, offset: u64) {
        self.state().committed = offset;
    }

    /// The mark of a cursor.
    pub(super) fn mark(&self, offset: u64) -> Mark {
        Mark { stream: Arc::clone(&self.stream), partition: self.partition, offset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat(offset: u64) -> Arc<Seat> {
        Seat::new(&Cursor { stream: "s".into(), partition: 0, epoch: 1, offset }, offset)
    }

    #[test]
    fn the_cursor_is_the_lowest_that_is_not_done() {
        let seat = seat(10);
        for offset in [10, 11, 14, 15] {
            seat.read(offset);
        }
        assert_eq!(seat.begin(&[11]), None, "10 is open");
        seat.ended(&[11], None, true);
        assert_eq!(seat.begin(&[10]), Some(14), "gaps are nothing");
        assert_eq!(seat.begin(&[14]), None, "another writes it");
        seat.ended(&[14], None, true);
        assert_eq!(seat.to_commit(), None, "it is not written yet");
        seat.ended(&[10], Some(14), true);
        assert_eq!(seat.to_commit().unwrap().offset, 14);
        assert_eq!(seat.begin(&[]), Some(15));
        seat.ended(&[], Some(15), false);
        assert_eq!(seat.begin(&[15]), Some(16), "what failed is written again");
    }

    #[test]
    fn what_is_not_committed_stays_open() {
        let seat = seat(0);
        seat.read(0);
        assert_eq!(seat.begin(&[0]), Some(1));
        seat.ended(&[0], Some(1), false);
        assert_eq!(seat.begin(&[]), None);
        assert_eq!(seat.to_commit(), None);
    }
}
