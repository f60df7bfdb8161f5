//! docs/types.md, row by row: what it says is what the formats write.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::{change, contract, row, table, view};
use headwater_core::{CellKind, ColumnType, Field, Op};
use headwater_wire::format::Format;

/// The rows of the table whose first heading is `heading`.
fn documented(heading: &str) -> Vec<Vec<String>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/types.md");
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().skip_while(|line| !line.starts_with(&format!("| {heading}")));
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    let cells = |line: &str| line.trim_matches('|').split(" | ").map(unquoted).collect();
    rows.map(cells).collect()
}

fn unquoted(cell: &str) -> String {
    let cell = cell.trim();
    cell.strip_prefix('`').and_then(|cell| cell.strip_suffix('`')).unwrap_or(cell).to_owned()
}

fn column_type(name: &str) -> ColumnType {
    if let Some(element) = name.strip_suffix("[]") {
        return ColumnType::Array(Box::new(column_type(element)));
    }
    let (name, modifier) = match name.split_once('(') {
        Some((name, modifier)) => (name, Some(modifier.trim_end_matches(')'))),
        None => (name, None),
    };
    let precision = modifier.and_then(|modifier| modifier.parse::<u8>().ok());
    let scale =
        |modifier: &str| modifier.split_once(',').map(|(p, s)| (p.parse().unwrap(), s.parse().unwrap()));
    match name {
        "boolean" => ColumnType::Bool,
        "smallint" => ColumnType::Int16,
        "integer" => ColumnType::Int32,
        "bigint" => ColumnType::Int64,
        "oid" => ColumnType::Oid,
        "real" => ColumnType::Float32,
        "double precision" => ColumnType::Float64,
        "numeric" => ColumnType::Numeric { precision_scale: modifier.and_then(scale) },
        "money" => ColumnType::Money,
        "text" | "varchar" | "char" | "citext" => ColumnType::Text,
        "an enum" => ColumnType::Enum,
        "bytea" => ColumnType::Bytes,
        "uuid" => ColumnType::Uuid,
        "date" => ColumnType::Date,
        "time" => ColumnType::Time(precision),
        "timetz" => ColumnType::TimeTz(precision),
        "timestamp" => ColumnType::Timestamp(precision),
        "timestamptz" => ColumnType::TimestampTz(precision),
        "interval" => ColumnType::Interval,
        "json" => ColumnType::Json,
        "jsonb" => ColumnType::Jsonb,
        "bit" => ColumnType::Bits(precision.map(u32::from)),
        "varbit" => ColumnType::Bits(None),
        "int4range" | "tstzrange" | "int4multirange" => ColumnType::Range,
        "hstore" => ColumnType::Hstore,
        name if name.starts_with("a composite of") => {
            let field = |name: &str, ty| Field { name: name.to_owned(), ty };
            let numeric = ColumnType::Numeric { precision_scale: None };
            let fields = [field("n", ColumnType::Int32), field("t", ColumnType::Text), field("p", numeric)];
            ColumnType::Composite(Arc::from(fields))
        }
        name => ColumnType::Other(name.to_owned()),
    }
}

/// What a format writes for a value: cut out of a whole event.
fn value(format: &Format, ty: &ColumnType, kind: CellKind, bytes: &[u8]) -> String {
    let table = table(&[("k", ColumnType::Int32), ("v", ty.clone())]);
    let after = row(&[(CellKind::Text, b"1"), (kind, bytes)]);
    let change = change(&table, Op::Create, None, Some(after));
    let mut encoder = format.encoder(&contract(&table), &table).unwrap();
    let mut out = Vec::new();
    encoder.payload(&view(&change), &mut out).unwrap();
    serde_json::from_slice::<serde_json::Value>(&out).unwrap();
    let out = String::from_utf8(out).unwrap();
    let from = out.find("\"after\":{\"k\":1,\"v\":").unwrap() + "\"after\":{\"k\":1,\"v\":".len();
    let to = out.find("},\"source\":").unwrap();
    out[from..to].to_owned()
}

fn debezium(options: &str) -> Format {
    let options = if options.is_empty() { String::new() } else { format!(",{options}") };
    serde_json::from_str(&format!("{{\"kind\":\"debezium\"{options}}}")).unwrap()
}

#[test]
fn postgres_types() {
    let rows = documented("PostgreSQL type");
    assert!(rows.len() > 50, "the table was not found");
    for cells in rows {
        let [name, text, headwater, expected] = &cells[..] else { panic!("{cells:?}") };
        let ty = column_type(name);
        let written = |format: &Format| value(format, &ty, CellKind::Text, text.as_bytes());
        assert_eq!(&written(&Format::Headwater), headwater, "{name} {text} in headwater");
        assert_eq!(&written(&debezium("")), expected, "{name} {text} in debezium");
    }
}

#[test]
fn sqlite_values() {
    let rows = documented("storage class");
    assert_eq!(rows.len(), 6);
    for cells in rows {
        let [class, text, headwater, expected] = &cells[..] else { panic!("{cells:?}") };
        let (kind, bytes) = match class.as_str() {
            "INTEGER" => (CellKind::Integer, text.as_bytes()),
            "REAL" => (CellKind::Real, text.as_bytes()),
            "TEXT" => (CellKind::String, text.as_bytes()),
            "BLOB" => (CellKind::Blob, &b"\x00\xff\x10"[..]),
            class => panic!("{class}"),
        };
        assert_eq!(
            &value(&Format::Headwater, &ColumnType::Dynamic, kind, bytes),
            headwater,
            "{class} {text}"
        );
        assert_eq!(&value(&debezium(""), &ColumnType::Dynamic, kind, bytes), expected, "{class} {text}");
    }
}

#[test]
fn debezium_options() {
    let rows = documented("option | PostgreSQL type");
    assert!(rows.len() > 10, "the table was not found");
    for cells in rows {
        let [option, name, text, expected] = &cells[..] else { panic!("{cells:?}") };
        let (key, mode) = option.split_once(" = ").unwrap();
        let format = debezium(&format!("\"{key}\":{mode}"));
        let written = value(&format, &column_type(name), CellKind::Text, text.as_bytes());
        assert_eq!(&written, expected, "{option} {name} {text}");
    }
}
