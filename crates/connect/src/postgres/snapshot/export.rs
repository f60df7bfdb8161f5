//! The snapshot to read in, and when the stream has come to it.

use std::hash::{DefaultHasher, Hash, Hasher};

use headwater_core::{Error, Kind, Result, ResultExt};
use tokio_util::task::AbortOnDropHandle;

use crate::postgres::client::{Connection, quote_literal};
use crate::postgres::setup::{self, CapturedTable, CreatedSlot, Server};
use crate::postgres::url::ConnectOptions;

/// How many milliseconds the server may take to end a process.
const LINGER: u32 = 5000;

/// A snapshot that other connections can read in, as long as this is kept.
pub struct Exported {
    /// What committed before this place is in it.
    pub consistent_point: u64,
    /// What other connections call it.
    pub snapshot: String,
    /// It ends when this connection does anything else, and with it a temporary slot.
    _keeper: Connection,
}

impl Exported {
    /// The snapshot of a slot that was just made on `keeper`.
    pub fn new(created: CreatedSlot, keeper: Connection) -> Result<Self> {
        let none = || Error::new(Kind::Decode, "the server exported no snapshot with the slot");
        let snapshot = created.snapshot.ok_or_else(none)?;
        Ok(Self { consistent_point: created.consistent_point, snapshot, _keeper: keeper })
    }
}

/// A snapshot that is to be taken when the stream has come to its place.
pub struct Upcoming {
    /// The tables to read.
    tables: Vec<CapturedTable>,
    /// What commits at or after this place waits for the snapshot.
    hold: u64,
    export: Export,
}

enum Export {
    Made(Box<Exported>),
    Making(AbortOnDropHandle<Result<Exported>>),
}

impl Upcoming {
    /// A snapshot that is there already.
    pub fn ready(exported: Exported, tables: Vec<CapturedTable>) -> Self {
        let hold = exported.consistent_point;
        Self { tables, hold, export: Export::Made(Box::new(exported)) }
    }

    /// A snapshot with a temporary slot, which is made from now on. It cannot begin before the end of the
    /// log as it is now; that much of the stream can go on.
    /// `slot` is the one that the source follows.
    pub async fn temporary(options: &ConnectOptions, slot: &str, tables: Vec<CapturedTable>) -> Result<Self> {
        let mut connection = setup::connect(options).await?;
        let name = temporary_name(slot);
        end_earlier(&mut connection, &name).await?;
        let hold = Server::read(&mut connection).await?.end;
        let making = async move {
            let created = setup::create_slot(&mut connection, &name, true, true).await?;
            Exported::new(created, connection)
        };
        let export = Export::Making(AbortOnDropHandle::new(tokio::spawn(making)));
        Ok(Self { tables, hold, export })
    }

    /// Whether it is of an outbox, and nothing else is captured of that.
    pub fn is_of_outbox(&self) -> bool {
        self.tables.iter().any(|table| table.outbox && !table.changes)
    }

    /// Whether it begins after `lsn`, however long its making takes.
    pub fn is_after(&self, lsn: u64) -> bool {
        lsn < self.hold
    }

    /// Whether all that committed before `lsn`, and nothing else, means that the snapshot is due. Waits
    /// for it to be made when that decides.
    pub async fn is_due(&mut self, lsn: u64) -> Result<bool> {
        if self.is_after(lsn) {
            return Ok(false);
        }
        if let Export::Making(making) = &mut self.export {
            let made = making.await.doing(Kind::Internal, || "making a snapshot".to_owned())??;
            self.hold = made.consistent_point;
            self.export = Export::Made(Box::new(made));
        }
        Ok(lsn >= self.hold)
    }

    /// The snapshot, once [`Upcoming::is_due`] has said so.
    pub fn exported(self) -> Result<(Exported, Vec<CapturedTable>)> {
        match self.export {
            Export::Made(exported) => Ok((*exported, self.tables)),
            Export::Making(_) => Err(Error::new(Kind::Internal, "a snapshot that was not made yet")),
        }
    }
}

/// The temporary slot of the source that follows `slot`: the same every time.
fn temporary_name(slot: &str) -> String {
    let mut hash = DefaultHasher::new();
    slot.hash(&mut hash);
    format!("headwater_snapshot_{:016x}", hash.finish())
}

/// Ends what an earlier attempt of ours left behind: a process of the server that waits for transactions to
/// end does not see that its client is gone, and holds one of a few slots and connections.
async fn end_earlier(connection: &mut Connection, name: &str) -> Result<()> {
    let left = format!("FROM pg_replication_slots WHERE slot_name = {} AND temporary", quote_literal(name));
    let end = format!("SELECT pg_terminate_backend(active_pid, {LINGER}) {left} AND active_pid IS NOT NULL");
    connection.query(&end).await?;
    // One that had just ended by itself could not be ended either.
    if connection.query(&format!("SELECT {left}")).await?.is_empty() {
        return Ok(());
    }
    Err(Error::new(Kind::Busy, format!("slot \"{name}\" of an earlier snapshot is still in use")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_has_a_temporary_slot_of_its_own_and_the_same_each_time() {
        assert_eq!(temporary_name("orders"), temporary_name("orders"));
        assert_ne!(temporary_name("orders"), temporary_name("order"));
        assert!(temporary_name(&"o".repeat(63)).len() < 64);
    }
}
