//! How much may be read and not handled (invariant 7).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Room for events, by count and by bytes.
pub(super) struct Room {
    used: Mutex<(usize, usize)>,
    events: usize,
    bytes: usize,
    freed: Notify,
}

/// Room that an event takes; given back when dropped.
pub(super) struct Taken {
    room: Arc<Room>,
    bytes: usize,
}

impl Room {
    pub(super) fn new(events: usize, bytes: usize) -> Arc<Self> {
        Arc::new(Self { used: Mutex::new((0, 0)), events, bytes, freed: Notify::new() })
    }

    fn used(&self) -> MutexGuard<'_, (usize, usize)> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anything more may be read.
    pub(super) fn is_left(&self) -> bool {
        let (events, bytes) = *self.used();
        events < self.events && bytes < self.bytes
    }

    /// Waits until something more may be read.
    pub(super) async fn left(&self) {
        while !self.is_left() {
            let freed = self.freed.notified();
            if self.is_left() {
                return;
            }
            freed.await;
        }
    }

    /// Takes room, whether there is any or not: what was read has to be somewhere.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Taken {
        let mut used = self.used();
        *used = (used.0 + 1, used.1 + bytes);
        Taken { room: Arc::clone(self), bytes }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut used = self.room.used();
        *used = (used.0.saturating_sub(1), used.1.saturating_sub(self.bytes));
        drop(used);
        // One reader waits; it remembers a call that comes before.
        self.room.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_bounded_by_count_and_by_bytes() {
        let room = Room::new(2, 100);
        let first = room.take(10);
        assert!(room.is_left());
        let second = room.take(10);
        assert!(!room.is_left(), "two events");
        drop(second);
        assert!(room.is_left());
        let large = room.take(95);
        drop(first);
        assert!(room.is_left(), "95 bytes");
        drop(room.take(5));
        drop(large);
        assert_eq!(*room.used(), (0, 0));
    }
}
