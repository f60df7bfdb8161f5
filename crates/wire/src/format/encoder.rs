//! What the runtime hands to a format.

use std::sync::Arc;

use headwater_core::{Change, EventId, Header, Micros, Op, Position, Result, Row, Transaction};
use smallvec::SmallVec;

use super::OutboxRow;

/// The headers of an event.
pub type Headers = SmallVec<[Header; 2]>;

/// One event to be written: a change as a stream sees it.
#[derive(Debug, Clone, Copy)]
pub struct EventView<'a> {
    /// The event's id.
    pub id: EventId,
    /// What happened, as the stream sees it: a condition may have made another op of the change's own.
    pub op: Op,
    /// The change, for its table, transaction and position.
    pub change: &'a Change,
    /// The row before; `None` for reads, creates and truncates.
    pub before: Option<&'a Row>,
    /// The row after; `None` for deletes and truncates.
    pub after: Option<&'a Row>,
    /// When Headwater read the change.
    pub captured_at: Micros,
    /// Set when this delete or create is one half of an update that changed the key.
    pub moved: Option<Moved<'a>>,
}

impl<'a> EventView<'a> {
    /// The row that has the event's key: of a delete the row before, else the row after.
    pub fn key_row(&self) -> Option<&'a Row> {
        match self.op {
            Op::Truncate => None,
            Op::Delete => self.before.or(self.after),
            _ => self.after.or(self.before),
        }
    }
}

/// The other half of an update that changed the key.
#[derive(Debug, Clone, Copy)]
pub struct Moved<'a> {
    /// A row with the other half's key: of a delete the new row, of a create the old one.
    pub other: &'a Row,
}

/// Writes the events of one stream that come from one version of one table.
///
/// Every method appends to `out`; after an error what it appended is meaningless and must be cut off.
/// Errors are of kind `Decode`: the row holds something that is not what its column's type says.
pub trait Encoder: Send + Sync {
    /// Writes the message key of a row. Writes nothing, and says `false`, when the contract has no key.
    fn key(&mut self, row: &Row, out: &mut Vec<u8>) -> Result<bool>;

    /// Writes the payload of an event.
    fn payload(&mut self, event: &EventView<'_>, out: &mut Vec<u8>) -> Result<()>;

    /// Adds the headers that an event needs.
    fn headers(&mut self, event: &EventView<'_>, headers: &mut Headers) -> Result<()>;
}

/// One outbox event to be written.
#[derive(Debug, Clone, Copy)]
pub struct OutboxView<'a> {
    /// The event's id.
    pub id: EventId,
    /// The stream that the row was routed to.
    pub stream: &'a Arc<str>,
    /// What the row says.
    pub row: &'a OutboxRow<'a>,
    /// The table the row was written to.
    pub schema: &'a str,
    /// The table's name.
    pub table: &'a str,
    /// The transaction that wrote it.
    pub transaction: &'a Arc<Transaction>,
    /// Where in the source it stands.
    pub position: Position,
    /// When Headwater read it.
    pub captured_at: Micros,
}

/// Writes the events that outbox rows become, of any stream. The rules of [`Encoder`] hold.
pub trait OutboxEncoder: Send + Sync {
    /// Writes the message key: the row's aggregate id. Says `false` when the row has none.
    fn key(&mut self, row: &OutboxRow<'_>, out: &mut Vec<u8>) -> Result<bool>;

    /// Writes the payload; says `false`, having written nothing, when the event is a tombstone.
    fn payload(&mut self, event: &OutboxView<'_>, out: &mut Vec<u8>) -> Result<bool>;

    /// Adds the headers that an event needs.
    fn headers(&mut self, event: &OutboxView<'_>, headers: &mut Headers) -> Result<()>;
}
