//! Reading whole tables while changes go on.
//!
//! A table is read in pieces, each in a short read transaction that also notes the newest change. The
//! piece then waits until every change up to that one was handed out, and is handed out before any later
//! one: at its place in the order it says what is so, and no key ever moves backwards. Its rows' positions
//! lie between those of the two changes. A restart goes on behind the last piece that was handed out.

use std::collections::BTreeMap;
use std::sync::Arc;

use headwater_core::ports::{SourceState, TableProgress};
use headwater_core::{Batch, Change, Op, Result, Table, Transaction};

use super::capture::Capture;
use super::chunk::{self, Chunk};
use super::definition::Captures;
use super::plan::Captured;
use super::shape::Place;
use super::state::{Progress, Snapshot};
use crate::settings::SnapshotMode;

/// The most bytes of a table that are held while the changes before them are handed out.
const CHUNK: usize = 1 << 20;

/// The captured tables, and the piece that waits to be handed out.
#[derive(Default)]
pub struct Tables {
    captured: Vec<Captured>,
    /// For each table, the definition that a snapshot has to be as new as.
    gaps: BTreeMap<String, i64>,
    chunk: Option<Chunk>,
}

impl Tables {
    /// Tables, none of them being read.
    pub fn new(captured: Vec<Captured>, gaps: BTreeMap<String, i64>) -> Self {
        Self { captured, gaps, chunk: None }
    }

    /// Forgets the piece that waits: it will be read again.
    pub fn drop_chunk(&mut self) {
        self.chunk = None;
    }

    /// The names of the tables that are captured whole.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.whole().map(|one| &one.shape.name)
    }

    fn whole(&self) -> impl Iterator<Item = &Captured> {
        self.captured.iter().filter(|one| one.captures == Captures::Changes)
    }

    fn gap(&self, table: &str) -> i64 {
        self.gaps.get(table).copied().unwrap_or(0)
    }

    fn named(&self, name: &str) -> Option<&Captured> {
        self.whole().find(|one| one.shape.name == name)
    }
}

impl Capture {
    /// A table that has yet to be read, or read to its end; the one under way first.
    pub(super) fn unfinished(&self) -> Option<&Captured> {
        let waiting = |one: &&Captured| self.waits(one);
        let current = self.state.snapshot.as_ref().and_then(|snapshot| snapshot.table.as_ref());
        let current = current.and_then(|progress| self.tables.named(&progress.table)).filter(waiting);
        current.or_else(|| self.tables.whole().find(waiting))
    }

    fn waits(&self, one: &Captured) -> bool {
        let name = &one.shape.name;
        let never = self.setup.config.snapshot == SnapshotMode::Never;
        let skipped = || self.state.skipped.get(name).filter(|_| never);
        let known = self.state.done.get(name).or_else(skipped);
        self.state.asked.contains(name) || known.is_none_or(|&known| known < self.tables.gap(name))
    }

    /// Leaves tables unread with the gaps that they had when they were first seen, where the config says so.
    pub(super) fn skip(&mut self, gaps: &BTreeMap<String, i64>) {
        if self.setup.config.snapshot == SnapshotMode::Never {
            for (table, &gap) in gaps {
                self.state.skipped.entry(table.clone()).or_insert(gap);
            }
        }
    }

    /// Whether a snapshot is being taken, or has to be.
    pub(super) fn reads_tables(&self) -> bool {
        self.tables.chunk.is_some() || self.unfinished().is_some()
    }

    /// What comes next while a snapshot is taken; `None` when there is none to take.
    pub(super) fn next_of_snapshot(&mut self, budget: usize) -> Result<Option<Batch>> {
        if self.tables.chunk.is_none() && !self.read_chunk(budget)? {
            return Ok(None);
        }
        let watermark = self.tables.chunk.as_ref().map_or(0, |chunk| chunk.watermark);
        if self.place.0 < watermark {
            let changes = self.changes(watermark, budget)?;
            if !changes.is_empty() {
                return self.batch(changes).map(Some);
            }
            self.place = (watermark, 0);
        }
        match self.tables.chunk.take() {
            Some(chunk) => self.hand_out(chunk).map(Some),
            None => Ok(None),
        }
    }

    /// After the schema's version changed, a rowid that is no key may be another one (VACUUM), and a
    /// table may have a gap: what was being read is then begun again, under another name.
    pub(super) fn begin_again_if_moved(&mut self) {
        let progress = self.state.snapshot.as_ref().and_then(|snapshot| snapshot.table.as_ref());
        let Some(progress) = progress else { return };
        let steady = self.tables.named(&progress.table).is_some_and(|captured| {
            let unstable = matches!(captured.shape.place, Place::Rowid { stable: false, .. });
            !unstable && progress.def >= self.tables.gap(&progress.table)
        });
        if !steady {
            self.state.snapshot = None;
        }
    }

    /// Reads the next piece; false when every table was read to its end.
    fn read_chunk(&mut self, budget: usize) -> Result<bool> {
        let Some(captured) = self.unfinished().cloned() else { return Ok(false) };
        let table = captured.shape.name.clone();
        if self.state.snapshot.is_none() {
            let begun = jiff::Timestamp::now().as_microsecond();
            self.state.snapshot = Some(Snapshot { name: format!("snapshot {begun}"), begun, table: None });
            self.show_tables();
        }
        let Some(snapshot) = &mut self.state.snapshot else { return Ok(false) };
        let progress = match snapshot.table.take() {
            Some(progress) if progress.table == table => progress,
            _ => Progress { table, def: captured.def, after: Vec::new(), rows: 0 },
        };
        let chunk = chunk::read(&self.conn, &captured.shape, &progress.after, budget.min(CHUNK))?;
        snapshot.table = Some(progress);
        self.tables.chunk = Some(chunk);
        Ok(true)
    }

    fn hand_out(&mut self, chunk: Chunk) -> Result<Batch> {
        let mut changes = Vec::with_capacity(chunk.rows.len());
        if let Some((table, transaction)) = self.described()? {
            for row in chunk.rows {
                self.place.1 += 1;
                changes.push(Change {
                    op: Op::Read,
                    table: table.clone(),
                    before: None,
                    after: Some(row),
                    position: self.position(self.place),
                    transaction: transaction.clone(),
                });
            }
        }
        self.advance(changes.len() as u64, chunk.last, chunk.end);
        self.batch(changes)
    }

    /// The table being read as its changes carry it, and the snapshot as their transaction.
    fn described(&mut self) -> Result<Option<(Arc<Table>, Arc<Transaction>)>> {
        let Some(snapshot) = &self.state.snapshot else { return Ok(None) };
        let Some(progress) = &snapshot.table else { return Ok(None) };
        let Some(def) = self.tables.named(&progress.table).map(|captured| captured.def) else {
            return Ok(None);
        };
        let transaction = Transaction {
            origin: self.reader.origin().clone(),
            id: snapshot.name.clone(),
            committed_at: snapshot.begun,
            log_position: self.place.0.to_string(),
        };
        Ok(Some((self.reader.table(&self.conn, def)?, Arc::new(transaction))))
    }

    fn advance(&mut self, rows: u64, last: Vec<super::state::Scalar>, end: bool) {
        let Some(progress) = self.state.snapshot.as_mut().and_then(|snapshot| snapshot.table.as_mut()) else {
            return;
        };
        progress.rows += rows;
        let (table, total, def) = (progress.table.clone(), progress.rows, progress.def);
        if end {
            self.state.done.insert(table.clone(), def);
            self.state.asked.remove(&table);
        } else {
            progress.after = last;
        }
        self.setup.say(|status| {
            let name = format!("main.{table}");
            if let Some(shown) = status.snapshot.iter_mut().find(|shown| shown.table == name) {
                shown.rows = total;
                shown.done = end;
            }
        });
        if end && self.unfinished().is_none() {
            self.state.snapshot = None;
            self.setup.say(|status| {
                status.state = SourceState::Streaming;
                status.snapshot.clear();
            });
        }
    }

    /// Shows the tables that a snapshot has to read.
    pub(super) fn show_tables(&self) {
        let current = self.state.snapshot.as_ref().and_then(|snapshot| snapshot.table.as_ref());
        let show = |one: &Captured| TableProgress {
            table: format!("main.{}", one.shape.name),
            rows: current
                .filter(|progress| progress.table == one.shape.name)
                .map_or(0, |progress| progress.rows),
            estimate: chunk::estimate(&self.conn, &one.shape),
            done: !self.waits(one),
        };
        let tables = self.tables.whole().map(show).collect();
        self.setup.say(|status| {
            status.state = SourceState::Snapshot;
            status.snapshot = tables;
        });
    }
}
