//! Prints how long each format takes for an event: `cargo run --release -p headwater-wire --example format_speed`.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_core::{CellKind, Change, ColumnType, EventId, Op, Row, RowBuilder, Table, Value};
use headwater_wire::format::Format;

const ROUND: usize = 1000;

fn main() {
    let table = common::table(&[
        ("id", ColumnType::Int64),
        ("customer", ColumnType::Text),
        ("status", ColumnType::Enum),
        ("total", ColumnType::Numeric { precision_scale: Some((10, 2)) }),
        ("placed_at", ColumnType::TimestampTz(None)),
        ("note", ColumnType::Text),
    ]);
    let rows: Vec<Row> = (0..ROUND).map(order).collect();
    let bytes = rows.iter().flat_map(Row::values).map(|value| match value {
        Value::Bytes(_, bytes) => bytes.len(),
        _ => 0,
    });
    println!("rows of {} bytes in 6 columns", bytes.sum::<usize>() / ROUND);
    let transaction = common::transaction();
    let changes: Vec<Change> = rows.into_iter().map(|row| read(&table, row, &transaction)).collect();
    let mut alone = changes.clone();
    alone.iter_mut().for_each(|change| change.transaction = common::transaction());
    for name in ["headwater", "debezium"] {
        let format: Format = serde_json::from_str(&format!("\"{name}\"")).unwrap();
        for (of, changes) in [("one transaction", &changes), ("a transaction each", &alone)] {
            let (nanos, bytes) = measure(&format, &table, changes);
            println!("{name:9} {of:18} {nanos:5.0} ns/event, key and payload of {bytes} bytes");
        }
    }
}

fn order(number: usize) -> Row {
    let mut row = RowBuilder::with_capacity(6);
    row.push(CellKind::Text, (1_000_000 + number).to_string().as_bytes());
    row.push(CellKind::Text, format!("customer-{number:06}@example.com").as_bytes());
    row.push(CellKind::Text, b"shipped");
    row.push(CellKind::Text, b"1234.56");
    row.push(CellKind::Text, b"2024-05-17 10:00:00.123456+00");
    row.push(CellKind::Text, b"a note of some length, as they are written by people who fill in forms");
    row.build()
}

fn read(table: &Arc<Table>, row: Row, transaction: &Arc<headwater_core::Transaction>) -> Change {
    let mut change = common::change(table, Op::Read, None, Some(row));
    change.transaction = Arc::clone(transaction);
    change
}

/// The best of many rounds, and the bytes of one event.
fn measure(format: &Format, table: &Arc<Table>, changes: &[Change]) -> (f64, usize) {
    let mut encoder = format.encoder(&common::contract(table), table).unwrap();
    let mut best = Duration::MAX;
    let mut out = Vec::with_capacity(ROUND * 1024);
    for _ in 0..500 {
        out.clear();
        let begun = Instant::now();
        for change in changes {
            let mut view = common::view(change);
            view.id = EventId::derive(common::COMMITTED, &[b"7301", change.position.bytes()]);
            encoder.key(view.key_row().unwrap(), &mut out).unwrap();
            encoder.payload(&view, &mut out).unwrap();
        }
        best = best.min(begun.elapsed());
        black_box(&out);
    }
    (best.as_nanos() as f64 / changes.len() as f64, out.len() / changes.len())
}
