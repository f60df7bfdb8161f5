//! A change as bytes, with all that is needed to shape it again later.
//!
//! Layout: a version byte; the length (u32, little-endian) of a JSON header and the header (op, table,
//! transaction, position); then the row before and the row after. A row is one byte, 0 when there is
//! none and 1 before a count of cells (u32) and for each cell its kind (one byte), its length (u32) and
//! its bytes.

use std::sync::Arc;

use bytes::Bytes;
use headwater_core::{
    CellKind, Change, Error, Kind, Op, Position, Result, Row, RowBuilder, Table, Transaction, Value,
};
use serde::{Deserialize, Serialize};

const VERSION: u8 = 1;

/// Every kind, at the place of the byte that stands for it.
const KINDS: [CellKind; 8] = [
    CellKind::Null,
    CellKind::Absent,
    CellKind::Unchanged,
    CellKind::Text,
    CellKind::Integer,
    CellKind::Real,
    CellKind::String,
    CellKind::Blob,
];

#[derive(Serialize, Deserialize)]
struct Header {
    op: Op,
    table: Arc<Table>,
    transaction: Arc<Transaction>,
    position: Position,
}

/// The change as bytes.
pub fn encode(change: &Change) -> Result<Bytes> {
    let header = Header {
        op: change.op,
        table: Arc::clone(&change.table),
        transaction: Arc::clone(&change.transaction),
        position: change.position,
    };
    let header = serde_json::to_vec(&header)
        .map_err(|error| Error::new(Kind::Internal, "writing a change to park").because(error))?;
    let mut out = Vec::with_capacity(header.len() + change.size() + 16);
    out.push(VERSION);
    out.extend_from_slice(&(header.len() as u32).to_le_bytes());
    out.extend_from_slice(&header);
    write_row(&mut out, change.before.as_ref());
    write_row(&mut out, change.after.as_ref());
    Ok(out.into())
}

fn write_row(out: &mut Vec<u8>, row: Option<&Row>) {
    let Some(row) = row else { return out.push(0) };
    out.push(1);
    out.extend_from_slice(&(row.len() as u32).to_le_bytes());
    for value in row.values() {
        let (kind, bytes) = match value {
            Value::Null => (CellKind::Null, &[][..]),
            Value::Absent => (CellKind::Absent, &[][..]),
            Value::Unchanged => (CellKind::Unchanged, &[][..]),
            Value::Bytes(kind, bytes) => (kind, bytes),
        };
        out.push(kind as u8);
        out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(bytes);
    }
}

/// The change that [`encode`] wrote. An error of kind `Decode` for any other bytes.
pub fn decode(bytes: &[u8]) -> Result<Change> {
    let mut reader = Reader(bytes);
    reader.change().ok_or_else(|| {
        Error::new(Kind::Decode, "a parked change cannot be read back")
            .hint("it was written by another version of headwater, or the parked store is damaged")
    })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn sized(&mut self) -> Option<&'a [u8]> {
        let len = self.number()?;
        self.take(len)
    }

    fn number(&mut self) -> Option<usize> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?) as usize)
    }

    fn change(&mut self) -> Option<Change> {
        if self.byte()? != VERSION {
            return None;
        }
        let Header { op, table, transaction, position } = serde_json::from_slice(self.sized()?).ok()?;
        let before = self.row()?;
        let after = self.row()?;
        self.0.is_empty().then_some(Change { op, table, before, after, position, transaction })
    }

    fn row(&mut self) -> Option<Option<Row>> {
        match self.byte()? {
            0 => return Some(None),
            1 => {}
            _ => return None,
        }
        let count = self.number()?;
        let mut row = RowBuilder::default();
        for _ in 0..count {
            let kind = *KINDS.get(usize::from(self.byte()?))?;
            row.push(kind, self.sized()?);
        }
        Some(Some(row.build()))
    }
}

#[cfg(test)]
mod tests {
    use headwater_core::{Column, ColumnType, Field, Identity, Origin};
    use proptest::prelude::*;

    use super::*;

    fn rows() -> impl Strategy<Value = Option<Row>> {
        let cell = (0..KINDS.len(), proptest::collection::vec(any::<u8>(), 0..20));
        proptest::option::of(proptest::collection::vec(cell, 0..8)).prop_map(|cells| {
            let mut row = RowBuilder::default();
            for (kind, bytes) in cells? {
                let holds_bytes = kind >= CellKind::Text as usize;
                row.push(KINDS[kind], if holds_bytes { &bytes } else { &[] });
            }
            Some(row.build())
        })
    }

    fn types() -> impl Strategy<Value = ColumnType> {
        prop_oneof![
            Just(ColumnType::Int64),
            Just(ColumnType::Numeric { precision_scale: Some((10, -2)) }),
            Just(ColumnType::Array(Box::new(ColumnType::Timestamp(Some(3))))),
            Just(ColumnType::Composite([Field { name: "é".into(), ty: ColumnType::Uuid }].into())),
            ".*".prop_map(ColumnType::Other),
        ]
    }

    prop_compose! {
        fn changes()(
            names in (".*", ".*", ".*"), ty in types(), before in rows(), after in rows(),
            position in any::<(u64, [u64; 3])>(), committed_at in any::<i64>(),
        ) -> Change {
            let column = Column { name: names.0, ty, key: true };
            let table = Table { schema: names.1, name: names.2, columns: vec![column], identity: Identity::Full };
            let origin = Origin {
                source: "s".into(), connector: "c".into(), database: "d".into(), system_id: "7".into(),
            };
            let transaction =
                Transaction { origin: Arc::new(origin), id: "9".into(), committed_at, log_position: "0/1".into() };
            Change {
                op: Op::Update, table: Arc::new(table), before, after,
                position: Position::of(position.0, position.1), transaction: Arc::new(transaction),
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(change in changes()) {
            let back = decode(&encode(&change).unwrap()).unwrap();
            prop_assert_eq!(back.op, change.op);
            prop_assert_eq!(back.table, change.table);
            prop_assert_eq!(back.transaction, change.transaction);
            prop_assert_eq!(back.position, change.position);
            prop_assert_eq!(back.before, change.before);
            prop_assert_eq!(back.after, change.after);
        }

        #[test]
        fn what_is_cut_or_made_up_is_refused(change in changes(), cut in any::<prop::sample::Index>(), noise: Vec<u8>) {
            let whole = encode(&change).unwrap();
            prop_assert!(decode(&whole[..cut.index(whole.len())]).is_err());
            if noise.first() != Some(&VERSION) {
                prop_assert!(decode(&noise).is_err());
            }
        }
    }
}
