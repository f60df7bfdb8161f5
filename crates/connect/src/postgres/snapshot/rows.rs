//! From a line of `COPY ... TO STDOUT` to a row.
//!
//! Format: PostgreSQL documentation, COPY, "Text Format": tabs between values, `\N` for NULL, a backslash
//! before what would be misread. A row in which nothing is escaped (NULLs aside) stays where it is in the
//! buffer that was read; another is written anew.

use bytes::Bytes;
use headwater_core::{Cell, CellKind, Error, Kind, Result, Row, RowBuilder};

/// The row that `line` holds, its newline included or not. An error when it has not `columns` values.
pub fn row(line: Bytes, columns: usize) -> Result<Row> {
    let line = match line.strip_suffix(b"\n") {
        Some(text) => line.slice(..text.len()),
        None => line,
    };
    let row = match in_place(&line, columns)? {
        Some(cells) => Row::new(line, cells),
        None => Some(unescaped(&line, columns)?),
    };
    match row {
        Some(row) if row.len() == columns => Ok(row),
        _ => Err(malformed(columns)),
    }
}

/// Where the values are; `None` when one of them is escaped.
fn in_place(line: &[u8], columns: usize) -> Result<Option<Box<[Cell]>>> {
    let length = u32::try_from(line.len()).map_err(|_| malformed(columns))?;
    let mut cells = Vec::with_capacity(columns);
    let mut start = 0;
    let mut kind = CellKind::Text;
    let mut push = |kind, start: u32, end: u32| {
        let len = if kind == CellKind::Null { 0 } else { end - start };
        cells.push(Cell { kind, start, len });
    };
    for at in memchr::memchr2_iter(b'\t', b'\\', line) {
        let place = at as u32;
        if line[at] == b'\t' {
            push(kind, start, place);
            (start, kind) = (place + 1, CellKind::Text);
        } else if place == start && is_null(&line[at..]) {
            kind = CellKind::Null;
        } else {
            return Ok(None);
        }
    }
    if columns > 0 {
        push(kind, start, length);
    }
    Ok(Some(cells.into()))
}

fn is_null(rest: &[u8]) -> bool {
    matches!(rest, [b'\\', b'N'] | [b'\\', b'N', b'\t', ..])
}

fn unescaped(line: &[u8], columns: usize) -> Result<Row> {
    let mut row = RowBuilder::with_capacity(columns);
    let mut value = Vec::new();
    for field in line.split(|byte| *byte == b'\t') {
        if field == b"\\N" {
            row.push(CellKind::Null, b"");
            continue;
        }
        value.clear();
        let mut rest = field;
        while let Some(at) = memchr::memchr(b'\\', rest) {
            value.extend_from_slice(&rest[..at]);
            value.push(meaning(*rest.get(at + 1).ok_or_else(|| malformed(columns))?));
            rest = &rest[at + 2..];
        }
        value.extend_from_slice(rest);
        row.push(CellKind::Text, &value);
    }
    Ok(row.build())
}

/// What a backslash and this byte stand for. The server writes no numeric escapes.
const fn meaning(byte: u8) -> u8 {
    match byte {
        b'b' => 8,
        b't' => b'\t',
        b'n' => b'\n',
        b'v' => 11,
        b'f' => 12,
        b'r' => b'\r',
        other => other,
    }
}

fn malformed(columns: usize) -> Error {
    Error::new(Kind::Decode, format!("a row of COPY does not have the {columns} values that it should"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // inside proptest!, where clippy.toml does not reach
mod tests {
    use headwater_core::Value;
    use proptest::prelude::*;

    use super::*;

    /// As the server does it (`CopyAttributeOutText`).
    fn escaped(values: &[Option<Vec<u8>>]) -> Bytes {
        let mut line = Vec::new();
        for (at, value) in values.iter().enumerate() {
            if at > 0 {
                line.push(b'\t');
            }
            for byte in value.as_deref().unwrap_or(b"") {
                match byte {
                    8 => line.extend(b"\\b"),
                    9 => line.extend(b"\\t"),
                    10 => line.extend(b"\\n"),
                    11 => line.extend(b"\\v"),
                    12 => line.extend(b"\\f"),
                    13 => line.extend(b"\\r"),
                    b'\\' => line.extend(b"\\\\"),
                    byte => line.push(*byte),
                }
            }
            if value.is_none() {
                line.extend(b"\\N");
            }
        }
        line.push(b'\n');
        line.into()
    }

    fn values(row: &Row) -> Vec<Option<Vec<u8>>> {
        let value = |value| match value {
            Value::Bytes(CellKind::Text, bytes) => Some(bytes.to_vec()),
            Value::Null => None,
            other => panic!("{other:?}"),
        };
        row.values().map(value).collect()
    }

    proptest! {
        #[test]
        fn any_row_comes_back(values_in in proptest::collection::vec(
            proptest::option::of(proptest::collection::vec(
                prop_oneof![any::<u8>(), Just(b'\\'), Just(b'N'), Just(b'\t')], 0..6)), 1..6)
        ) {
            prop_assert_eq!(values(&row(escaped(&values_in), values_in.len()).unwrap()), values_in);
        }

        #[test]
        fn any_line_is_read_or_refused(line in proptest::collection::vec(any::<u8>(), 0..40), columns in 0_usize..5) {
            if let Ok(row) = row(line.into(), columns) {
                prop_assert_eq!(row.len(), columns);
            }
        }
    }

    #[test]
    fn what_is_not_escaped_is_not_copied() {
        let line = Bytes::from_static(b"1\t\\N\t\tabc\n");
        let read = row(line.clone(), 4).unwrap();
        let text = |bytes: &[u8]| Some(bytes.to_vec());
        assert_eq!(values(&read), [text(b"1"), None, text(b""), text(b"abc")]);
        let Value::Bytes(_, abc) = read.value(3) else { panic!("a value") };
        assert!(line.as_ptr_range().contains(&abc.as_ptr()));
    }

    #[test]
    fn a_wrong_number_of_values_is_an_error() {
        for columns in [0, 1, 3] {
            assert_eq!(row(Bytes::from_static(b"1\t2\n"), columns).unwrap_err().kind(), Kind::Decode);
        }
        assert_eq!(row(Bytes::from_static(b"\n"), 0).unwrap().len(), 0);
        assert_eq!(row(Bytes::from_static(b"a\\"), 1).unwrap_err().kind(), Kind::Decode);
    }
}
