//! Values in the `debezium` format: docs/types.md has the table.

use base64::engine::general_purpose::URL_SAFE;
use headwater_core::{CellKind, ColumnType};

use super::super::bytea;
use super::super::headwater::value::{boolean, hstore, write_array};
use super::super::json::{self, Number};
use super::super::malformed::{Malformed, Result};
use super::options::{BinaryMode, DebeziumOptions, HstoreMode};
use super::{decimal, interval, temporal};

/// Writes one value as JSON.
#[inline]
pub(super) fn write(
    out: &mut Vec<u8>,
    options: &DebeziumOptions,
    ty: &ColumnType,
    kind: CellKind,
    bytes: &[u8],
) -> Result<()> {
    match kind {
        CellKind::Text => text(out, options, ty, bytes),
        CellKind::Integer => json::integer_text(out, bytes),
        CellKind::Real => float(out, bytes),
        CellKind::String => json::string(out, bytes),
        CellKind::Blob => {
            binary(out, options.binary_handling_mode, bytes);
            Ok(())
        }
        // The three kinds that hold no bytes; a row never hands them out as bytes.
        CellKind::Null | CellKind::Absent | CellKind::Unchanged => {
            out.extend_from_slice(b"null");
            Ok(())
        }
    }
}

/// Writes a value's canonical text as JSON.
fn text(out: &mut Vec<u8>, options: &DebeziumOptions, ty: &ColumnType, text: &[u8]) -> Result<()> {
    let times = options.time_precision_mode;
    let decimals = options.decimal_handling_mode;
    match ty {
        ColumnType::Int16 | ColumnType::Int32 | ColumnType::Int64 | ColumnType::Oid => {
            json::integer_text(out, text)
        }
        ColumnType::Bool => boolean(out, text),
        ColumnType::Float32 | ColumnType::Float64 => float(out, text),
        ColumnType::Numeric { precision_scale } => {
            decimal::write(out, decimals, precision_scale.map(|(_, scale)| scale), text)
        }
        ColumnType::Money => decimal::write_money(out, decimals, text),
        ColumnType::Bytes => {
            binary(out, options.binary_handling_mode, &bytea::decode(text)?);
            Ok(())
        }
        ColumnType::Date => temporal::write_date_text(out, times, text),
        ColumnType::Time(precision) => temporal::write_time_text(out, times, *precision, text),
        ColumnType::TimeTz(_) => temporal::write_timetz_text(out, text),
        ColumnType::Timestamp(precision) => temporal::write_timestamp_text(out, times, *precision, text),
        ColumnType::TimestampTz(precision) => temporal::write_timestamptz_text(out, *precision, text),
        ColumnType::Interval => interval::write(out, options.interval_handling_mode, text),
        ColumnType::Bits(length) => bits(out, *length, text),
        ColumnType::Array(element) => {
            write_array(out, element, text, |out, ty, element| self::text(out, options, ty, element))
        }
        ColumnType::Hstore => hstore_text(out, options.hstore_handling_mode, text),
        ColumnType::Text
        | ColumnType::Enum
        | ColumnType::Uuid
        | ColumnType::Json
        | ColumnType::Jsonb
        | ColumnType::Range
        | ColumnType::Composite(_)
        | ColumnType::Dynamic
        | ColumnType::Other(_) => json::string(out, text),
    }
}

/// Writes a float; a whole one has `.0`, as Java prints it.
fn float(out: &mut Vec<u8>, text: &[u8]) -> Result<()> {
    match json::float(text)? {
        Number::Digits(number) => {
            out.extend_from_slice(number);
            if number.iter().all(|byte| byte.is_ascii_digit() || *byte == b'-') {
                out.extend_from_slice(b".0");
            }
        }
        Number::Special(word) => json::str(out, word),
    }
    Ok(())
}

/// Writes bytes as `binary.handling.mode` wants them.
pub(super) fn binary(out: &mut Vec<u8>, mode: BinaryMode, bytes: &[u8]) {
    match mode {
        // The JSON converter writes bytes as base64 itself.
        BinaryMode::Bytes | BinaryMode::Base64 => json::base64(out, bytes),
        BinaryMode::Base64UrlSafe => json::base64_with(out, bytes, &URL_SAFE),
        BinaryMode::Hex => {
            out.push(b'"');
            json::hex(out, bytes);
            out.push(b'"');
        }
    }
}

/// One declared bit is a boolean; more are bytes, the least significant first, without zeros at the end.
fn bits(out: &mut Vec<u8>, length: Option<u32>, text: &[u8]) -> Result<()> {
    if !text.iter().all(|bit| matches!(bit, b'0' | b'1')) {
        return Err(Malformed::Not("bits"));
    }
    if length == Some(1) {
        return boolean(out, if text == b"1" { b"t" } else { b"f" });
    }
    let byte = |bits: &[u8]| bits.iter().fold(0u8, |byte, bit| byte << 1 | bit & 1);
    let mut bytes: Vec<u8> = text.rchunks(8).map(byte).collect();
    bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
    json::base64(out, &bytes);
    Ok(())
}

fn hstore_text(out: &mut Vec<u8>, mode: HstoreMode, text: &[u8]) -> Result<()> {
    match mode {
        HstoreMode::Map => hstore(out, text),
        HstoreMode::Json => {
            let mut object = Vec::new();
            hstore(&mut object, text)?;
            json::string(out, &object)
        }
    }
}
