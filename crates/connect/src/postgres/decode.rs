//! From messages of pgoutput to changes: which transaction, which table, which place.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use headwater_core::{
    Cell, CellKind, Change, Error, Kind, Micros, Op, Origin, Position, Result, ResultExt, Row, Table,
    Transaction,
};
use headwater_wire::pgoutput::{self, Message, Old, Relation, Tuple};

use super::catalog::Catalog;
use super::lsn;
use super::messages::Messages;
use super::setup::CapturedTable;

/// Rows are slices of what was read from the socket, which stays in memory as long as one of them does. Rows
/// that are fewer bytes than this, or than one in [`SHARE`] of the messages that they were in, are copied
/// out: a batch that waits must not hold many times what it is counted for.
pub const FEW: usize = 16 << 10;

/// See [`FEW`].
const SHARE: usize = 8;

/// Turns messages into changes; knows the tables, the transaction that is open, and the place.
pub struct Decoder {
    origin: Arc<Origin>,
    epoch: u64,
    catalog: Catalog,
    relations: HashMap<u32, Known>,
    captured: Captured,
    messages: Messages,
    open: Option<Open>,
    /// The log place of the last row, and how many rows had it.
    place: (u64, u64),
    changes: Vec<Change>,
    bytes: usize,
    /// The bytes of the messages since changes were last taken.
    messages_bytes: usize,
    /// Inserted rows of the outbox are not ours for now.
    skips_outbox: bool,
}

/// The tables whose changes are ours; a publication may hold others.
pub struct Captured {
    oids: HashMap<u32, Name>,
    names: HashMap<Name, u32>,
    outbox: Option<Name>,
    /// Whether the outbox is nothing else.
    outbox_only: bool,
}

/// Schema and name.
type Name = (String, String);

/// What a table of the log is among the captured ones.
#[derive(Debug, PartialEq, Eq)]
enum Found<'a> {
    /// One of them.
    Itself,
    /// One of them, which the log calls otherwise: it was renamed, before this name or after it.
    Renamed(&'a Name),
    /// It has the name that the table with this identifier had when the source was opened.
    Namesake(u32),
    /// None of them.
    Other,
}

impl Captured {
    /// These tables: by what they are, under whatever name the log has for them, and by their names,
    /// whatever had them then.
    pub fn new(tables: &[CapturedTable]) -> Self {
        let name = |table: &CapturedTable| (table.schema.clone(), table.name.clone());
        let outbox = tables.iter().find(|table| table.outbox);
        Self {
            oids: tables.iter().map(|table| (table.oid, name(table))).collect(),
            names: tables.iter().map(|table| (name(table), table.oid)).collect(),
            outbox: outbox.map(name),
            outbox_only: outbox.is_some_and(|table| !table.changes),
        }
    }

    /// The outbox table, schema and name, where there is one.
    pub fn outbox(&self) -> Option<&Name> {
        self.outbox.as_ref()
    }

    fn find(&self, oid: u32, name: &Name) -> Found<'_> {
        match (self.names.get(name), self.oids.get(&oid)) {
            (Some(named), _) if *named == oid => Found::Itself,
            (Some(named), _) => Found::Namesake(*named),
            (None, Some(captured)) => Found::Renamed(captured),
            (None, None) => Found::Other,
        }
    }

    fn role(&self, name: &Name) -> Role {
        match self.names.contains_key(name) {
            false => Role::Other,
            true if self.outbox_only && self.outbox.as_ref() == Some(name) => Role::Outbox,
            true => Role::Changes,
        }
    }
}

/// What a table's changes are to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Changes; of an outbox that `tables` names too, its inserts are events as well.
    Changes,
    /// Events, once they are inserted: updates, deletes and truncates mean nothing.
    Outbox,
    /// Nothing.
    Other,
}

/// A table, and which of its columns an old key has.
struct Known {
    table: Arc<Table>,
    identity: Box<[bool]>,
    role: Role,
}

/// The transaction that is decoded.
struct Open {
    commit_lsn: u64,
    transaction: Arc<Transaction>,
}

impl Decoder {
    /// A decoder for one connection: tables are told anew on each.
    pub fn new(
        origin: Arc<Origin>,
        epoch: u64,
        catalog: Catalog,
        captured: Captured,
        messages: Messages,
    ) -> Self {
        Self {
            origin,
            epoch,
            catalog,
            relations: HashMap::new(),
            captured,
            messages,
            open: None,
            place: (0, 0),
            changes: Vec::new(),
            bytes: 0,
            messages_bytes: 0,
            skips_outbox: false,
        }
    }

    /// What it asks about tables and types.
    pub fn catalog(&mut self) -> &mut Catalog {
        &mut self.catalog
    }

    /// Where changes come from.
    pub fn origin(&self) -> Arc<Origin> {
        self.origin.clone()
    }

    /// Whether a transaction is open.
    pub fn in_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// About how many bytes are decoded and not taken.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where the last of what is decoded and not taken stands.
    pub fn last(&self) -> Option<Position> {
        self.changes.last().map(|change| change.position)
    }

    /// What is decoded.
    pub fn take(&mut self) -> Vec<Change> {
        let (kept, seen) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.messages_bytes));
        let mut changes = std::mem::take(&mut self.changes);
        if kept < FEW || kept < seen / SHARE {
            let rows =
                changes.iter_mut().flat_map(|change| change.before.iter_mut().chain(&mut change.after));
            rows.for_each(|row| *row = row.detached());
        }
        changes
    }

    /// A transaction begins whose commit stands at `commit_lsn`.
    pub fn begin(&mut self, commit_lsn: u64, committed_at: Micros, xid: u32) {
        let transaction = Transaction {
            origin: self.origin.clone(),
            id: xid.to_string(),
            committed_at,
            log_position: lsn::text(commit_lsn),
        };
        self.open = Some(Open { commit_lsn, transaction: Arc::new(transaction) });
        self.place = (0, 0);
    }

    /// Whether rows of the outbox are left out from now on; messages are not.
    pub fn skip_outbox(&mut self, skip: bool) {
        self.skips_outbox = skip;
    }

    /// The open transaction ends.
    pub fn end(&mut self) {
        self.open = None;
    }

    /// Whether what came of a transaction that has not ended is a message for us.
    pub fn is_event(&self, bytes: &Bytes) -> Result<bool> {
        if bytes.first() != Some(&b'M') {
            return Ok(false);
        }
        let message =
            pgoutput::decode(bytes, true).doing(Kind::Decode, || "decoding a message".to_owned())?;
        Ok(matches!(message, Message::Logical { prefix, .. } if self.messages.are(prefix)))
    }

    /// A change of the open transaction, or what must be known for one. Only a table's description waits.
    pub async fn apply(&mut self, bytes: &Bytes, lsn: u64, streamed: bool) -> Result<()> {
        self.messages_bytes += bytes.len();
        let doing = || format!("decoding a change at {}", super::lsn::text(lsn));
        match pgoutput::decode(bytes, streamed).doing(Kind::Decode, doing)? {
            Message::Insert { relation, new } => self.row(bytes, lsn, relation, Op::Create, None, Some(new)),
            Message::Update { relation, old, new } => {
                self.row(bytes, lsn, relation, Op::Update, old, Some(new))
            }
            Message::Delete { relation, old } => self.row(bytes, lsn, relation, Op::Delete, Some(old), None),
            Message::Relation(relation) => self.describe(&relation).await,
            Message::Truncate { relations } => relations
                .into_iter()
                .try_for_each(|relation| self.row(bytes, lsn, relation, Op::Truncate, None, None)),
            Message::Logical { transactional: true, prefix, content } => {
                match self.messages.row(prefix, content) {
                    Some((table, row)) => self.push(table, lsn, Op::Create, None, Some(row)),
                    None => Ok(()),
                }
            }
            Message::Logical { .. } | Message::Origin | Message::Type => Ok(()),
            other => {
                Err(Error::new(Kind::Decode, format!("{}: {other:?} where a change was expected", doing())))
            }
        }
    }

    async fn describe(&mut self, relation: &Relation<'_>) -> Result<()> {
        let name = self.name(relation).await?;
        let role = self.captured.role(&name);
        let table = self.catalog.relation(relation, (&name.0, &name.1)).await?;
        let identity = relation.columns.iter().map(|column| column.key).collect();
        self.relations.insert(relation.oid, Known { table, identity, role });
        Ok(())
    }

    /// The name that a table has to us: the one it was captured under. The log is older than the catalog,
    /// so which of two names is the newer one is asked there.
    async fn name(&mut self, relation: &Relation<'_>) -> Result<Name> {
        let name = (relation.schema.to_owned(), relation.name.to_owned());
        match self.captured.find(relation.oid, &name) {
            Found::Itself | Found::Other => Ok(name),
            Found::Renamed(captured) => {
                let (schema, table) = captured;
                if !self.catalog.is_called(relation.oid, (schema, table)).await? {
                    let (captured, now) = (format!("{schema}.{table}"), format!("{}.{}", name.0, name.1));
                    tracing::warn!(
                        captured,
                        now,
                        "a table was renamed: its changes go on under the name of the config, until the next start; write the new name in `tables`, and in `from` of the streams that it feeds"
                    );
                }
                Ok(captured.clone())
            }
            // Its rows are not the other's: what the config names has to be looked up again, and read.
            Found::Namesake(oid) if !self.catalog.is_called(oid, (&name.0, &name.1)).await? => {
                Err(Error::new(
                    Kind::Unavailable,
                    format!("{}.{} is another table than when the source was opened", name.0, name.1),
                ))
            }
            Found::Namesake(_) => Ok(name),
        }
    }

    fn row(
        &mut self,
        bytes: &Bytes,
        lsn: u64,
        relation: u32,
        op: Op,
        old: Option<Old>,
        new: Option<Tuple>,
    ) -> Result<()> {
        let Some(known) = self.relations.get(&relation) else {
            return Err(Error::new(
                Kind::Decode,
                format!("a change of relation {relation}, which was not described"),
            ));
        };
        let event = op == Op::Create && !self.skips_outbox;
        if known.role == Role::Other || known.role == Role::Outbox && !event {
            self.count(lsn);
            return Ok(());
        }
        if !fits(&known.table, old.as_ref(), new.as_ref()) {
            // A description from before: tables are told anew on a new connection.
            let (table, place) = (known.table.full_name(), lsn::text(lsn));
            let what = format!("a row of {table} at {place} has other columns than its table");
            return Err(Error::new(Kind::Unavailable, what));
        }
        let (old, new) = settle(old, new, &known.identity);
        let row = |cells: Option<Tuple>| {
            cells.map(|cells| {
                Row::new(bytes.clone(), cells)
                    .ok_or_else(|| Error::new(Kind::Decode, "a value out of its message"))
            })
        };
        let (before, after) = (row(old).transpose()?, row(new).transpose()?);
        let table = known.table.clone();
        self.push(table, lsn, op, before, after)
    }

    /// Counts a row, also one that is left out, so that those after it keep their places.
    fn count(&mut self, lsn: u64) {
        self.place = if self.place.0 == lsn { (lsn, self.place.1 + 1) } else { (lsn, 0) };
    }

    fn push(
        &mut self,
        table: Arc<Table>,
        lsn: u64,
        op: Op,
        before: Option<Row>,
        after: Option<Row>,
    ) -> Result<()> {
        self.count(lsn);
        let Some(open) = &self.open else {
            return Err(Error::new(
                Kind::Decode,
                format!("a change at {} outside of any transaction", lsn::text(lsn)),
            ));
        };
        let position = Position::of(self.epoch, [open.commit_lsn, lsn, self.place.1]);
        let change = Change { op, table, before, after, position, transaction: open.transaction.clone() };
        self.bytes += change.size();
        self.changes.push(change);
        Ok(())
    }
}

/// Whether rows have as many values as their table has columns.
fn fits(table: &Table, old: Option<&Old>, new: Option<&Tuple>) -> bool {
    let old = old.map(|(Old::Key(cells) | Old::Full(cells))| cells);
    old.into_iter().chain(new).all(|cells| cells.len() == table.columns.len())
}

/// An old key has only the identity's columns: the others are absent, not NULL. A value that the update
/// did not touch and that only the old row has is taken from there: it is exact.
fn settle(old: Option<Old>, mut new: Option<Tuple>, identity: &[bool]) -> (Option<Tuple>, Option<Tuple>) {
    let absent = Cell { kind: CellKind::Absent, start: 0, len: 0 };
    let old = match old {
        None => None,
        Some(Old::Full(old)) => {
            for (new, old) in new.iter_mut().flatten().zip(&old) {
                if new.kind == CellKind::Unchanged {
                    *new = *old;
                }
            }
            Some(old)
        }
        Some(Old::Key(mut old)) => {
            for (cell, key) in old.iter_mut().zip(identity) {
                if !key {
                    *cell = absent;
                }
            }
            Some(old)
        }
    };
    (old, new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(kind: CellKind) -> Cell {
        Cell { kind, start: 7, len: 0 }
    }

    #[test]
    fn an_untouched_value_is_taken_from_the_old_row() {
        let new: Tuple = Box::new([cell(CellKind::Text), cell(CellKind::Unchanged)]);
        let old = Old::Full(Box::new([cell(CellKind::Null), cell(CellKind::Text)]));
        let (old, new) = settle(Some(old), Some(new), &[true, true]);
        let kinds = |tuple: Option<Tuple>| tuple.unwrap().iter().map(|cell| cell.kind).collect::<Vec<_>>();
        assert_eq!(kinds(new), [CellKind::Text, CellKind::Text]);
        assert_eq!(kinds(old), [CellKind::Null, CellKind::Text]);
    }

    #[test]
    fn what_is_not_in_the_key_is_absent() {
        let old = Old::Key(Box::new([cell(CellKind::Text), cell(CellKind::Null)]));
        let (old, _) = settle(Some(old), None, &[true, false]);
        assert_eq!(old.unwrap()[1].kind, CellKind::Absent);
    }
}
