//! Shapes one change of a row for one stream.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use headwater_core::ports::HoldsBack;
use headwater_core::{Change, EventId, Micros, Op, Result, Row};
use headwater_wire::format::{EventView, Headers, Moved};
use smallvec::SmallVec;

use super::Trouble;
use super::condition::Decision;
use super::output::{Head, Output, Parts, To};
use super::plan::{Plan, complete};
use super::shaper::{Words, trouble_id};

/// Tells the events apart that come from one change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    /// The change's own.
    Own,
    /// The delete of the key that an update left.
    Left,
    /// The create of the key that an update took.
    Took,
    /// What follows a delete.
    Tombstone,
    /// A truncate in one partition.
    Partition(u32),
}

/// One change on its way to one stream.
pub struct RowShaper<'a> {
    /// The stream's plan for the table.
    pub plan: &'a mut Plan,
    /// Event types.
    pub words: &'a Words,
    /// The change.
    pub change: &'a Change,
    /// Its place in the batch.
    pub at: u32,
    /// When it was read.
    pub captured_at: Micros,
    /// Where its events go.
    pub out: &'a mut Output,
}

/// What goes into one event.
struct Draft<'a> {
    op: Op,
    before: Option<&'a Row>,
    after: Option<&'a Row>,
    moved: Option<Moved<'a>>,
    piece: Piece,
}

impl RowShaper<'_> {
    /// Writes the events that the change becomes.
    pub fn shape(&mut self) {
        let change = self.change;
        if change.op == Op::Truncate {
            return self.truncate();
        }
        if let Some(reason) = self.plan.unidentified(change) {
            return self.trouble(HoldsBack::Stream, reason);
        }
        let filled = match (&change.before, &change.after) {
            (Some(before), Some(after)) => complete(before, after),
            _ => None,
        };
        let (before, after) = (change.before.as_ref(), filled.as_ref().or(change.after.as_ref()));
        match (self.plan.decide(change), before, after) {
            (Decision::Drop, ..) => {}
            (Decision::Undecided(why), before, after) => self.undecided(before, after, &why),
            (Decision::Pass(op), Some(before), Some(after)) if self.plan.moves(before, after) => {
                self.moved(op, before, after);
            }
            (Decision::Pass(op), before, after) => {
                let (before, after) = match op {
                    Op::Read | Op::Create | Op::Truncate => (None, after),
                    Op::Update => (before, after),
                    // A row that leaves the condition is as good as deleted: its last state is the before.
                    Op::Delete => (before.or(after), None),
                };
                self.event(&Draft { op, before, after, moved: None, piece: Piece::Own });
            }
        }
    }

    /// An update that changed the key: the old key's delete, then the new key's create.
    fn moved(&mut self, op: Op, before: &Row, after: &Row) {
        if op != Op::Create {
            let moved = (op != Op::Delete).then_some(Moved { other: after });
            self.event(&Draft {
                op: Op::Delete,
                before: Some(before),
                after: None,
                moved,
                piece: Piece::Left,
            });
        }
        if op != Op::Delete {
            let moved = (op != Op::Create).then_some(Moved { other: before });
            self.event(&Draft {
                op: Op::Create,
                before: None,
                after: Some(after),
                moved,
                piece: Piece::Took,
            });
        }
    }

    /// A change that cannot be decided holds back its key: both keys, where it changed the key.
    fn undecided(&mut self, before: Option<&Row>, after: Option<&Row>, why: &str) {
        let moves = matches!((before, after), (Some(before), Some(after)) if self.plan.moves(before, after));
        let rows = if moves { [before, after] } else { [after.or(before), None] };
        for row in rows.into_iter().flatten() {
            let from = self.out.begin();
            match self.keys(row) {
                Ok(parts) => {
                    let key = self.out.order_key(&parts).map(Bytes::copy_from_slice);
                    self.trouble(HoldsBack::key(key), why.to_owned());
                }
                Err(error) => self.trouble(HoldsBack::Stream, error.to_string()),
            }
            self.out.buffer.truncate(from);
        }
    }

    fn truncate(&mut self) {
        for partition in 0..self.plan.partitions {
            let piece = Piece::Partition(partition);
            self.event(&Draft { op: Op::Truncate, before: None, after: None, moved: None, piece });
        }
    }

    /// Writes one event, and the tombstone after a delete.
    fn event(&mut self, draft: &Draft<'_>) {
        let from = self.out.begin();
        let parts = match self.row_keys(draft) {
            Ok(parts) => parts,
            Err(error) => {
                self.out.buffer.truncate(from);
                // Without its key nobody can say what must wait behind it: the whole stream does.
                return self.trouble(HoldsBack::Stream, format!("the key cannot be read: {error}"));
            }
        };
        let id = self.id(draft.piece);
        match self.payload(draft, id) {
            Ok((payload, headers)) => {
                let to = match draft.piece {
                    Piece::Partition(partition) => To::Partition(partition),
                    _ => To::Key(self.plan.partitions),
                };
                let head = self.head(id, self.words.of(draft.op), headers);
                self.out.push(head, Parts { payload: Some(payload), ..parts.clone() }, to);
                if draft.op == Op::Delete && self.plan.tombstones && parts.key.is_some() {
                    let id = self.position_id(Piece::Tombstone);
                    let head = self.head(id, self.words.of(draft.op), Headers::new());
                    self.out.push(head, parts, to);
                }
            }
            Err(error) => {
                let key = self.out.order_key(&parts).map(Bytes::copy_from_slice);
                self.out.buffer.truncate(from);
                self.trouble_of(id, HoldsBack::key(key), error.to_string());
            }
        }
    }

    fn payload(&mut self, draft: &Draft<'_>, id: EventId) -> Result<(Range<usize>, Headers)> {
        let view = EventView {
            id,
            op: draft.op,
            change: self.change,
            before: draft.before,
            after: draft.after,
            captured_at: self.captured_at,
            moved: draft.moved,
        };
        let start = self.out.buffer.len();
        self.plan.encoder.payload(&view, &mut self.out.buffer)?;
        let payload = start..self.out.buffer.len();
        let mut headers = Headers::new();
        self.plan.encoder.headers(&view, &mut headers)?;
        Ok((payload, headers))
    }

    /// The keys of an event: those of its row; a truncate has none.
    fn row_keys(&mut self, draft: &Draft<'_>) -> Result<Parts> {
        let Some(row) = draft.after.or(draft.before) else { return Ok(Parts::default()) };
        let from = self.out.buffer.len();
        match (self.keys(row), draft.before) {
            // A key column that the update did not touch: the row before has it.
            (Err(_), Some(before)) if draft.after.is_some() => {
                self.out.buffer.truncate(from);
                self.keys(before)
            }
            (keys, _) => keys,
        }
    }

    fn keys(&mut self, row: &Row) -> Result<Parts> {
        let buffer = &mut self.out.buffer;
        let start = buffer.len();
        let key = self.plan.encoder.key(row, buffer)?.then_some(start..buffer.len());
        let middle = buffer.len();
        let order_key = match &self.plan.order_key {
            None => None,
            Some(writer) => {
                writer.write(row, buffer)?;
                Some(middle..buffer.len())
            }
        };
        Ok(Parts { key, order_key, payload: None })
    }

    fn head(&self, id: EventId, kind: Arc<str>, mut headers: Headers) -> Head {
        headers.push(self.plan.version.clone());
        Head {
            change: self.at,
            outbox: None,
            id,
            stream: Arc::clone(&self.plan.stream),
            kind,
            headers,
            time: self.change.transaction.committed_at,
            position: self.change.position,
        }
    }

    /// Invariant 3: from where the change stands; of a snapshot's row, from snapshot, table and the
    /// table's own key, since a snapshot that is read again reads its rows in another order.
    fn id(&self, piece: Piece) -> EventId {
        let (transaction, table) = (&self.change.transaction, &self.change.table);
        let origin = transaction.origin.system_id.as_bytes();
        let (schema, name) = (table.schema.as_bytes(), table.name.as_bytes());
        let whence = [origin, self.plan.stream.as_bytes(), transaction.id.as_bytes(), schema, name];
        let mut parts: SmallVec<[&[u8]; 16]> = SmallVec::from_slice(&whence);
        match &self.change.after {
            Some(row) if self.change.op == Op::Read && self.plan.own_key(row, &mut parts) => {
                EventId::derive(transaction.committed_at, &parts)
            }
            _ => self.position_id(piece),
        }
    }

    fn position_id(&self, piece: Piece) -> EventId {
        let transaction = &self.change.transaction;
        let (kind, number) = match piece {
            Piece::Own => (0, 0),
            Piece::Left => (1, 0),
            Piece::Took => (2, 0),
            Piece::Tombstone => (3, 0),
            Piece::Partition(partition) => (4, partition),
        };
        let [a, b, c, d] = number.to_be_bytes();
        let origin = transaction.origin.system_id.as_bytes();
        let place = self.change.position.bytes();
        EventId::derive(
            transaction.committed_at,
            &[origin, self.plan.stream.as_bytes(), place, &[kind, a, b, c, d]],
        )
    }

    fn trouble(&mut self, holds: HoldsBack, reason: String) {
        self.trouble_of(trouble_id(self.change, &self.plan.stream, &holds), holds, reason);
    }

    fn trouble_of(&mut self, id: EventId, holds: HoldsBack, reason: String) {
        let stream = Arc::clone(&self.plan.stream);
        self.out.shaped.troubles.push(Trouble { change: self.at, stream, id, holds, outbox: None, reason });
    }
}
