//! Values in the `headwater` format: docs/types.md has the table.

use std::borrow::Cow;

use headwater_core::{CellKind, ColumnType, Field};

use super::super::bytea;
use super::super::json;
use super::super::malformed::{Malformed, Result};
use super::super::text::{ArrayReader, CompositeReader, HstoreReader, Token};

/// Writes one value as JSON.
#[inline]
pub(in super::super) fn write(
    out: &mut Vec<u8>,
    ty: &ColumnType,
    kind: CellKind,
    bytes: &[u8],
) -> Result<()> {
    match kind {
        CellKind::Text => text(out, ty, bytes),
        CellKind::Integer => json::integer_text(out, bytes),
        CellKind::Real => json::float_text(out, bytes),
        CellKind::String => json::string(out, bytes),
        CellKind::Blob => {
            json::base64(out, bytes);
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
pub(in super::super) fn text(out: &mut Vec<u8>, ty: &ColumnType, text: &[u8]) -> Result<()> {
    match ty {
        ColumnType::Int16 | ColumnType::Int32 | ColumnType::Int64 | ColumnType::Oid => {
            json::integer_text(out, text)
        }
        ColumnType::Bool => boolean(out, text),
        ColumnType::Float32 | ColumnType::Float64 => json::float_text(out, text),
        ColumnType::Timestamp(_) => timestamp(out, text),
        ColumnType::TimestampTz(_) => instant(out, text),
        ColumnType::Bytes => {
            json::base64(out, &bytea::decode(text)?);
            Ok(())
        }
        ColumnType::Json | ColumnType::Jsonb => json::raw(out, text),
        ColumnType::Array(element) => array(out, element, text),
        ColumnType::Composite(fields) => composite(out, fields, text),
        ColumnType::Hstore => hstore(out, text),
        ColumnType::Text
        | ColumnType::Enum
        | ColumnType::Uuid
        | ColumnType::Numeric { .. }
        | ColumnType::Money
        | ColumnType::Date
        | ColumnType::Time(_)
        | ColumnType::TimeTz(_)
        | ColumnType::Interval
        | ColumnType::Bits(_)
        | ColumnType::Range
        | ColumnType::Dynamic
        | ColumnType::Other(_) => json::string(out, text),
    }
}

/// Writes `t` or `f` as a JSON boolean.
pub(in super::super) fn boolean(out: &mut Vec<u8>, text: &[u8]) -> Result<()> {
    let word: &[u8] = match text {
        b"t" => b"true",
        b"f" => b"false",
        _ => return Err(Malformed::Not("a boolean")),
    };
    out.extend_from_slice(word);
    Ok(())
}

/// `2024-05-17 10:00:00.5` gets its `T`; years BC and the infinities stay PostgreSQL's text.
fn timestamp(out: &mut Vec<u8>, text: &[u8]) -> Result<()> {
    let start = out.len();
    json::string(out, text)?;
    if !text.ends_with(b" BC")
        && let Some(written) = out.get_mut(start..)
        && let Some(space) = written.iter_mut().find(|byte| **byte == b' ')
    {
        *space = b'T';
    }
    Ok(())
}

/// The same, and the offset `+00` becomes `Z`.
fn instant(out: &mut Vec<u8>, text: &[u8]) -> Result<()> {
    match text.strip_suffix(b"+00") {
        Some(text) => {
            timestamp(out, text)?;
            out.pop();
            out.extend_from_slice(b"Z\"");
            Ok(())
        }
        None if text.ends_with(b"+00 BC") || matches!(text, b"infinity" | b"-infinity") => {
            json::string(out, text)
        }
        None => Err(Malformed::Not("an instant in UTC")),
    }
}

fn array(out: &mut Vec<u8>, element: &ColumnType, text: &[u8]) -> Result<()> {
    write_array(out, element, text, self::text)
}

/// Writes an array as nested JSON arrays, each element by `write`.
pub(in super::super) fn write_array(
    out: &mut Vec<u8>,
    element: &ColumnType,
    text: &[u8],
    mut write: impl FnMut(&mut Vec<u8>, &ColumnType, &[u8]) -> Result<()>,
) -> Result<()> {
    // The one type whose elements do not stand apart by commas.
    let delimiter = if matches!(element, ColumnType::Other(name) if name == "box") { b';' } else { b',' };
    let mut reader = ArrayReader::new(text, delimiter)?;
    let mut first = true;
    while let Some(token) = reader.next()? {
        if !first && token != Token::Close {
            out.push(b',');
        }
        first = token == Token::Open;
        match token {
            Token::Open => out.push(b'['),
            Token::Close => out.push(b']'),
            Token::Null => out.extend_from_slice(b"null"),
            Token::Element(text) => write(out, element, &text)?,
        }
    }
    Ok(())
}

fn composite(out: &mut Vec<u8>, fields: &[Field], text: &[u8]) -> Result<()> {
    let mut reader = CompositeReader::new(text)?;
    let start = out.len();
    for field in fields {
        out.push(b',');
        json::str(out, &field.name);
        out.push(b':');
        match reader.next()? {
            Some(value) => self::text(out, &field.ty, &value)?,
            None => out.extend_from_slice(b"null"),
        }
    }
    reader.finish()?;
    json::close_object(out, start);
    Ok(())
}

/// Writes an hstore as an object of strings and nulls.
pub(in super::super) fn hstore(out: &mut Vec<u8>, text: &[u8]) -> Result<()> {
    let mut reader = HstoreReader::new(text);
    let start = out.len();
    while let Some((key, value)) = reader.next()? {
        out.push(b',');
        json::string(out, &key)?;
        out.push(b':');
        match value {
            Some(value) => json::string(out, &value)?,
            None => out.extend_from_slice(b"null"),
        }
    }
    json::close_object(out, start);
    Ok(())
}

/// A value as the text of a key: what [`write`] writes, without the quotes and escapes of a string.
pub(in super::super) fn plain<'a>(ty: &ColumnType, kind: CellKind, bytes: &'a [u8]) -> Result<Cow<'a, [u8]>> {
    let same = match kind {
        CellKind::Integer | CellKind::String => true,
        CellKind::Text => !matches!(
            ty,
            ColumnType::Bool
                | ColumnType::Timestamp(_)
                | ColumnType::TimestampTz(_)
                | ColumnType::Bytes
                | ColumnType::Array(_)
                | ColumnType::Composite(_)
                | ColumnType::Hstore
        ),
        _ => false,
    };
    if same {
        json::utf8(bytes)?;
        return Ok(Cow::Borrowed(bytes));
    }
    let mut out = Vec::new();
    write(&mut out, ty, kind, bytes)?;
    // None of these has an escape in it: digits, words, base64.
    if out.first() == Some(&b'"') {
        out.pop();
        out.remove(0);
    }
    Ok(Cow::Owned(out))
}
