//! How long shaping takes: `cargo run --release -p headwater-runtime --example shape [ROWS]` prints
//! nanoseconds an event (shaped and encoded) for a row of six columns and about 150 bytes.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Instant;

use headwater_core::{
    Batch, CellKind, Change, Column, ColumnType, Identity, Op, Origin, Position, Row, RowBuilder, Table,
    Transaction,
};
use headwater_runtime::{Shaping, StreamConfig};

fn table() -> Arc<Table> {
    let column = |name: &str, ty| Column { name: name.into(), ty, key: name == "id" };
    Arc::new(Table {
        schema: "public".into(),
        name: "orders".into(),
        columns: vec![
            column("id", ColumnType::Int64),
            column("customer_id", ColumnType::Int64),
            column("state", ColumnType::Text),
            column("total", ColumnType::Numeric { precision_scale: Some((12, 2)) }),
            column("placed_at", ColumnType::TimestampTz(None)),
            column("note", ColumnType::Text),
        ],
        identity: Identity::Key,
    })
}

fn row(id: u64) -> Row {
    let mut row = RowBuilder::with_capacity(6);
    let note = "a note of the usual length that somebody typed into the box below the order, and then some";
    let id = id.to_string();
    let values = [&*id, "4711", "open", "1234.50", "2024-05-17 10:00:00.123456+00", note].map(str::as_bytes);
    values.into_iter().for_each(|value| row.push(CellKind::Text, value));
    row.build()
}

fn batch(first: u64, count: u64, table: &Arc<Table>) -> Batch {
    let origin = Origin {
        source: "shop".into(),
        connector: "postgres".into(),
        database: "shop".into(),
        system_id: "7300000000000000000".into(),
    };
    let transaction = Arc::new(Transaction {
        origin: Arc::new(origin),
        id: "4711".into(),
        committed_at: 1_700_000_000_000_000,
        log_position: "0/16B3748".into(),
    });
    let change = |at: u64| Change {
        op: Op::Create,
        table: Arc::clone(table),
        before: None,
        after: Some(row(at)),
        position: Position::of(1, [1, at, 0]),
        transaction: Arc::clone(&transaction),
    };
    Batch { changes: (first..first + count).map(change).collect(), checkpoint: None }
}

fn main() {
    let rows: u64 = std::env::args().nth(1).map_or(1_000_000, |rows| rows.parse().unwrap());
    let table = table();
    let streams = [
        ("columns = '*'", "headwater"),
        ("columns = '*'\nformat = 'debezium'", "debezium"),
        ("columns = '*'\nwhere = 'after.state != \"draft\"'", "headwater with a condition"),
    ];
    for (config, name) in streams {
        let config: StreamConfig = toml::from_str(&format!("from = 'shop.orders'\n{config}")).unwrap();
        let mut shaping = Shaping::of("orders", &config, "shop").unwrap();
        let (mut spent, mut bytes, mut events) = (std::time::Duration::ZERO, 0, 0);
        for first in (0..rows).step_by(1000) {
            let batch = batch(first, 1000, &table);
            let began = Instant::now();
            let shaped = shaping.events(batch);
            spent += began.elapsed();
            events += shaped.len();
            bytes += shaped.iter().map(|event| event.payload.as_ref().map_or(0, |p| p.len())).sum::<usize>();
        }
        let (each, size) = (spent.as_nanos() / events.max(1) as u128, bytes / events.max(1));
        println!("{name:28} {each:6} ns an event, {size} bytes of payload, {events} events");
    }
}
