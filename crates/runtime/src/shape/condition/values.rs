//! A cell as CEL sees it.

use cel::Value as Cel;
use headwater_core::{CellKind, ColumnType, Value};

/// The CEL value of a cell that is there: integers are `int`, floats and decimals `double`, bytes
/// `bytes`, and all that CEL has no type for is the text that events carry.
pub fn cel(value: Value<'_>, ty: &ColumnType) -> Result<Cel, String> {
    let Value::Bytes(kind, bytes) = value else { return Ok(Cel::Null) };
    if kind == CellKind::Blob {
        return Ok(Cel::from(bytes.to_vec()));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())?;
    let wrong = || format!("\"{text}\" is no value of its type");
    let int = || text.parse().map(Cel::Int).map_err(|_| wrong());
    let double = || text.parse().map(Cel::Float).map_err(|_| wrong());
    match (kind, ty) {
        (CellKind::Integer, _) => int(),
        (CellKind::Real, _) => double(),
        (CellKind::String, _) => Ok(Cel::from(text)),
        (_, ColumnType::Bool) => Ok(Cel::Bool(text == "t" || text == "true")),
        (_, ColumnType::Int16 | ColumnType::Int32 | ColumnType::Int64 | ColumnType::Oid) => int(),
        (_, ColumnType::Float32 | ColumnType::Float64 | ColumnType::Numeric { .. }) => double(),
        (_, ColumnType::Bytes) => hex(text).map(Cel::from).ok_or_else(wrong),
        _ => Ok(Cel::from(text)),
    }
}

/// The bytes of `\x` and hex digits.
fn hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.strip_prefix("\\x")?.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let byte = |pair: &[u8; 2]| Some(digit(pair[0])? << 4 | digit(pair[1])?);
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}
