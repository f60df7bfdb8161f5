//! Taking a snapshot at its place in the stream.

use std::sync::Arc;

use headwater_core::ports::TableProgress;
use headwater_core::{Change, Op, Position, Result, Row, Transaction};
use tokio::runtime::Handle;

use super::export::{Exported, Upcoming};
use super::plan::{self, OutboxRows, Planned, Published};
use super::workers::{Left, Piece, Workers};
use crate::postgres::follow::Follow;
use crate::postgres::lsn;
use crate::postgres::monitor::News;
use crate::postgres::setup::CapturedTable;
use crate::postgres::url::ConnectOptions;
use crate::requests::Requests;
use crate::store::now;

/// How snapshots are taken.
pub struct Settings {
    /// Where.
    pub options: ConnectOptions,
    /// The slot that the source follows.
    pub slot: String,
    /// By how many connections.
    pub workers: usize,
    /// `server_version_num`.
    pub version: u32,
    /// The publications that are followed.
    pub publications: Vec<String>,
    /// The captured tables.
    pub tables: Vec<CapturedTable>,
    /// What is read of the outbox, if there is one.
    pub outbox: OutboxRows,
    /// Where an operator's requests lie.
    pub requests: Requests,
    /// Where the workers run: not on the thread that follows the log.
    pub tasks: Handle,
}

impl Settings {
    /// A snapshot of these tables, as of a moment that is yet to come.
    pub async fn upcoming(&self, tables: Vec<CapturedTable>) -> Result<Upcoming> {
        Upcoming::temporary(&self.options, &self.slot, tables).await
    }
}

/// Where the reads of a snapshot stand.
struct Reads {
    point: u64,
    transaction: Arc<Transaction>,
    number: u64,
}

impl Follow {
    /// All that committed before `lsn` is handed out, and nothing that came later: takes the snapshot
    /// that waits for this place.
    pub async fn reached(&mut self, lsn: u64) -> Result<()> {
        if self.upcoming.as_ref().is_none_or(|upcoming| upcoming.is_after(lsn)) {
            return Ok(());
        }
        // It may be long until the snapshot is made.
        if self.decoder.bytes() > 0 || self.turn.moved {
            self.send().await;
        }
        let Some(mut upcoming) = self.upcoming.take() else { return Ok(()) };
        if upcoming.is_due(lsn).await? {
            self.take(upcoming).await
        } else {
            self.upcoming = Some(upcoming);
            Ok(())
        }
    }

    /// Whether the rows of the outbox that come from the log now are not to be handed out: the table still has
    /// them, and the snapshot has them in their order, behind those that no log tells of.
    pub fn reads_outbox(&self) -> bool {
        let own = matches!(self.snapshots.outbox, OutboxRows::Own);
        own && self.upcoming.as_ref().is_some_and(Upcoming::is_of_outbox)
    }

    async fn take(&mut self, upcoming: Upcoming) -> Result<()> {
        let (exported, tables) = upcoming.exported()?;
        let left = self.plan(&tables).await?;
        self.begin(left.tables());
        let mut workers = Workers::start(&self.snapshots, &exported.snapshot, left);
        let mut reads = self.reads(&exported);
        let mut again = Vec::new();
        while let Some(piece) = workers.next().await {
            match piece? {
                Piece::Rows(table, rows) => self.read(&mut reads, &table, rows).await,
                Piece::Done(table) => self.done(&table, &tables),
                Piece::Rewritten(table) => {
                    tracing::warn!(table = table.name, "rewritten since its snapshot began: it gets another");
                    again
                        .extend(tables.iter().filter(|captured| captured.full_name() == table.name).cloned());
                }
            }
        }
        drop(exported);
        if again.is_empty() {
            self.turn.news.push(News::Streaming);
        } else {
            self.upcoming = Some(self.snapshots.upcoming(again).await?);
        }
        self.send().await;
        Ok(())
    }

    async fn plan(&mut self, tables: &[CapturedTable]) -> Result<Left> {
        let published =
            Published { version: self.snapshots.version, publications: &self.snapshots.publications };
        let mut planned = Vec::new();
        for captured in tables {
            match plan::table(self.decoder.catalog(), captured, &published, &self.snapshots.outbox).await? {
                Some(table) => planned.push(table),
                None => {
                    tracing::warn!(table = captured.full_name(), "the table was dropped before its snapshot")
                }
            }
        }
        Ok(Left::new(planned))
    }

    fn reads(&self, exported: &Exported) -> Reads {
        let point = exported.consistent_point;
        let transaction = Transaction {
            origin: self.decoder.origin(),
            id: format!("snapshot:{}", lsn::text(point)),
            committed_at: now(),
            log_position: lsn::text(point),
        };
        Reads { point, transaction: Arc::new(transaction), number: 0 }
    }

    async fn read(&mut self, reads: &mut Reads, table: &Planned, rows: Vec<Row>) {
        let change = |row| {
            reads.number += 1;
            Change {
                op: Op::Read,
                table: table.table.clone(),
                before: None,
                after: Some(row),
                position: Position::of(self.state.epoch, [reads.point, 0, reads.number]),
                transaction: reads.transaction.clone(),
            }
        };
        let changes: Vec<Change> = rows.into_iter().map(change).collect();
        if let Some(last) = changes.last() {
            self.position = self.position.max(last.position);
        }
        self.hand_out(changes).await;
    }

    /// The next checkpoint says that the table was read.
    fn done(&mut self, table: &Planned, tables: &[CapturedTable]) {
        if let Some(captured) = tables.iter().find(|captured| captured.full_name() == table.name) {
            self.state.snapshots.insert(table.name.clone(), captured.oid);
        }
        self.turn.news.push(News::Table(table.name.clone()));
    }

    fn begin(&self, planned: &[Arc<Planned>]) {
        let progress = |table: &Arc<Planned>| TableProgress {
            table: table.name.clone(),
            rows: 0,
            estimate: table.estimate,
            done: false,
        };
        self.monitor.tell(News::Snapshot(planned.iter().map(progress).collect()));
    }
}
