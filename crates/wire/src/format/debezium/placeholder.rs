//! What stands for a large value that an update did not touch.

use headwater_core::ColumnType;

use super::super::json;
use super::options::{BinaryMode, DebeziumOptions, DecimalMode, HstoreMode};
use super::value::binary;

/// The name-based UUID (version 3) of the default placeholder, which stands for an array of UUIDs.
const DEFAULT_UUID: &str = "b68a35a7-17ad-35b3-af2a-ae46edb4545a";
const DEFAULT: &str = "__debezium_unavailable_value";

/// The placeholder of a column, as JSON.
pub(super) fn placeholder(options: &DebeziumOptions, ty: &ColumnType) -> Box<[u8]> {
    let mut out = Vec::new();
    let text = options.unavailable_value_placeholder.as_str();
    match ty {
        ColumnType::Bytes => bytes(&mut out, options),
        ColumnType::Hstore => {
            let mut object = json::field(text).to_vec();
            json::str(&mut object, text);
            json::close_object(&mut object, 0);
            match options.hstore_handling_mode {
                HstoreMode::Map => out = object,
                HstoreMode::Json => json::str(&mut out, &String::from_utf8_lossy(&object)),
            }
        }
        ColumnType::Array(element) => array(&mut out, options, element),
        _ => json::str(&mut out, text),
    }
    out.into()
}

fn bytes(out: &mut Vec<u8>, options: &DebeziumOptions) {
    let text = &options.unavailable_value_placeholder;
    match options.binary_handling_mode {
        BinaryMode::Hex => json::str(out, text),
        mode => binary(out, mode, text.as_bytes()),
    }
}

/// Text is one element; numbers are one for each byte of it.
fn array(out: &mut Vec<u8>, options: &DebeziumOptions, element: &ColumnType) {
    let text = options.unavailable_value_placeholder.as_str();
    out.push(b'[');
    match element {
        ColumnType::Int16 | ColumnType::Int32 | ColumnType::Int64 | ColumnType::Oid => numbers(out, text, ""),
        ColumnType::Float32 | ColumnType::Float64 => numbers(out, text, ".0"),
        ColumnType::Numeric { .. } if options.decimal_handling_mode == DecimalMode::Double => {
            numbers(out, text, ".0");
        }
        ColumnType::Bytes => bytes(out, options),
        ColumnType::Uuid if text == DEFAULT => json::str(out, DEFAULT_UUID),
        _ => json::str(out, text),
    }
    out.push(b']');
}

fn numbers(out: &mut Vec<u8>, text: &str, fraction: &str) {
    for (index, byte) in text.bytes().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        json::integer(out, i64::from(byte));
        out.extend_from_slice(fraction.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_has_its_own() {
        let shown = |ty| String::from_utf8(placeholder(&DebeziumOptions::default(), &ty).into()).unwrap();
        assert_eq!(shown(ColumnType::Text), "\"__debezium_unavailable_value\"");
        assert_eq!(shown(ColumnType::Bytes), "\"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==\"");
        assert_eq!(
            shown(ColumnType::Hstore),
            r#""{\"__debezium_unavailable_value\":\"__debezium_unavailable_value\"}""#
        );
        let array = |element| shown(ColumnType::Array(Box::new(element)));
        assert_eq!(array(ColumnType::Text), "[\"__debezium_unavailable_value\"]");
        assert!(array(ColumnType::Int32).starts_with("[95,95,100,101,98,"));
        assert_eq!(array(ColumnType::Uuid), "[\"b68a35a7-17ad-35b3-af2a-ae46edb4545a\"]");
    }
}
