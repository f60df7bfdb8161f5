//! What tables looked like, to say when a column that a stream exposes changes its type.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use headwater_core::{Column, Table};

/// How many shapes of one table are remembered.
const SHAPES: usize = 8;

/// The shapes that a source's tables had since the start, by name.
#[derive(Debug, Default)]
pub struct Seen(Mutex<HashMap<String, VecDeque<Arc<Table>>>>);

impl Seen {
    /// Takes note of a shape; when it is a new one, what the table looked like before.
    pub fn before(&self, table: &Arc<Table>) -> Option<Arc<Table>> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let shapes = seen.entry(table.full_name()).or_default();
        // What was parked or read again brings an old shape back: that is no change.
        if shapes.contains(table) {
            return None;
        }
        let before = shapes.back().cloned();
        if shapes.len() == SHAPES {
            shapes.pop_front();
        }
        shapes.push_back(Arc::clone(table));
        before
    }
}

/// The columns that have another type than before: as they were, and as they are.
pub fn retyped<'a>(before: &'a Table, now: &'a Table) -> impl Iterator<Item = (&'a Column, &'a Column)> {
    let pair = |column: &'a Column| {
        let old = before.columns.get(before.column(&column.name)?)?;
        (old.ty != column.ty).then_some((old, column))
    };
    now.columns.iter().filter_map(pair)
}

#[cfg(test)]
mod tests {
    use headwater_core::{ColumnType, Identity};

    use super::*;

    fn table(types: [ColumnType; 2]) -> Arc<Table> {
        let column = |(name, ty): (&str, _)| Column { name: name.into(), ty, key: false };
        let columns = ["a", "b"].into_iter().zip(types).map(column).collect();
        Arc::new(Table { schema: "s".into(), name: "t".into(), columns, identity: Identity::Full })
    }

    #[test]
    fn a_new_shape_is_told_once_and_says_which_column_changed() {
        let seen = Seen::default();
        let old = table([ColumnType::Int32, ColumnType::Text]);
        let new = table([ColumnType::Int64, ColumnType::Text]);
        assert_eq!(seen.before(&old), None);
        assert_eq!(seen.before(&table([ColumnType::Int32, ColumnType::Text])), None);
        let before = seen.before(&new).unwrap();
        let changed: Vec<_> =
            retyped(&before, &new).map(|(old, new)| (&*new.name, &old.ty, &new.ty)).collect();
        assert_eq!(changed, [("a", &ColumnType::Int32, &ColumnType::Int64)]);
        assert_eq!((seen.before(&new), seen.before(&old)), (None, None), "both are known");
    }
}
