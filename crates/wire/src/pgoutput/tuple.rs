//! The values of a row.

use headwater_core::{Cell, CellKind};

use super::Malformed;
use super::cursor::Cursor;

/// A row's values: where each is, counted from the start of the message.
pub type Tuple = Box<[Cell]>;

/// What an update or delete says of the row before.
#[derive(Debug, Clone)]
pub enum Old {
    /// The columns of the replica identity; the others read as NULL and mean nothing.
    Key(Tuple),
    /// Every column (REPLICA IDENTITY FULL).
    Full(Tuple),
}

/// TupleData: the number of columns, then for each a kind and, for `t`, a length and the text.
pub fn tuple(cursor: &mut Cursor<'_>) -> Result<Tuple, Malformed> {
    let columns = usize::from(cursor.u16()?);
    let mut cells = Vec::with_capacity(columns);
    for _ in 0..columns {
        cells.push(match cursor.u8()? {
            b't' => {
                let len = cursor.u32()?;
                let start = u32::try_from(cursor.at()).map_err(|_| Malformed("too large"))?;
                cursor.take(len as usize)?;
                Cell { kind: CellKind::Text, start, len }
            }
            b'n' => Cell { kind: CellKind::Null, start: 0, len: 0 },
            b'u' => Cell { kind: CellKind::Unchanged, start: 0, len: 0 },
            _ => return Err(Malformed("a value of an unknown kind")),
        });
    }
    Ok(cells.into())
}

/// The old row and the new: `K` or `O` and a tuple, then `N` and a tuple.
pub fn old_and_new(cursor: &mut Cursor<'_>) -> Result<(Option<Old>, Tuple), Malformed> {
    let old = match cursor.u8()? {
        b'N' => return Ok((None, tuple(cursor)?)),
        b'K' => Old::Key(tuple(cursor)?),
        b'O' => Old::Full(tuple(cursor)?),
        _ => return Err(Malformed("a tuple of an unknown kind")),
    };
    match cursor.u8()? {
        b'N' => Ok((Some(old), tuple(cursor)?)),
        _ => Err(Malformed("a new tuple was expected")),
    }
}

/// The old row alone.
pub fn old(cursor: &mut Cursor<'_>) -> Result<Old, Malformed> {
    match cursor.u8()? {
        b'K' => tuple(cursor).map(Old::Key),
        b'O' => tuple(cursor).map(Old::Full),
        _ => Err(Malformed("a tuple of an unknown kind")),
    }
}
