//! A row's values: slices of one buffer, never copied value by value.

use bytes::Bytes;

/// What a [`Cell`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CellKind {
    /// SQL NULL.
    Null,
    /// The source did not send this column (it is not part of the replica identity).
    Absent,
    /// A large value that the change did not touch and the source did not send.
    Unchanged,
    /// The canonical text of the column's type (see [`ColumnType`](crate::ColumnType)).
    Text,
    /// Of a dynamic column: a 64-bit integer, in decimal digits.
    Integer,
    /// Of a dynamic column: a 64-bit float, in the shortest digits that read back the same.
    Real,
    /// Of a dynamic column: text (UTF-8 is not promised).
    String,
    /// Of a dynamic column: raw bytes.
    Blob,
}

/// One value of a [`Row`]: its kind and where its bytes are.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    /// What it holds.
    pub kind: CellKind,
    /// Where its bytes begin in the row's buffer.
    pub start: u32,
    /// How many bytes it has.
    pub len: u32,
}

/// One value, borrowed from its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// SQL NULL.
    Null,
    /// Not sent by the source.
    Absent,
    /// Not touched by the change, not sent.
    Unchanged,
    /// A value and what its bytes are; never one of the three kinds above.
    Bytes(CellKind, &'a [u8]),
}

/// The values of one row, in the order of its table's columns.
#[derive(Debug, Clone)]
pub struct Row {
    data: Bytes,
    cells: Box<[Cell]>,
}

impl Row {
    /// A row of slices of `data`; `None` when a cell points outside of it.
    pub fn new(data: Bytes, cells: Box<[Cell]>) -> Option<Self> {
        let inside = |cell: &Cell| cell.start as usize + cell.len as usize <= data.len();
        cells.iter().all(inside).then_some(Self { data, cells })
    }

    /// How many columns it has.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether it has no columns at all.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The value of column `at`; [`Value::Absent`] past the last column.
    #[inline]
    pub fn value(&self, at: usize) -> Value<'_> {
        match self.cells.get(at) {
            None => Value::Absent,
            Some(cell) => match cell.kind {
                CellKind::Null => Value::Null,
                CellKind::Absent => Value::Absent,
                CellKind::Unchanged => Value::Unchanged,
                kind => Value::Bytes(kind, &self.data[cell.start as usize..][..cell.len as usize]),
            },
        }
    }

    /// The values in order.
    pub fn values(&self) -> impl Iterator<Item = Value<'_>> {
        (0..self.len()).map(|at| self.value(at))
    }

    /// A copy that keeps nothing but its own values in memory.
    #[must_use]
    pub fn detached(&self) -> Self {
        let bytes = self.cells.iter().map(|cell| cell.len as usize).sum();
        let mut data = Vec::with_capacity(bytes);
        let moved = |cell: &Cell| {
            let start = data.len() as u32;
            data.extend_from_slice(&self.data[cell.start as usize..][..cell.len as usize]);
            Cell { start, ..*cell }
        };
        let cells = self.cells.iter().map(moved).collect();
        Self { data: data.into(), cells }
    }

    /// About how much memory it holds, beside what shares its buffer.
    pub fn size(&self) -> usize {
        self.cells.iter().map(|cell| cell.len as usize).sum::<usize>() + size_of_val(&*self.cells)
    }
}

impl PartialEq for Row {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.values().eq(other.values())
    }
}

/// Builds a row value by value, for sources whose values are not slices of one message.
#[derive(Debug, Default)]
pub struct RowBuilder {
    data: Vec<u8>,
    cells: Vec<Cell>,
}

impl RowBuilder {
    /// A builder with room for `columns` values.
    pub fn with_capacity(columns: usize) -> Self {
        Self { data: Vec::new(), cells: Vec::with_capacity(columns) }
    }

    /// Adds a value; `bytes` must be empty for the kinds that hold none.
    pub fn push(&mut self, kind: CellKind, bytes: &[u8]) {
        let start = self.data.len() as u32;
        self.data.extend_from_slice(bytes);
        self.cells.push(Cell { kind, start, len: bytes.len() as u32 });
    }

    /// The finished row.
    pub fn build(self) -> Row {
        Row { data: self.data.into(), cells: self.cells.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detached_row_is_the_same_and_shares_nothing() {
        let cell = |kind, start, len| Cell { kind, start, len };
        let cells = [cell(CellKind::Text, 4, 2), cell(CellKind::Null, 9, 0), cell(CellKind::Text, 0, 3)];
        let shared = Bytes::from(b"one two three".to_vec());
        let row = Row::new(shared.clone(), Box::new(cells)).unwrap();
        let detached = row.detached();
        assert_eq!(detached, row);
        assert_eq!(&detached.data[..], b"twone");
        drop(row);
        assert!(shared.is_unique());
    }
}
