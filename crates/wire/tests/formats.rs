//! docs/formats.md: its examples are what the encoders write.
//!
//! `UPDATE_DOCS=1 cargo test -p headwater-wire --test formats` writes them anew; look at what changed.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
mod pretty;

use std::sync::Arc;

use common::{CAPTURED, row, table, texts};
use headwater_core::{CellKind, Change, ColumnType, EventId, Op, Position, Row, Table, Transaction};
use headwater_wire::format::{Contract, Format, Headers, Moved, OutboxColumns, OutboxView};
use pretty::pretty;

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/formats.md");

fn orders() -> Arc<Table> {
    table(&[
        ("id", ColumnType::Int64),
        ("status", ColumnType::Text),
        ("total", ColumnType::Numeric { precision_scale: Some((10, 2)) }),
        ("note", ColumnType::Text),
        ("placed_at", ColumnType::TimestampTz(None)),
    ])
}

fn contract() -> Contract {
    let named = |(column, exposed): (&str, &str)| (column.to_owned(), exposed.to_owned());
    let columns =
        [("id", "id"), ("status", "state"), ("total", "total"), ("note", "note"), ("placed_at", "placed_at")];
    Contract {
        stream: "orders".into(),
        version: 1,
        columns: columns.map(named).into(),
        key: vec!["id".into()],
        key_prefix: None,
    }
}

fn full(id: &str, status: &str) -> Row {
    texts(&[Some(id), Some(status), Some("19.90"), None, Some("2024-05-17 10:00:00.5+00")])
}

fn updated() -> Row {
    let text = |text: &'static str| (CellKind::Text, text.as_bytes());
    let unchanged = (CellKind::Unchanged, &b""[..]);
    row(&[text("42"), text("shipped"), text("19.90"), unchanged, text("2024-05-17 10:00:00.5+00")])
}

fn only_key(id: &str) -> Row {
    let absent = (CellKind::Absent, &b""[..]);
    row(&[(CellKind::Text, id.as_bytes()), absent, absent, absent, absent])
}

/// What a message is like in the docs.
fn show(key: Option<&[u8]>, headers: &Headers, payload: &[u8]) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    serde_json::from_slice::<serde_json::Value>(payload).unwrap();
    let mut shown = format!("key      {}\n", key.map_or("(none)".into(), text));
    for header in headers {
        let value = header.value.as_ref().map_or("(no value)".into(), |value| text(value));
        shown += &format!("header   {} = {value}\n", header.name);
    }
    shown + "payload  " + &pretty(&text(payload)) + "\n"
}

fn message(format: &Format, op: Op, before: Option<Row>, after: Option<Row>, other: Option<Row>) -> String {
    let table = orders();
    let mut change = common::change(&table, op, before, after);
    if op == Op::Read {
        change.transaction =
            Arc::new(Transaction { id: "00000003-0000001B-1".into(), ..(*common::transaction()).clone() });
        change.position = Position::of(1, [0x16b_3000, 0, 17]);
    }
    written(format, &table, &change, other.as_ref())
}

fn written(format: &Format, table: &Arc<Table>, change: &Change, other: Option<&Row>) -> String {
    let mut encoder = format.encoder(&contract(), table).unwrap();
    let mut view = common::view(change);
    view.moved = other.map(|other| Moved { other });
    let (mut key, mut payload, mut headers) = (Vec::new(), Vec::new(), Headers::new());
    let has_key = view.key_row().is_some_and(|row| encoder.key(row, &mut key).unwrap());
    encoder.payload(&view, &mut payload).unwrap();
    encoder.headers(&view, &mut headers).unwrap();
    show(has_key.then_some(&key[..]), &headers, &payload)
}

fn outbox(format: &Format) -> String {
    let table = table(&[
        ("id", ColumnType::Uuid),
        ("aggregatetype", ColumnType::Text),
        ("aggregateid", ColumnType::Text),
        ("type", ColumnType::Text),
        ("payload", ColumnType::Jsonb),
        ("headers", ColumnType::Jsonb),
    ]);
    let row = texts(&[
        Some("4d47e190-0402-4048-bc2c-89dd54343cdc"),
        Some("order"),
        Some("42"),
        Some("OrderPlaced"),
        Some("{\"id\": 42, \"total\": 19.90}"),
        Some("{\"traceparent\": \"00-4bf92f35-00f067aa-01\"}"),
    ]);
    let reader = OutboxColumns::default().reader(&table).unwrap();
    let row = reader.read(&row).unwrap();
    let view = OutboxView {
        id: row.id.parse::<EventId>().unwrap(),
        stream: &Arc::from("orders"),
        row: &row,
        schema: "public",
        table: "outbox",
        transaction: &common::transaction(),
        position: Position::of(1, [0x16b_3748, 0x16b_3700, 0]),
        captured_at: CAPTURED,
    };
    let mut encoder = format.outbox_encoder(1);
    let (mut key, mut payload, mut headers) = (Vec::new(), Vec::new(), Headers::new());
    assert!(encoder.key(&row, &mut key).unwrap());
    assert!(encoder.payload(&view, &mut payload).unwrap());
    encoder.headers(&view, &mut headers).unwrap();
    show(Some(&key), &headers, &payload)
}

fn example(name: &str) -> String {
    let (format, what) = name.split_once(' ').unwrap();
    let format: Format = match format {
        "headwater" => Format::Headwater,
        _ => serde_json::from_str(
            r#"{"kind":"debezium","table_fields_additional_placement":"type:header:eventType"}"#,
        )
        .unwrap(),
    };
    let message = |op, before, after, other| message(&format, op, before, after, other);
    match what {
        "create" => message(Op::Create, None, Some(full("42", "placed")), None),
        "update" => message(Op::Update, None, Some(updated()), None),
        "delete" => message(Op::Delete, Some(only_key("42")), None, None),
        "truncate" => message(Op::Truncate, None, None, None),
        "read" => message(Op::Read, None, Some(full("42", "placed")), None),
        "move, first half" => message(Op::Delete, Some(only_key("42")), None, Some(full("43", "placed"))),
        "move, second half" => message(Op::Create, None, Some(full("43", "placed")), Some(only_key("42"))),
        "outbox" => outbox(&format),
        what => panic!("no example \"{what}\""),
    }
}

#[test]
fn the_examples_are_what_is_written() {
    let docs = std::fs::read_to_string(DOCS).unwrap();
    let mut renewed = String::new();
    let mut count = 0;
    let mut lines = docs.lines();
    while let Some(line) = lines.next() {
        renewed += &format!("{line}\n");
        let Some(name) = line.strip_prefix("<!-- example: ").and_then(|rest| rest.strip_suffix(" -->"))
        else {
            continue;
        };
        assert_eq!(lines.next(), Some("```text"), "after {name}");
        let shown: String =
            lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect();
        let written = example(name);
        if std::env::var_os("UPDATE_DOCS").is_none() {
            assert_eq!(shown, written, "{name}");
        }
        renewed += &format!("```text\n{written}```\n");
        count += 1;
    }
    assert_eq!(count, 14);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(DOCS, renewed).unwrap();
    }
}
