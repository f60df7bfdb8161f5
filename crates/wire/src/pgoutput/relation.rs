//! What the server says of a table before its first change.

use super::Malformed;
use super::cursor::Cursor;

/// A table, as its following rows have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation<'a> {
    /// What rows refer to it by.
    pub oid: u32,
    /// Its schema.
    pub schema: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its `relreplident`.
    pub identity: ReplicaIdentity,
    /// Its columns in the order of its rows.
    pub columns: Vec<RelationColumn<'a>>,
}

/// One column of a [`Relation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn<'a> {
    /// Whether it is part of the replica identity.
    pub key: bool,
    /// Its name.
    pub name: &'a str,
    /// The object identifier of its type.
    pub type_oid: u32,
    /// Its type modifier (`atttypmod`); -1 for none.
    pub modifier: i32,
}

/// `pg_class.relreplident`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    /// Nothing.
    Nothing,
    /// The whole row.
    Full,
    /// A unique index.
    Index,
}

pub fn relation<'a>(cursor: &mut Cursor<'a>) -> Result<Relation<'a>, Malformed> {
    let (oid, schema, name) = (cursor.u32()?, cursor.c_str()?, cursor.c_str()?);
    let identity = match cursor.u8()? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        _ => return Err(Malformed("a replica identity of an unknown kind")),
    };
    let count = usize::from(cursor.u16()?);
    let mut columns = Vec::with_capacity(count.min(1700));
    for _ in 0..count {
        columns.push(RelationColumn {
            key: cursor.u8()? & 1 == 1,
            name: cursor.c_str()?,
            type_oid: cursor.u32()?,
            modifier: cursor.i32()?,
        });
    }
    Ok(Relation { oid, schema, name, identity, columns })
}
