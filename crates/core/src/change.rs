//! What a database did.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Checkpoint, Micros, Position, Row, Table};

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// It was there when the snapshot was taken.
    Read,
    /// It was inserted.
    Create,
    /// It was updated.
    Update,
    /// It was deleted.
    Delete,
    /// The whole table was emptied; there is no row.
    Truncate,
}

impl Op {
    /// The op's word in events: `read`, `create`, `update`, `delete`, `truncate`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Truncate => "truncate",
        }
    }
}

/// The system a change comes from; shared by all changes of one source and epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The source's name in the config.
    pub source: String,
    /// `postgres`, `sqlite`, `mysql`.
    pub connector: String,
    /// The database's name.
    pub database: String,
    /// What tells this server's data from every other's: goes into each event's id.
    pub system_id: String,
}

/// The transaction that made a change; shared by all its changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// Where it happened.
    pub origin: Arc<Origin>,
    /// The database's own number for it; where a source cannot tell transactions (SQLite), the change's own;
    /// of a snapshot, the snapshot's name.
    pub id: String,
    /// When it committed (on SQLite, when the statement ran); of a snapshot, when it was taken.
    pub committed_at: Micros,
    /// Its commit's place in words the database's own tools understand (an LSN, a change id).
    pub log_position: String,
}

/// What a database did to one row, or to a whole table.
#[derive(Debug, Clone)]
pub struct Change {
    /// What happened.
    pub op: Op,
    /// To which table.
    pub table: Arc<Table>,
    /// The row before; as much of it as the table's identity gives. `None` for reads and creates.
    pub before: Option<Row>,
    /// The row after. `None` for deletes and truncates.
    pub after: Option<Row>,
    /// Where in the source it stands.
    pub position: Position,
    /// By which transaction.
    pub transaction: Arc<Transaction>,
}

impl Change {
    /// About how much memory it holds.
    pub fn size(&self) -> usize {
        let row = |row: &Option<Row>| row.as_ref().map_or(0, Row::size);
        row(&self.before) + row(&self.after) + size_of::<Self>()
    }
}

/// What a source read in one go: changes in commit order, and where it stands after them.
#[derive(Debug, Default)]
pub struct Batch {
    /// The changes; may be empty when only the checkpoint moved.
    pub changes: Vec<Change>,
    /// Where the source stands after these changes; `None` when nothing may be stored yet.
    pub checkpoint: Option<Checkpoint>,
}
