//! From SQLite's values to cells.

use std::io::Write as _;

use headwater_core::{CellKind, Row, RowBuilder};
use rusqlite::types::ValueRef;

/// The row in columns `from..from + width` of a query's row.
pub fn read(row: &rusqlite::Row<'_>, from: usize, width: usize) -> rusqlite::Result<Row> {
    let mut builder = RowBuilder::with_capacity(width);
    for at in from..from + width {
        push(&mut builder, row.get_ref(at)?);
    }
    Ok(builder.build())
}

fn push(builder: &mut RowBuilder, value: ValueRef<'_>) {
    match value {
        ValueRef::Null => builder.push(CellKind::Null, b""),
        ValueRef::Integer(number) => {
            let mut digits = Digits::default();
            // 20 digits and a sign always fit.
            let _ = write!(digits, "{number}");
            builder.push(CellKind::Integer, digits.bytes());
        }
        ValueRef::Real(number) => builder.push(CellKind::Real, real(number).as_bytes()),
        ValueRef::Text(bytes) => builder.push(CellKind::String, bytes),
        ValueRef::Blob(bytes) => builder.push(CellKind::Blob, bytes),
    }
}

/// The shortest digits that read back the same; SQLite turns NaN into NULL, so there is none.
fn real(number: f64) -> String {
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    format!("{number:?}")
}

/// Room for one integer, on the stack.
#[derive(Default)]
struct Digits {
    bytes: [u8; 24],
    len: usize,
}

impl Digits {
    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl std::io::Write for Digits {
    fn write(&mut self, more: &[u8]) -> std::io::Result<usize> {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        let len = room.len().min(more.len());
        for (to, from) in room.iter_mut().zip(more) {
            *to = *from;
        }
        self.len += len;
        Ok(len)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use headwater_core::Value;

    use super::*;

    #[test]
    fn cells_say_exactly_what_was_there() {
        let conn = rusqlite::Connection::open_in_memory().unwrap();
        let sql = "select null, 0, -9223372036854775808, 9223372036854775807, 1.0, -0.0, 1e300, 1e-7, 9e999,
                   -9e999, 'a' || char(0) || 'b', cast(x'ff00' as text), x'ff00', '', x'', 0.1 + 0.2";
        let row = conn.query_row(sql, [], |row| read(row, 0, 16)).unwrap();
        use CellKind::{Blob, Integer, Real, String};
        let bytes = Value::Bytes;
        let expected = [
            Value::Null,
            bytes(Integer, b"0"),
            bytes(Integer, b"-9223372036854775808"),
            bytes(Integer, b"9223372036854775807"),
            bytes(Real, b"1.0"),
            bytes(Real, b"-0.0"),
            bytes(Real, b"1e300"),
            bytes(Real, b"1e-7"),
            bytes(Real, b"Infinity"),
            bytes(Real, b"-Infinity"),
            bytes(String, b"a\0b"),
            bytes(String, &[0xff, 0]),
            bytes(Blob, &[0xff, 0]),
            bytes(String, b""),
            bytes(Blob, b""),
            bytes(Real, b"0.30000000000000004"),
        ];
        assert_eq!(row.values().collect::<Vec<_>>(), expected);
    }
}
