//! What the tests of sources share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use headwater_core::ports::{Connector, Source};
use headwater_core::{Batch, Change, Checkpoint, Op, Position, Row, Value};

use super::{Database, Session};
use crate::null_bus::NullBus;

/// How long anything may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The budget most tests read with.
pub const BUDGET: usize = 64 << 10;

/// The table most tests use, and one that says when to stop reading.
pub const TABLES: &str = "
    create table item (id integer primary key, name text, size integer);
    create table marker (id integer primary key);";

/// An open source being read, with everything it handed out. What must hold of every source at all times
/// is checked at every batch.
pub struct Reading {
    source: Box<dyn Source>,
    /// Every change so far.
    pub changes: Vec<Change>,
    /// The newest checkpoint.
    pub checkpoint: Option<Checkpoint>,
    last: Option<Position>,
    /// The largest budget since the last batch: one that was asked for and dropped may still be followed.
    budget: usize,
    bus: NullBus,
}

impl Reading {
    /// Opens a source and reads it.
    pub async fn open(connector: &Arc<dyn Connector>, from: Option<&Checkpoint>) -> Self {
        let opened = tokio::time::timeout(PATIENCE, connector.open(from)).await;
        let source = opened.expect("opening takes too long").expect("the source opens");
        Self {
            source,
            changes: Vec::new(),
            checkpoint: from.cloned(),
            last: None,
            budget: 0,
            bus: NullBus::default(),
        }
    }

    /// Reads one batch; returns how many changes it has.
    pub async fn next(&mut self, budget: usize) -> usize {
        self.budget = self.budget.max(budget);
        let next = tokio::time::timeout(PATIENCE, self.source.next(budget)).await;
        let batch = next.expect("nothing came for too long").expect("the source reads");
        self.take(batch)
    }

    /// Waits for a batch for so long at most; whether one came.
    pub async fn next_within(&mut self, wait: Duration, budget: usize) -> bool {
        self.budget = self.budget.max(budget);
        match tokio::time::timeout(wait, self.source.next(budget)).await {
            Err(_) => false,
            Ok(batch) => {
                self.take(batch.expect("the source reads"));
                true
            }
        }
    }

    fn take(&mut self, batch: Batch) -> usize {
        let budget = std::mem::take(&mut self.budget);
        assert!(!batch.changes.is_empty() || batch.checkpoint.is_some(), "a batch of nothing");
        for change in &batch.changes {
            // Ones at or below the checkpoint it was opened from may come again: the runtime drops them.
            assert!(self.last.is_none_or(|last| change.position > last), "positions must rise strictly");
            self.last = Some(change.position);
        }
        let size: usize = batch.changes.iter().map(Change::size).sum();
        let largest = batch.changes.iter().map(Change::size).max().unwrap_or(0);
        assert!(size <= budget * 2 + largest, "a batch of {size} bytes for a budget of {budget}");
        if let Some(checkpoint) = batch.checkpoint {
            assert_eq!(checkpoint.source, "test");
            if let Some(last) = batch.changes.last() {
                assert!(checkpoint.position >= last.position, "the checkpoint is behind its batch");
            }
            if let Some(before) = &self.checkpoint {
                assert!(checkpoint.position >= before.position, "the checkpoint went back");
            }
            self.checkpoint = Some(checkpoint);
        }
        let count = batch.changes.len();
        self.changes.extend(batch.changes);
        count
    }

    /// Reads until this row of `marker` arrives, which is left out.
    pub async fn until(&mut self, marker: u64) {
        let marker = marker.to_string();
        loop {
            let found = |change: &Change| {
                change.table.name == "marker"
                    && change.after.as_ref().is_some_and(|row| row_text(row) == marker)
            };
            if self.changes.iter().any(found) {
                self.changes.retain(|change| change.table.name != "marker");
                return;
            }
            self.next(BUDGET).await;
        }
    }

    /// Confirms everything that was read.
    pub async fn confirm(&mut self) {
        let checkpoint = self.checkpoint.clone().expect("something was read");
        let proof = self.bus.durable(&checkpoint).await;
        self.source.confirm(&checkpoint, proof).await.expect("the source takes it");
    }

    /// The changes in words.
    pub fn described(&self) -> Vec<String> {
        self.changes.iter().map(describe).collect()
    }

    /// The changes behind a checkpoint: what the runtime keeps of a redelivery.
    pub fn new_changes(&self, since: Option<&Checkpoint>) -> Vec<Change> {
        let new = |change: &&Change| since.is_none_or(|since| change.position > since.position);
        self.changes.iter().filter(new).cloned().collect()
    }
}

/// A change in words: `update item 1|a|2 -> 1|b|2`.
pub fn describe(change: &Change) -> String {
    let row = |row: &Option<Row>| row.as_ref().map(row_text);
    let rows = match (row(&change.before), row(&change.after)) {
        (Some(before), Some(after)) => format!("{before} -> {after}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => String::new(),
    };
    format!("{} {} {rows}", change.op.as_str(), change.table.name)
}

/// A row in words: `1|a|NULL`.
pub fn row_text(row: &Row) -> String {
    let text = |value: Value<'_>| match value {
        Value::Null => "NULL".into(),
        Value::Absent => "?".into(),
        Value::Unchanged => "=".into(),
        Value::Bytes(_, bytes) => String::from_utf8_lossy(bytes).into_owned(),
    };
    row.values().map(text).collect::<Vec<_>>().join("|")
}

/// Makes [`TABLES`] and a session; `full` asks for the whole row before each change.
pub async fn with_tables(database: &dyn Database, full: bool) -> Box<dyn Session> {
    let mut session = database.session().await;
    session.execute(TABLES).await;
    if let Some(sql) = database.full_identity("item").filter(|_| full) {
        session.execute(&sql).await;
    }
    session
}

/// The rows of `item` by their first column, as changes tell them: what a consumer would hold. A key's
/// `size`, which writers only ever raise, must never go back.
#[derive(Debug, Default)]
pub struct Replica {
    pub rows: BTreeMap<String, String>,
    sizes: BTreeMap<String, i64>,
}

impl Replica {
    /// Applies changes.
    pub fn apply(&mut self, changes: &[Change]) {
        for change in changes.iter().filter(|change| change.table.name == "item") {
            let key = |row: &Row| row_text(row).split('|').next().unwrap_or_default().to_owned();
            if let Some(before) = &change.before {
                self.rows.remove(&key(before));
            }
            let Some(after) = &change.after else {
                assert!(matches!(change.op, Op::Delete), "{}", describe(change));
                continue;
            };
            let size: i64 =
                row_text(after).rsplit('|').next().and_then(|size| size.parse().ok()).unwrap_or(0);
            let newest = self.sizes.entry(key(after)).or_insert(size);
            assert!(size >= *newest, "{} after size {newest}: a key went back", describe(change));
            *newest = size;
            self.rows.insert(key(after), row_text(after));
        }
    }

    /// Holds it against the table.
    pub async fn compare(&self, session: &mut dyn Session) {
        let rows = session.query("select id, name, size from item order by id").await;
        let text = |row: Vec<Option<String>>| {
            row.into_iter().map(|value| value.unwrap_or("NULL".into())).collect::<Vec<_>>().join("|")
        };
        let table: BTreeMap<String, String> = rows
            .into_iter()
            .map(|row| (row.first().cloned().flatten().unwrap_or_default(), text(row)))
            .collect();
        let missing = table.iter().filter(|(key, _)| !self.rows.contains_key(*key)).count();
        let surplus = self.rows.keys().filter(|key| !table.contains_key(*key)).count();
        let other = table.iter().filter(|(key, row)| self.rows.get(*key).is_some_and(|one| one != *row));
        let other: Vec<_> = other.take(5).collect();
        assert!(
            missing + surplus + other.len() == 0,
            "{missing} missing, {surplus} surplus, differing: {other:?}"
        );
    }
}
