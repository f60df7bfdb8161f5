//! Tables, rows and changes for the tests of the formats.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::panic)] // each test uses a part of it

use std::sync::Arc;

use headwater_core::{
    CellKind, Change, Column, ColumnType, EventId, Identity, Op, Origin, Position, Row, RowBuilder, Table,
    Transaction,
};
use headwater_wire::format::{Contract, EventView};

pub const COMMITTED: i64 = 1_715_940_000_500_000;
pub const CAPTURED: i64 = 1_715_940_000_512_345;

pub fn table(columns: &[(&str, ColumnType)]) -> Arc<Table> {
    let column = |(at, (name, ty)): (usize, &(&str, ColumnType))| Column {
        name: (*name).to_owned(),
        ty: ty.clone(),
        key: at == 0,
    };
    Arc::new(Table {
        schema: "public".into(),
        name: "orders".into(),
        columns: columns.iter().enumerate().map(column).collect(),
        identity: Identity::Key,
    })
}

pub fn row(cells: &[(CellKind, &[u8])]) -> Row {
    let mut row = RowBuilder::with_capacity(cells.len());
    cells.iter().for_each(|(kind, bytes)| row.push(*kind, bytes));
    row.build()
}

/// A row of texts; `None` is NULL.
pub fn texts(values: &[Option<&str>]) -> Row {
    let cells: Vec<(CellKind, &[u8])> = values
        .iter()
        .map(|value| value.map_or((CellKind::Null, &b""[..]), |text| (CellKind::Text, text.as_bytes())))
        .collect();
    row(&cells)
}

pub fn transaction() -> Arc<Transaction> {
    let origin = Origin {
        source: "shop".into(),
        connector: "postgres".into(),
        database: "shopdb".into(),
        system_id: "7301".into(),
    };
    let (id, log_position) = ("771".into(), "0/16B3748".into());
    Arc::new(Transaction { origin: Arc::new(origin), id, committed_at: COMMITTED, log_position })
}

pub fn change(table: &Arc<Table>, op: Op, before: Option<Row>, after: Option<Row>) -> Change {
    let position = Position::of(1, [0x16b_3748, 0x16b_3700, 0]);
    Change { op, table: Arc::clone(table), before, after, position, transaction: transaction() }
}

pub fn view(change: &Change) -> EventView<'_> {
    EventView {
        id: EventId::from_bytes(*b"\x01\x8f\x85\xd0\xc3\x34\x71\x23\x85\x67\x89\xab\xcd\xef\x01\x23"),
        op: change.op,
        change,
        before: change.before.as_ref(),
        after: change.after.as_ref(),
        captured_at: CAPTURED,
        moved: None,
    }
}

/// A contract that exposes every column of a table by its own name, keyed by the first.
pub fn contract(table: &Table) -> Contract {
    Contract {
        stream: "orders".into(),
        version: 1,
        columns: table.columns.iter().map(|column| (column.name.clone(), column.name.clone())).collect(),
        key: table.columns.iter().take(1).map(|column| column.name.clone()).collect(),
        key_prefix: None,
    }
}
