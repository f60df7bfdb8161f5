//! Keys, contracts, and rows of which the source did not send everything.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::{change, contract, row, table, texts, view};
use headwater_core::{CellKind, ColumnType, Kind, Op, Row, Table};
use headwater_wire::format::{Contract, Format, Headers, KeyWriter, Moved};

fn lines() -> Arc<Table> {
    table(&[
        ("order_id", ColumnType::Int64),
        ("sku", ColumnType::Text),
        ("at", ColumnType::TimestampTz(None)),
        ("raw", ColumnType::Bytes),
        ("ok", ColumnType::Bool),
    ])
}

fn line() -> Row {
    texts(&[Some("7"), Some("a\"b,1"), Some("2024-05-17 10:00:00+00"), Some("\\x00ff"), Some("t")])
}

fn with_key(columns: &[&str], prefix: Option<&str>) -> Contract {
    let mut contract = contract(&lines());
    contract.columns = vec![("sku".into(), "article \"no\"".into())];
    contract.key = columns.iter().map(|column| (*column).to_owned()).collect();
    contract.key_prefix = prefix.map(str::to_owned);
    contract
}

fn key(format: &Format, contract: &Contract, row: &Row) -> String {
    let mut encoder = format.encoder(contract, &lines()).unwrap();
    let mut out = b"before ".to_vec();
    assert!(encoder.key(row, &mut out).unwrap());
    String::from_utf8(out).unwrap().strip_prefix("before ").unwrap().to_owned()
}

fn debezium() -> Format {
    serde_json::from_str("\"debezium\"").unwrap()
}

#[test]
fn a_single_column_is_its_text() {
    for (column, expected) in [
        ("order_id", "7"),
        ("sku", "a\"b,1"),
        ("at", "2024-05-17T10:00:00Z"),
        ("raw", "AP8="),
        ("ok", "true"),
    ] {
        assert_eq!(key(&Format::Headwater, &with_key(&[column], None), &line()), expected);
    }
}

#[test]
fn several_columns_are_an_array() {
    let contract = with_key(&["order_id", "sku"], None);
    assert_eq!(key(&Format::Headwater, &contract, &line()), "[7,\"a\\\"b,1\"]");
    assert_eq!(key(&debezium(), &contract, &line()), "{\"order_id\":7,\"article \\\"no\\\"\":\"a\\\"b,1\"}");
}

#[test]
fn keys_of_several_tables_do_not_meet() {
    let of = |table: &str, sku: &str| {
        let row = texts(&[Some("7"), Some(sku), None, None, None]);
        key(&Format::Headwater, &with_key(&["sku"], Some(table)), &row)
    };
    assert_eq!(of("orders", "42"), "orders:42");
    assert_ne!(of("a", "b:1"), of("a:b", "1"));
    assert_ne!(of("a\\", ":1"), of("a\\:", "1"));
    assert_ne!(of("a", ":b:1"), of("a::b", "1"));
    assert_eq!(
        key(&debezium(), &with_key(&["order_id"], Some("lines")), &line()),
        "{\"order_id\":7,\"__dbz__physicalTableIdentifier\":\"lines\"}"
    );
}

#[test]
fn a_key_that_is_null_is_no_text() {
    let nulls = texts(&[None, None, None, None, None]);
    assert_eq!(key(&Format::Headwater, &with_key(&["sku"], None), &nulls), "[null]");
    assert_eq!(key(&Format::Headwater, &with_key(&["sku", "order_id"], None), &nulls), "[null,null]");
}

#[test]
fn an_order_key_has_other_columns_than_the_key() {
    let writer = KeyWriter::new(&with_key(&["sku"], None), &["order_id".into()], &lines()).unwrap();
    let mut out = Vec::new();
    writer.write(&line(), &mut out).unwrap();
    assert_eq!(out, b"7");
}

#[test]
fn without_a_key_there_is_none() {
    for format in [Format::Headwater, debezium()] {
        let mut encoder = format.encoder(&with_key(&[], None), &lines()).unwrap();
        let mut out = Vec::new();
        assert!(!encoder.key(&line(), &mut out).unwrap());
        assert!(out.is_empty());
    }
}

#[test]
fn a_key_that_was_not_sent_is_an_error() {
    let row = row(&[(CellKind::Absent, b""), (CellKind::Text, b"x")]);
    for format in [Format::Headwater, debezium()] {
        let mut encoder = format.encoder(&with_key(&["order_id"], None), &lines()).unwrap();
        let error = encoder.key(&row, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), Kind::Decode);
        assert!(error.to_string().contains("key column \"order_id\""), "{error}");
    }
}

#[test]
fn a_table_without_a_column_breaks_the_contract() {
    let mut columns = with_key(&["order_id"], None);
    columns.columns.push(("gone".into(), "gone".into()));
    for (contract, column) in [(columns, "gone"), (with_key(&["lost"], None), "lost")] {
        for format in [Format::Headwater, debezium()] {
            let error = format.encoder(&contract, &lines()).err().unwrap();
            assert_eq!(error.kind(), Kind::Contract);
            let shown = error.to_string();
            let expected = format!("stream orders: table public.orders has no column \"{column}\"");
            assert!(shown.starts_with(&expected), "{shown}");
            assert!(error.hint_text().is_some_and(|hint| hint.contains("[stream.orders]")));
        }
    }
}

#[test]
fn only_what_the_contract_names_is_exposed() {
    let table = lines();
    let change = change(&table, Op::Create, None, Some(line()));
    let mut encoder = Format::Headwater.encoder(&with_key(&["order_id"], None), &table).unwrap();
    let mut out = Vec::new();
    encoder.payload(&view(&change), &mut out).unwrap();
    let event: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(event["after"], serde_json::json!({"article \"no\"": "a\"b,1"}));
    assert_eq!(event["key"], serde_json::json!({"order_id": 7}));
}

#[test]
fn a_row_of_nothing_but_unchanged_values_is_still_json() {
    let table = lines();
    let after = row(&[(CellKind::Text, b"7"), (CellKind::Unchanged, b""), (CellKind::Unchanged, b"")]);
    let change = change(&table, Op::Update, None, Some(after));
    let mut contract = with_key(&["order_id"], None);
    contract.columns = vec![("sku".into(), "sku".into()), ("at".into(), "at".into())];
    let mut encoder = Format::Headwater.encoder(&contract, &table).unwrap();
    let mut out = Vec::new();
    encoder.payload(&view(&change), &mut out).unwrap();
    let event: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(event["after"], serde_json::json!({}));
    assert_eq!(event["unchanged"], serde_json::json!(["sku", "at"]));
}

/// A row that leaves a stream's condition with its before unknown: a delete whose key is the new row's.
#[test]
fn a_delete_without_a_before_takes_its_key_from_the_after() {
    let table = lines();
    let change = change(&table, Op::Update, None, Some(line()));
    let mut view = view(&change);
    view.op = Op::Delete;
    for format in [Format::Headwater, debezium()] {
        let mut encoder = format.encoder(&with_key(&["order_id"], None), &table).unwrap();
        let mut out = Vec::new();
        encoder.payload(&view, &mut out).unwrap();
        let event: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&event["before"], &event["after"]), (&serde_json::Value::Null, &serde_json::Value::Null));
        out.clear();
        encoder.key(view.key_row().unwrap(), &mut out).unwrap();
        assert!(std::str::from_utf8(&out).unwrap().contains('7'));
    }
}

#[test]
fn the_source_of_each_transaction_is_its_own() {
    let table = lines();
    let mut first = change(&table, Op::Create, None, Some(line()));
    let mut second = first.clone();
    first.transaction =
        Arc::new(headwater_core::Transaction { id: "1".into(), ..(*first.transaction).clone() });
    second.transaction =
        Arc::new(headwater_core::Transaction { id: "2".into(), ..(*first.transaction).clone() });
    for (format, field) in [(Format::Headwater, "transaction"), (debezium(), "txId")] {
        let mut encoder = format.encoder(&with_key(&["order_id"], None), &table).unwrap();
        let mut ids = Vec::new();
        for change in [&first, &second, &second, &first] {
            let mut out = Vec::new();
            encoder.payload(&view(change), &mut out).unwrap();
            let event: serde_json::Value = serde_json::from_slice(&out).unwrap();
            ids.push(event["source"][field].to_string().trim_matches('"').to_owned());
        }
        assert_eq!(ids, ["1", "2", "2", "1"]);
    }
}

#[test]
fn a_moved_row_without_a_key_has_no_header() {
    let table = lines();
    let change = change(&table, Op::Delete, Some(line()), None);
    let other = line();
    let mut view = view(&change);
    view.moved = Some(Moved { other: &other });
    let mut encoder = debezium().encoder(&with_key(&[], None), &table).unwrap();
    let mut headers = Headers::new();
    encoder.headers(&view, &mut headers).unwrap();
    assert!(headers.is_empty());
}
