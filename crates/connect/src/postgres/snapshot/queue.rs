//! What is left to read, and who goes for it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Tables with their pieces. A worker that [comes](Queue::come) for a table has no piece of it until it has
/// the table's lock and [arrives](Queue::arrive); others may have taken all of them by then.
pub struct Queue<T, P> {
    tables: Vec<T>,
    left: Mutex<Vec<Left<P>>>,
}

struct Left<P> {
    pieces: VecDeque<P>,
    /// Workers that have come and not arrived.
    coming: usize,
}

impl<T, P> Queue<T, P> {
    /// All that there is to read.
    pub fn new(tables: impl IntoIterator<Item = (T, Vec<P>)>) -> Self {
        let (tables, left) = tables
            .into_iter()
            .map(|(table, pieces)| (table, Left { pieces: pieces.into(), coming: 0 }))
            .unzip();
        Self { tables, left: Mutex::new(left) }
    }

    /// The tables.
    pub fn tables(&self) -> &[T] {
        &self.tables
    }

    /// How many pieces nobody has taken.
    pub fn pieces(&self) -> usize {
        self.left().iter().map(|left| left.pieces.len()).sum()
    }

    /// The first table that has a piece for one more worker than are coming for it.
    pub fn come(&self) -> Option<usize> {
        let mut left = self.left();
        let at = left.iter().position(|left| left.pieces.len() > left.coming)?;
        left[at].coming += 1;
        Some(at)
    }

    /// Takes the first piece, by a worker that had come.
    pub fn arrive(&self, at: usize) -> Option<P> {
        let mut left = self.left();
        left[at].coming -= 1;
        left[at].pieces.pop_front()
    }

    /// Takes another piece.
    pub fn take(&self, at: usize) -> Option<P> {
        self.left()[at].pieces.pop_front()
    }

    fn left(&self) -> MutexGuard<'_, Vec<Left<P>>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_come_for_a_table_than_it_has_pieces() {
        let queue = Queue::new([("a", vec![1]), ("b", vec![2, 3])]);
        let coming = [queue.come(), queue.come(), queue.come(), queue.come()];
        assert_eq!(coming, [Some(0), Some(1), Some(1), None]);
        assert_eq!((queue.arrive(1), queue.take(1), queue.arrive(1)), (Some(2), Some(3), None));
        assert_eq!((queue.come(), queue.pieces()), (None, 1), "somebody is coming for the last one");
        assert_eq!((queue.arrive(0), queue.take(0)), (Some(1), None));
        assert_eq!(queue.tables(), ["a", "b"]);
    }
}
