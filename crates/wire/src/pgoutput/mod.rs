//! The messages of PostgreSQL's output plugin `pgoutput`, protocol versions 1 and 2, values as text.
//!
//! Format: PostgreSQL documentation, "Logical Replication Message Formats". Nothing is copied: names are
//! borrowed from the message, and a row's values are places in it.

mod cursor;
mod relation;
#[cfg(test)]
mod tests;
mod tuple;

use headwater_core::Micros;

use cursor::Cursor;
pub use relation::{Relation, RelationColumn, ReplicaIdentity};
pub use tuple::{Old, Tuple};

/// Microseconds from 1970 to 2000, where PostgreSQL's clock begins.
const PG_EPOCH: Micros = 946_684_800_000_000;

/// The bytes are not a message of pgoutput.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a malformed message of pgoutput: {0}")]
pub struct Malformed(pub(crate) &'static str);

/// One message.
#[derive(Debug, Clone)]
pub enum Message<'a> {
    /// A transaction that has committed begins.
    Begin {
        /// Where its commit stands.
        final_lsn: u64,
        /// When it committed.
        committed_at: Micros,
        /// Its number.
        xid: u32,
    },
    /// It ends.
    Commit {
        /// Where its commit stands.
        lsn: u64,
        /// Where its commit ends: what is confirmed.
        end_lsn: u64,
    },
    /// It was replicated to the server from elsewhere.
    Origin,
    /// A table, before its first change and whenever it has changed.
    Relation(Relation<'a>),
    /// The name of a type that is not built in.
    Type,
    /// A row was inserted.
    Insert {
        /// Into which table.
        relation: u32,
        /// The row.
        new: Tuple,
    },
    /// A row was updated.
    Update {
        /// Of which table.
        relation: u32,
        /// The row before, where the identity gives it and it matters.
        old: Option<Old>,
        /// The row after.
        new: Tuple,
    },
    /// A row was deleted.
    Delete {
        /// From which table.
        relation: u32,
        /// The row before.
        old: Old,
    },
    /// Tables were emptied.
    Truncate {
        /// Which.
        relations: Vec<u32>,
    },
    /// `pg_logical_emit_message`.
    Logical {
        /// Whether it belongs to a transaction.
        transactional: bool,
        /// Whom it is for.
        prefix: &'a str,
        /// What it says.
        content: &'a [u8],
    },
    /// A piece of a transaction that has not ended begins.
    StreamStart {
        /// The transaction.
        xid: u32,
    },
    /// The piece ends.
    StreamStop,
    /// A transaction that came in pieces has committed.
    StreamCommit {
        /// The transaction.
        xid: u32,
        /// Where its commit stands.
        lsn: u64,
        /// Where its commit ends.
        end_lsn: u64,
        /// When it committed.
        committed_at: Micros,
    },
    /// A transaction that came in pieces, or a part of it, was rolled back.
    StreamAbort {
        /// The transaction.
        xid: u32,
        /// The part: the same number when it is the whole.
        subxid: u32,
    },
}

/// Within a piece of an unfinished transaction, changes begin with the (sub)transaction they belong to:
/// `Ok(Some)` is that number. The other kinds have none.
pub fn subtransaction(message: &[u8]) -> Result<Option<u32>, Malformed> {
    match message.first() {
        Some(b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M') => {
            let mut cursor = Cursor::new(message);
            cursor.u8()?;
            cursor.u32().map(Some)
        }
        _ => Ok(None),
    }
}

/// Decodes one message. `streamed` says that it stands within a piece of an unfinished transaction.
pub fn decode(message: &[u8], streamed: bool) -> Result<Message<'_>, Malformed> {
    let mut cursor = Cursor::new(message);
    let kind = cursor.u8()?;
    if streamed && subtransaction(message)?.is_some() {
        cursor.u32()?;
    }
    let decoded = body(kind, &mut cursor)?;
    cursor.end()?;
    Ok(decoded)
}

fn body<'a>(kind: u8, cursor: &mut Cursor<'a>) -> Result<Message<'a>, Malformed> {
    Ok(match kind {
        b'I' => Message::Insert { relation: cursor.u32()?, new: new(cursor)? },
        b'U' => {
            let relation = cursor.u32()?;
            let (old, new) = tuple::old_and_new(cursor)?;
            Message::Update { relation, old, new }
        }
        b'D' => Message::Delete { relation: cursor.u32()?, old: tuple::old(cursor)? },
        b'B' => Message::Begin { final_lsn: cursor.u64()?, committed_at: time(cursor)?, xid: cursor.u32()? },
        b'C' => {
            let (_flags, lsn, end_lsn) = (cursor.u8()?, cursor.u64()?, cursor.u64()?);
            time(cursor)?;
            Message::Commit { lsn, end_lsn }
        }
        b'R' => Message::Relation(relation::relation(cursor)?),
        b'Y' => {
            let (_oid, _schema, _name) = (cursor.u32()?, cursor.c_str()?, cursor.c_str()?);
            Message::Type
        }
        b'O' => {
            let (_lsn, _name) = (cursor.u64()?, cursor.c_str()?);
            Message::Origin
        }
        b'T' => {
            let (count, _options) = (cursor.u32()?, cursor.u8()?);
            let relations: Result<Vec<u32>, _> = (0..count).map(|_| cursor.u32()).collect();
            Message::Truncate { relations: relations? }
        }
        b'M' => {
            let (flags, _lsn, prefix, length) = (cursor.u8()?, cursor.u64()?, cursor.c_str()?, cursor.u32()?);
            Message::Logical { transactional: flags & 1 == 1, prefix, content: cursor.take(length as usize)? }
        }
        b'S' => {
            let (xid, _first) = (cursor.u32()?, cursor.u8()?);
            Message::StreamStart { xid }
        }
        b'E' => Message::StreamStop,
        b'c' => {
            let (xid, _flags) = (cursor.u32()?, cursor.u8()?);
            let (lsn, end_lsn) = (cursor.u64()?, cursor.u64()?);
            Message::StreamCommit { xid, lsn, end_lsn, committed_at: time(cursor)? }
        }
        b'A' => Message::StreamAbort { xid: cursor.u32()?, subxid: cursor.u32()? },
        _ => return Err(Malformed("a message of an unknown kind")),
    })
}

fn new(cursor: &mut Cursor<'_>) -> Result<Tuple, Malformed> {
    match cursor.u8()? {
        b'N' => tuple::tuple(cursor),
        _ => Err(Malformed("a new tuple was expected")),
    }
}

fn time(cursor: &mut Cursor<'_>) -> Result<Micros, Malformed> {
    cursor.i64()?.checked_add(PG_EPOCH).ok_or(Malformed("a time out of range"))
}
