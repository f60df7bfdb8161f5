//! Outbox rows, of each layout that is taken.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::{CAPTURED, row, table, texts, transaction};
use headwater_core::{CellKind, ColumnType, EventId, Kind, Position, Row, Table};
use headwater_wire::format::{Format, Headers, OutboxColumns, OutboxRow, OutboxView, Payload};

fn outbox(payload: ColumnType) -> Arc<Table> {
    table(&[
        ("id", ColumnType::Uuid),
        ("aggregatetype", ColumnType::Text),
        ("aggregateid", ColumnType::Int64),
        ("type", ColumnType::Text),
        ("payload", payload),
        ("timestamp", ColumnType::TimestampTz(None)),
    ])
}

const ID: &str = "4d47e190-0402-4048-bc2c-89dd54343cdc";

fn outbox_row(payload: Option<&str>) -> Row {
    texts(&[Some(ID), Some("order"), Some("42"), Some("Placed"), payload, Some("2024-05-17 10:00:00+00")])
}

fn read(ty: ColumnType, payload: Option<&str>) -> Option<String> {
    let row = outbox_row(payload);
    let row = OutboxColumns::default().reader(&outbox(ty)).unwrap().read(&row).unwrap();
    row.payload.as_ref().map(|payload| match payload {
        Payload::Json(text) => format!("json {text}"),
        Payload::Text(text) => format!("text {text}"),
        Payload::Bytes(bytes) => format!("bytes {bytes:?}"),
    })
}

/// The key (where there is one), the payload (`None` is a tombstone) and the headers.
fn write(format: &Format, row: &OutboxRow<'_>) -> (Option<String>, Option<String>, Vec<String>) {
    let view = OutboxView {
        id: row.id.parse().unwrap_or(EventId::from_bytes([7; 16])),
        stream: &Arc::from("orders"),
        row,
        schema: "public",
        table: "outbox",
        transaction: &transaction(),
        position: Position::of(1, [1, 2, 0]),
        captured_at: CAPTURED,
    };
    let mut encoder = format.outbox_encoder(2);
    let (mut key, mut payload, mut headers) = (Vec::new(), Vec::new(), Headers::new());
    let has_key = encoder.key(row, &mut key).unwrap();
    let has_payload = encoder.payload(&view, &mut payload).unwrap();
    encoder.headers(&view, &mut headers).unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let header =
        |header: &headwater_core::Header| format!("{}={}", header.name, text(header.value.as_ref().unwrap()));
    (has_key.then(|| text(&key)), has_payload.then(|| text(&payload)), headers.iter().map(header).collect())
}

#[test]
fn payloads_are_json_text_or_bytes() {
    let text = |text| read(ColumnType::Text, Some(text)).unwrap();
    assert_eq!(read(ColumnType::Jsonb, Some("12")).unwrap(), "json 12");
    assert_eq!(text(" [1, 2]"), "json  [1, 2]");
    assert_eq!(text("12"), "text 12");
    assert_eq!(text("{not json"), "text {not json");
    assert_eq!(read(ColumnType::Bytes, Some("\\x7b7d")).unwrap(), "json {}");
    assert_eq!(read(ColumnType::Bytes, Some("\\x00ff")).unwrap(), "bytes [0, 255]");
    assert_eq!(read(ColumnType::Text, None), None);
}

#[test]
fn a_row_says_when_it_happened() {
    let at = |ty: ColumnType, kind, text: &[u8]| {
        let mut table = (*outbox(ColumnType::Text)).clone();
        table.columns[5].ty = ty;
        let cells = ["x", "order", "1", "t", "p"].map(|text| (CellKind::String, text.as_bytes()));
        let row = row(&[&cells[..], &[(kind, text)]].concat());
        let reader = OutboxColumns::default().reader(&table).unwrap();
        reader.read(&row).map(|row| row.timestamp)
    };
    let expected = Some(1_715_940_000_500_000);
    assert_eq!(
        at(ColumnType::TimestampTz(None), CellKind::Text, b"2024-05-17 10:00:00.5+00").unwrap(),
        expected
    );
    assert_eq!(at(ColumnType::Timestamp(None), CellKind::Text, b"2024-05-17 10:00:00.5").unwrap(), expected);
    assert_eq!(at(ColumnType::Int64, CellKind::Text, b"1715940000500").unwrap(), expected);
    assert_eq!(at(ColumnType::Dynamic, CellKind::Integer, b"1715940000500").unwrap(), expected);
    assert_eq!(at(ColumnType::Dynamic, CellKind::String, b"2024-05-17T10:00:00.5Z").unwrap(), expected);
    for text in [
        "2024-05-17 10:00:00.5",
        "2024-05-17 10:00:00.500000+00:00",
        "2024-05-17T12:00:00.5+02:00",
        "2024-05-17 12:00:00.5+02",
        "2024-05-17T06:30:00.5-0330",
        "2024-05-17 12:00:00.5 +02:00",
        "2024-05-18T00:00:00.5+14:00",
    ] {
        assert_eq!(at(ColumnType::Dynamic, CellKind::String, text.as_bytes()).unwrap(), expected, "{text}");
        assert_eq!(at(ColumnType::Text, CellKind::Text, text.as_bytes()).unwrap(), expected, "{text}");
    }
    for text in ["2024-05-17T10:00:00+", "2024-05-17T10:00:00+2", "2024-05-17T10:00:00+02:60", "2024-05-17"] {
        assert!(at(ColumnType::Dynamic, CellKind::String, text.as_bytes()).is_err(), "{text}");
    }
    assert_eq!(at(ColumnType::TimestampTz(None), CellKind::Text, b"infinity").unwrap(), None);
    assert_eq!(at(ColumnType::Dynamic, CellKind::String, b"yesterday").unwrap_err().kind(), Kind::Decode);
}

#[test]
fn the_headwater_envelope() {
    let row = outbox_row(Some("\\x00ff"));
    let row = OutboxColumns::default().reader(&outbox(ColumnType::Bytes)).unwrap().read(&row).unwrap();
    let (key, payload, headers) = write(&Format::Headwater, &row);
    assert_eq!(key.as_deref(), Some("42"));
    assert!(headers.is_empty());
    let event: serde_json::Value = serde_json::from_str(&payload.unwrap()).unwrap();
    assert_eq!((&event["id"], &event["type"], &event["version"]), (&ID.into(), &"Placed".into(), &2.into()));
    assert_eq!((&event["payload"], &event["payload_encoding"]), (&"AP8=".into(), &"base64".into()));
    assert_eq!(event["occurred_at"], "2024-05-17T10:00:00.000000Z");
    assert_eq!(event["source"]["table"], "outbox");
}

#[test]
fn the_routers_output() {
    let format = |placement: &str| -> Format {
        let json = format!("{{\"kind\":\"debezium\",\"table_fields_additional_placement\":\"{placement}\"}}");
        serde_json::from_str(&json).unwrap()
    };
    let row = outbox_row(Some("{\"a\": 1}"));
    let row = OutboxColumns::default().reader(&outbox(ColumnType::Jsonb)).unwrap().read(&row).unwrap();
    let (key, payload, headers) = write(&format(""), &row);
    assert_eq!((key.as_deref(), payload.as_deref()), (Some("42"), Some("{\"a\": 1}")));
    assert_eq!(headers, [format!("id={ID}")]);
    let (_, payload, headers) = write(&format("type:header:eventType,aggregatetype:envelope:of"), &row);
    assert_eq!(payload.as_deref(), Some("{\"payload\":{\"a\": 1},\"of\":\"order\"}"));
    assert_eq!(headers, [format!("id={ID}"), "eventType=Placed".into()]);
}

#[test]
fn a_payload_that_is_null_is_a_tombstone_in_debezium_only() {
    let row = outbox_row(None);
    let row = OutboxColumns::default().reader(&outbox(ColumnType::Text)).unwrap().read(&row).unwrap();
    assert_eq!(write(&serde_json::from_str("\"debezium\"").unwrap(), &row).1, None);
    assert!(write(&Format::Headwater, &row).1.unwrap().contains("\"payload\":null"));
}

#[test]
fn what_is_missing_is_said() {
    let table = table(&[("id", ColumnType::Uuid)]);
    let error = OutboxColumns::default().reader(&table).err().unwrap();
    assert_eq!(error.kind(), Kind::Contract);
    assert!(error.to_string().contains("has no column \"aggregatetype\""), "{error}");

    let row = texts(&[None, Some("order"), None, None, None, None]);
    let error = OutboxColumns::default().reader(&outbox(ColumnType::Text)).unwrap().read(&row).unwrap_err();
    assert_eq!(error.kind(), Kind::Decode);
    assert!(error.to_string().contains("has no \"id\""), "{error}");

    let columns: OutboxColumns = serde_json::from_str("{\"type\":\"kind\",\"headers\":\"meta\"}").unwrap();
    let error = columns.reader(&outbox(ColumnType::Text)).err().unwrap();
    assert!(error.to_string().contains("has no column \"kind\""), "{error}");
    assert!(serde_json::from_str::<OutboxColumns>("{\"kind\":\"x\"}").is_err());
}

#[test]
fn headwaters_own_layout_is_known_by_its_columns() {
    let own = table(&[
        ("seq", ColumnType::Int64),
        ("id", ColumnType::Uuid),
        ("stream", ColumnType::Text),
        ("type", ColumnType::Text),
        ("key", ColumnType::Text),
        ("payload", ColumnType::Json),
        ("headers", ColumnType::Json),
        ("version", ColumnType::Int32),
        ("created_at", ColumnType::TimestampTz(None)),
    ]);
    let cells = |version| {
        texts(&[
            Some("7"),
            Some(ID),
            Some("orders"),
            Some("Placed"),
            Some("42"),
            Some("{\"a\":1}"),
            Some("{\"trace\":\"x\"}"),
            version,
            Some("2024-05-17 10:00:00+00"),
        ])
    };
    let reader = OutboxColumns::default().reader(&own).unwrap();
    let row = cells(Some("3"));
    let row = reader.read(&row).unwrap();
    assert_eq!(
        (&*row.aggregate_type, row.aggregate_id.as_deref(), row.version),
        ("orders", Some("42"), Some(3))
    );
    assert_eq!(row.timestamp, Some(1_715_940_000_000_000));
    let (_, payload, _) = write(&Format::default(), &row);
    assert!(payload.unwrap().contains("\"version\":3,"), "the row's version, not the stream's");
    for wrong in ["0", "-1", "x"] {
        let error = reader.read(&cells(Some(wrong))).unwrap_err();
        assert!(error.to_string().contains("a number above 0"), "{error}");
    }
    // A table that has both goes by the widespread names.
    let both = OutboxColumns::default().of(&outbox(ColumnType::Text));
    assert_eq!(both, OutboxColumns::default());
}
