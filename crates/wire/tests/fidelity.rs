//! What goes into an event comes out of it, and nothing that a source sends makes an encoder panic.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::{change, contract, row, table, view};
use headwater_core::{CellKind, ColumnType, Field, Kind, Op, Result};
use headwater_wire::format::{Format, OutboxColumns};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value as Json;
use serde_json::value::RawValue;

/// An event of one column, or `None` when the format refused its value.
fn written(format: &Format, ty: &ColumnType, kind: CellKind, bytes: &[u8]) -> Option<Vec<u8>> {
    let table = table(&[("k", ColumnType::Int32), ("v", ty.clone())]);
    let change = change(&table, Op::Create, None, Some(row(&[(CellKind::Text, b"1"), (kind, bytes)])));
    let mut encoder = format.encoder(&contract(&table), &table).unwrap();
    let mut out = Vec::new();
    match encoder.payload(&view(&change), &mut out) {
        Ok(()) => Some(out),
        Err(error) => {
            assert_eq!(error.kind(), Kind::Decode);
            None
        }
    }
}

#[derive(serde::Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    after: After<'a>,
}

#[derive(serde::Deserialize)]
struct After<'a> {
    #[serde(borrow)]
    v: &'a RawValue,
}

/// The value of one column of an event, as a JSON parser sees it; `None` when the format refused it.
fn read_back(format: &Format, ty: &ColumnType, kind: CellKind, bytes: &[u8]) -> Option<Json> {
    let out = written(format, ty, kind, bytes)?;
    let shown = || String::from_utf8_lossy(&out).into_owned();
    // A json column may hold numbers beyond what this parser's values hold.
    let valid = serde_json::from_slice::<serde::de::IgnoredAny>(&out);
    valid.unwrap_or_else(|error| panic!("{error}: {}", shown()));
    if holds_json(ty) {
        return None;
    }
    let event: serde_json::Result<Json> = serde_json::from_slice(&out);
    Some(event.unwrap_or_else(|error| panic!("{error}: {}", shown()))["after"]["v"].take())
}

fn holds_json(ty: &ColumnType) -> bool {
    match ty {
        ColumnType::Json | ColumnType::Jsonb => true,
        ColumnType::Array(element) => holds_json(element),
        ColumnType::Composite(fields) => fields.iter().any(|field| holds_json(&field.ty)),
        _ => false,
    }
}

fn headwater(ty: &ColumnType, text: &str) -> Json {
    read_back(&Format::Headwater, ty, CellKind::Text, text.as_bytes()).unwrap()
}

fn formats() -> Vec<Format> {
    let debezium = [
        "{\"kind\":\"debezium\"}",
        r#"{"kind":"debezium","decimal_handling_mode":"string","time_precision_mode":"isostring",
            "binary_handling_mode":"hex","hstore_handling_mode":"map","interval_handling_mode":"string"}"#,
        r#"{"kind":"debezium","decimal_handling_mode":"double","time_precision_mode":"nanoseconds",
            "binary_handling_mode":"base64-url-safe"}"#,
    ];
    let mut formats = vec![Format::Headwater];
    formats.extend(debezium.map(|json| serde_json::from_str::<Format>(json).unwrap()));
    formats
}

fn simple_types() -> Vec<ColumnType> {
    vec![
        ColumnType::Bool,
        ColumnType::Int64,
        ColumnType::Float64,
        ColumnType::Numeric { precision_scale: None },
        ColumnType::Numeric { precision_scale: Some((10, 2)) },
        ColumnType::Numeric { precision_scale: Some((3, -2)) },
        ColumnType::Money,
        ColumnType::Text,
        ColumnType::Bytes,
        ColumnType::Date,
        ColumnType::Time(Some(3)),
        ColumnType::TimeTz(None),
        ColumnType::Timestamp(None),
        ColumnType::TimestampTz(Some(0)),
        ColumnType::Interval,
        ColumnType::Jsonb,
        ColumnType::Bits(Some(1)),
        ColumnType::Bits(None),
        ColumnType::Hstore,
        ColumnType::Dynamic,
        ColumnType::Other("box".into()),
    ]
}

fn all_types() -> Vec<ColumnType> {
    let simple = simple_types();
    let arrays = simple.iter().cloned().map(|ty| ColumnType::Array(Box::new(ty)));
    let composite = |(at, ty): (usize, ColumnType)| Field { name: format!("f{at}"), ty };
    let fields: Arc<[Field]> = simple.iter().cloned().enumerate().map(composite).collect();
    let two: Arc<[Field]> = fields.iter().take(2).cloned().collect();
    let nested = ColumnType::Array(Box::new(ColumnType::Composite(two)));
    simple.iter().cloned().chain(arrays).chain([ColumnType::Composite(fields), nested]).collect()
}

/// Bytes that look a little like what the types expect.
fn lookalikes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..40),
        "[-+]?[0-9]{0,12}[.]?[0-9]{0,8}(e[+-]?[0-9]{0,3})?".prop_map(String::into_bytes),
        "[0-9]{3,7}-[0-9]{2}-[0-9]{2}( [0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{0,7})?)?([+]00)?( BC)?"
            .prop_map(String::into_bytes),
        "[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{0,7})?([+-][0-9]{2}(:[0-9]{2}){0,3})?"
            .prop_map(String::into_bytes),
        "P(-?[0-9]{1,20}[YMD]){0,3}T?(-?[0-9]{1,20}([.][0-9]{0,7})?[HMS]){0,3}".prop_map(String::into_bytes),
        r#"[{}\[\]0-9:=,;"\\a ()NUL-]{0,30}"#.prop_map(String::into_bytes),
        r#"("a"=>("b"|NULL)(, )?){0,3}"#.prop_map(String::into_bytes),
        r"\\x[0-9a-fA-Fg]{0,12}".prop_map(String::into_bytes),
        "(-?infinity|NaN|t|f|null|[{]\"a\":[^}]{0,5}[}])".prop_map(String::into_bytes),
    ]
}

fn kinds() -> impl Strategy<Value = CellKind> {
    prop_oneof![
        4 => Just(CellKind::Text),
        1 => Just(CellKind::Integer),
        1 => Just(CellKind::Real),
        1 => Just(CellKind::String),
        1 => Just(CellKind::Blob),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn anything_is_json_or_an_error(bytes in lookalikes(), kind in kinds()) {
        for format in formats() {
            for ty in all_types() {
                let _ = read_back(&format, &ty, kind, &bytes);
            }
        }
    }

    #[test]
    fn any_key_is_bytes_or_an_error(bytes in lookalikes(), kind in kinds()) {
        for format in formats() {
            for ty in all_types() {
                let table = table(&[("v", ty.clone()), ("w", ty)]);
                let row = row(&[(kind, &bytes), (kind, &bytes)]);
                let mut contract = contract(&table);
                for key in [vec!["v".to_owned()], vec!["v".to_owned(), "w".to_owned()]] {
                    contract.key = key;
                    let mut encoder = format.encoder(&contract, &table).unwrap();
                    let mut out = Vec::new();
                    if let Err(error) = encoder.key(&row, &mut out) {
                        prop_assert_eq!(error.kind(), Kind::Decode);
                    }
                }
            }
        }
    }

    #[test]
    fn any_outbox_row_is_read_or_an_error(bytes in lookalikes(), kind in kinds()) {
        for ty in all_types() {
            let columns = ["id", "aggregatetype", "aggregateid", "type", "payload", "headers", "timestamp"];
            let table = table(&columns.map(|name| (name, ty.clone())));
            let cells: Vec<(CellKind, &[u8])> = columns.iter().map(|_| (kind, &bytes[..])).collect();
            let reader = OutboxColumns::default().reader(&table).unwrap();
            if let Err(error) = reader.read(&row(&cells)) {
                prop_assert_eq!(error.kind(), Kind::Decode);
            }
        }
    }

    #[test]
    fn strings_survive(text in any::<String>()) {
        for format in formats() {
            let read = read_back(&format, &ColumnType::Text, CellKind::Text, text.as_bytes());
            prop_assert_eq!(read, Some(Json::from(text.clone())));
            let read = read_back(&format, &ColumnType::Dynamic, CellKind::String, text.as_bytes());
            prop_assert_eq!(read, Some(Json::from(text.clone())));
        }
    }

    #[test]
    fn integers_survive(number in any::<i64>()) {
        for format in formats() {
            let read = read_back(&format, &ColumnType::Int64, CellKind::Text, number.to_string().as_bytes());
            prop_assert_eq!(read, Some(Json::from(number)));
        }
    }

    #[test]
    fn floats_survive(number in any::<f64>().prop_filter("finite", |number| number.is_finite())) {
        for format in formats() {
            for text in [format!("{number}"), format!("{number:e}")] {
                let out = written(&format, &ColumnType::Float64, CellKind::Text, text.as_bytes()).unwrap();
                // Read as digits: serde_json's own float parser may be off in the last place.
                let event: Event<'_> = serde_json::from_slice(&out).unwrap();
                prop_assert_eq!(event.after.v.get().parse::<f64>().unwrap().to_bits(), number.to_bits());
            }
        }
    }

    #[test]
    fn bytes_survive(bytes in vec(any::<u8>(), 0..100)) {
        use base64::Engine;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let read = headwater(&ColumnType::Bytes, &format!("\\x{hex}"));
        let decoded = base64::engine::general_purpose::STANDARD.decode(read.as_str().unwrap()).unwrap();
        prop_assert_eq!(&decoded, &bytes);
        let blob = read_back(&Format::Headwater, &ColumnType::Dynamic, CellKind::Blob, &bytes).unwrap();
        prop_assert_eq!(blob, read);
    }

    #[test]
    fn arrays_survive(elements in vec(vec(proptest::option::of(any::<String>()), 2), 1..5)) {
        let element = |element: &Option<String>| match element {
            None => "NULL".to_owned(),
            Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        };
        let inner = |row: &Vec<Option<String>>| format!("{{{}}}", row.iter().map(element).collect::<Vec<_>>().join(","));
        let text = format!("{{{}}}", elements.iter().map(inner).collect::<Vec<_>>().join(","));
        let read = headwater(&ColumnType::Array(Box::new(ColumnType::Text)), &text);
        prop_assert_eq!(read, serde_json::to_value(&elements).unwrap());
    }

    #[test]
    fn composites_survive(values in vec(proptest::option::of(any::<String>()), 1..6)) {
        let field = |(at, _): (usize, &Option<String>)| Field { name: format!("f{at}"), ty: ColumnType::Text };
        let fields: Arc<[Field]> = values.iter().enumerate().map(field).collect();
        let value = |value: &Option<String>| match value {
            None => String::new(),
            Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\"\"")),
        };
        let text = format!("({})", values.iter().map(value).collect::<Vec<_>>().join(","));
        let read = headwater(&ColumnType::Composite(fields), &text);
        let read: Vec<Option<&str>> = (0..values.len()).map(|at| read[format!("f{at}")].as_str()).collect();
        prop_assert_eq!(read, values.iter().map(Option::as_deref).collect::<Vec<_>>());
    }

    #[test]
    fn hstores_survive(pairs in proptest::collection::btree_map(any::<String>(), proptest::option::of(any::<String>()), 0..5)) {
        let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        let value = |value: &Option<String>| value.as_deref().map_or("NULL".to_owned(), quoted);
        let pair = |(name, text): (&String, &Option<String>)| format!("{}=>{}", quoted(name), value(text));
        let text = pairs.iter().map(pair).collect::<Vec<_>>().join(", ");
        let expected = serde_json::to_value(&pairs).unwrap();
        prop_assert_eq!(&headwater(&ColumnType::Hstore, &text), &expected);
        let debezium: Format = serde_json::from_str("\"debezium\"").unwrap();
        let json = read_back(&debezium, &ColumnType::Hstore, CellKind::Text, text.as_bytes()).unwrap();
        prop_assert_eq!(serde_json::from_str::<Json>(json.as_str().unwrap()).unwrap(), expected);
    }
}

#[test]
fn text_that_is_not_utf8_is_an_error_that_names_the_column() {
    let table = table(&[("k", ColumnType::Int32), ("v", ColumnType::Text)]);
    let change =
        change(&table, Op::Create, None, Some(row(&[(CellKind::Text, b"1"), (CellKind::Text, b"a\xff")])));
    for format in formats() {
        let mut encoder = format.encoder(&contract(&table), &table).unwrap();
        let error = Result::<()>::unwrap_err(encoder.payload(&view(&change), &mut Vec::new()));
        assert_eq!(error.kind(), Kind::Decode);
        let shown = error.to_string();
        assert!(
            shown.starts_with("stream orders: column \"v\" of public.orders holds text that is not UTF-8"),
            "{shown}"
        );
    }
}
