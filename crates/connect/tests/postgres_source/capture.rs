//! An open source, and all that has come of it.

use std::time::Duration;

use headwater_connect::postgres::{PostgresConnector, State};
use headwater_core::ports::{Connector, Source};
use headwater_core::{Change, Checkpoint, Op, Position, Result, Row, Value};
use headwater_testkit::null_bus::NullBus;
use tempfile::TempDir;

use crate::support::Place;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How large batches may be.
const BUDGET: usize = 64 << 10;

/// A connector, the source that it has open, and what came of it since.
pub struct Capture {
    /// The connector.
    pub connector: PostgresConnector,
    /// What it keeps on disk.
    pub data: TempDir,
    /// The open source.
    pub source: Option<Box<dyn Source>>,
    /// What came and was not taken.
    pub changes: Vec<Change>,
    /// What came again after the source was opened again.
    pub again: Vec<Change>,
    /// The last checkpoint.
    pub checkpoint: Option<Checkpoint>,
    last: Option<Position>,
    bus: NullBus,
}

impl Place {
    /// Opens the source, without a checkpoint.
    pub async fn capture(&self) -> Capture {
        let mut capture = self.closed();
        capture.open().await.unwrap();
        capture
    }

    /// The source, not opened yet.
    pub fn closed(&self) -> Capture {
        let data = tempfile::tempdir().unwrap();
        let connector = PostgresConnector::new(&self.names.source, self.config.clone(), data.path()).unwrap();
        Capture {
            connector,
            data,
            source: None,
            changes: Vec::new(),
            again: Vec::new(),
            checkpoint: None,
            last: None,
            bus: NullBus::default(),
        }
    }
}

impl Capture {
    /// Opens the source from the last checkpoint, as the runtime does after a failure.
    pub async fn open(&mut self) -> Result<()> {
        self.source = None;
        self.last = None;
        let opening = self.connector.open(self.checkpoint.as_ref());
        self.source = Some(tokio::time::timeout(PATIENCE, opening).await.expect("opening takes too long")?);
        Ok(())
    }

    /// Opens it as another process would, with another config.
    pub async fn reopen_as(&mut self, place: &Place) -> Result<()> {
        let name = &place.names.source;
        self.source = None;
        self.connector = PostgresConnector::new(name, place.config.clone(), self.data.path()).unwrap();
        self.open().await
    }

    /// The next batch, without what came before. Positions must rise, and the checkpoint must stand at
    /// or after them.
    pub async fn batch(&mut self) -> Result<()> {
        self.batch_of(BUDGET).await
    }

    /// The next batch, of about so many bytes.
    pub async fn batch_of(&mut self, budget: usize) -> Result<()> {
        let next = self.source.as_mut().expect("open").next(budget);
        let batch = tokio::time::timeout(PATIENCE, next).await.expect("nothing comes any more")?;
        let checkpoint = batch.checkpoint.expect("every batch has a checkpoint");
        assert!(!batch.changes.is_empty() || self.checkpoint.as_ref() != Some(&checkpoint), "an empty batch");
        for change in &batch.changes {
            assert!(self.last < Some(change.position), "{:?} before {change:?}", self.last);
            self.last = Some(change.position);
        }
        assert!(self.last <= Some(checkpoint.position), "{:?} after {checkpoint:?}", self.last);
        let published = self.checkpoint.as_ref().map(|checkpoint| checkpoint.position);
        let (new, again) = batch.changes.into_iter().partition(|change| Some(change.position) > published);
        let (mut new, mut again): (Vec<_>, Vec<_>) = (new, again);
        self.changes.append(&mut new);
        self.again.append(&mut again);
        if Some(checkpoint.position) >= published {
            self.checkpoint = Some(checkpoint);
        }
        Ok(())
    }

    /// Reads on until there are `count` changes, and takes them, in words.
    pub async fn take(&mut self, count: usize) -> Vec<String> {
        let reading = async {
            while self.changes.len() < count {
                self.batch().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("too few changes come");
        assert_eq!(self.changes.len(), count, "{:#?}", self.changes.iter().map(say).collect::<Vec<_>>());
        std::mem::take(&mut self.changes).iter().map(say).collect()
    }

    /// Reads on until the state of the checkpoint is so.
    pub async fn until(&mut self, is: impl Fn(&State) -> bool) {
        while self.checkpoint.is_none() || !is(&self.state()) {
            self.batch().await.unwrap();
        }
    }

    /// What the next failure is.
    pub async fn failure(&mut self) -> headwater_core::Error {
        let failing = async {
            loop {
                if let Err(error) = self.batch().await {
                    return error;
                }
            }
        };
        tokio::time::timeout(PATIENCE, failing).await.expect("nothing fails")
    }

    /// Confirms the last checkpoint.
    pub async fn confirm(&mut self) {
        let checkpoint = self.checkpoint.clone().unwrap();
        let proof = self.bus.durable(&checkpoint).await;
        self.source.as_mut().unwrap().confirm(&checkpoint, proof).await.unwrap();
    }

    /// The state of the last checkpoint.
    pub fn state(&self) -> State {
        State::read(self.checkpoint.as_ref().unwrap()).unwrap()
    }
}

/// A change in words: `update t (1, absent) (1, b)`.
pub fn say(change: &Change) -> String {
    let rows = change.before.iter().chain(&change.after).map(row).collect::<Vec<_>>().join(" ");
    let name = &change.table.name;
    match change.op {
        Op::Truncate => format!("truncate {name}"),
        op => format!("{} {name} {rows}", op.as_str()),
    }
}

/// A row in words.
pub fn row(row: &Row) -> String {
    format!("({})", row.values().map(value).collect::<Vec<_>>().join(", "))
}

/// A value in words.
pub fn value(value: Value<'_>) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Absent => "absent".to_owned(),
        Value::Unchanged => "unchanged".to_owned(),
        Value::Bytes(_, bytes) => String::from_utf8_lossy(bytes).into_owned(),
    }
}
