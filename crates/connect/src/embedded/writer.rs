//! The one thread that writes segments: it takes all batches that wait and commits them together.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};

use headwater_core::{Checkpoint, Error, Event, Kind, Micros, Result, Retention, StreamSpec};
use rusqlite::{Connection, TransactionBehavior, params};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::config::EmbeddedConfig;
use super::fence::{Failure, Fence};
use super::lock::WriterLock;
use super::rows::{self, COLUMNS};
use super::segment::{self, Carried, PartitionRow, StreamRow, place};
use super::wake::Wakers;
use crate::store::{Access, SqlExt, micros, now};

/// A transaction takes no more batches beyond this many bytes, so that the first of them need not wait long.
const TRANSACTION_BYTES: usize = 16 << 20;

/// Pages of WAL (16 KiB each) after which they are moved into the file: measured, more gains nothing.
const CHECKPOINT_PAGES: u32 = 2000;

/// What the thread is asked to do, in order.
pub(super) enum Command {
    Publish(Pending),
    Ensure {
        spec: StreamSpec,
        reply: oneshot::Sender<Result<u32>>,
    },
    Checkpoint {
        source: String,
        reply: oneshot::Sender<Result<Option<Checkpoint>>>,
    },
    /// Begin a new segment if the current one is old enough at this time.
    Roll {
        now: Micros,
        reply: oneshot::Sender<Result<()>>,
    },
}

/// An accepted batch.
pub(super) struct Pending {
    pub(super) events: Vec<Event>,
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) bytes: usize,
    /// Of the [`Fence`], when it was accepted.
    pub(super) generation: u64,
    /// Its share of the queue, given back when it was written or failed.
    pub(super) _room: OwnedSemaphorePermit,
    pub(super) done: oneshot::Sender<Result<(), Failure>>,
}

/// Streams by name, for publishers to look at: base number and partitions.
pub(super) type Directory = Mutex<HashMap<Arc<str>, StreamRow>>;

/// What the thread works with.
pub(super) struct Writer {
    pub(super) dir: PathBuf,
    pub(super) config: EmbeddedConfig,
    pub(super) fence: Arc<Mutex<Fence>>,
    pub(super) directory: Arc<Directory>,
    pub(super) wakers: Arc<Wakers>,
    current: Option<Current>,
    _lock: WriterLock,
}

/// The segment being written.
struct Current {
    number: u64,
    begun_at: Micros,
    connection: Connection,
    streams: HashMap<Arc<str>, Stream>,
    /// By number, from 1.
    partitions: Vec<PartitionRow>,
}

struct Stream {
    row: StreamRow,
    /// The partition for the next event that leaves the choice to the bus.
    turn: u32,
}

impl Writer {
    /// Takes the lock and opens the newest segment, or begins the first.
    pub(super) fn open(dir: PathBuf, config: EmbeddedConfig) -> Result<Self> {
        let lock = WriterLock::take(&dir)?;
        let mut writer = Self {
            dir,
            config,
            fence: Arc::default(),
            directory: Arc::default(),
            wakers: Arc::default(),
            current: None,
            _lock: lock,
        };
        writer.current()?;
        Ok(writer)
    }

    /// Works until every sender is gone and the queue is empty.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        let mut ahead = VecDeque::new();
        loop {
            let Some(command) = ahead.pop_front().or_else(|| commands.recv().ok()) else { return };
            match command {
                Command::Publish(first) => self.publish(first, commands, &mut ahead),
                Command::Ensure { spec, reply } => drop(reply.send(self.ensure(&spec))),
                Command::Checkpoint { source, reply } => drop(reply.send(self.checkpoint(&source))),
                Command::Roll { now, reply } => drop(reply.send(self.roll_if_due(now))),
            }
        }
    }

    /// Writes `first` and the batches that wait behind it in one transaction.
    fn publish(&mut self, first: Pending, commands: &Receiver<Command>, ahead: &mut VecDeque<Command>) {
        let mut bytes = first.bytes;
        let mut group = vec![first];
        while bytes < TRANSACTION_BYTES {
            match ahead.pop_front().map_or_else(|| commands.try_recv(), Ok) {
                Ok(Command::Publish(next)) => {
                    bytes += next.bytes;
                    group.push(next);
                }
                Ok(other) => {
                    ahead.push_front(other);
                    break;
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        match self.write(&group) {
            Ok(()) => {
                self.wakers.wake_all();
                for pending in group {
                    // A publisher that went away does not need the answer.
                    let _ = pending.done.send(Ok(()));
                }
            }
            Err(error) => self.fail(&error, group, commands, ahead),
        }
    }

    fn write(&mut self, group: &[Pending]) -> Result<()> {
        let limit = self.config.segment_bytes;
        let current = self.current()?;
        current.write(group).sql("writing to the embedded bus")?;
        if current.bytes() >= limit {
            // The batch is durable whatever becomes of this; the next one will try again.
            if let Err(error) = self.roll(now()) {
                tracing::warn!(%error, "no new segment of the embedded bus could be begun");
            }
        }
        Ok(())
    }

    /// Tells every batch accepted so far that it failed, and goes back to what is on disk.
    fn fail(
        &mut self,
        error: &Error,
        group: Vec<Pending>,
        commands: &Receiver<Command>,
        ahead: &mut VecDeque<Command>,
    ) {
        tracing::error!(%error, "the embedded bus cannot write");
        // On a full disk the file could not even be opened again; otherwise that is the surest way on.
        let keep = error.kind() == Kind::Full;
        self.current = self.current.take().filter(|_| keep).and_then(|current| current.rolled_back().ok());
        let mut fence = self.fence.lock().unwrap_or_else(PoisonError::into_inner);
        let failure = fence.fail(error);
        ahead.extend(commands.try_iter());
        let mut failed = group;
        for command in std::mem::take(ahead) {
            match command {
                Command::Publish(pending) if !fence.holds(pending.generation) => failed.push(pending),
                other => ahead.push_back(other),
            }
        }
        drop(fence);
        for pending in failed {
            let _ = pending.done.send(Err(failure.clone()));
        }
    }

    /// The segment being written, opened again after a failure.
    fn current(&mut self) -> Result<&mut Current> {
        let current = match self.current.take() {
            Some(current) => current,
            None => self.reopen()?,
        };
        Ok(self.current.insert(current))
    }

    fn reopen(&self) -> Result<Current> {
        let number = match segment::list(&self.dir)?.last() {
            Some(number) => {
                // Whoever made it may have failed before its name was durable.
                segment::sync_dir(&self.dir)?;
                *number
            }
            None => {
                segment::create(&self.dir, 1, now(), &Carried::default())?;
                1
            }
        };
        let current = Current::open(&self.dir, number)?;
        let rows = current.streams.values().map(|stream| (Arc::clone(&stream.row.name), stream.row.clone()));
        *self.directory.lock().unwrap_or_else(PoisonError::into_inner) = rows.collect();
        Ok(current)
    }

    fn ensure(&mut self, spec: &StreamSpec) -> Result<u32> {
        let current = self.current()?;
        let row = current.ensure(spec)?;
        let partitions = row.partitions;
        let mut directory = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        directory.insert(Arc::clone(&row.name), row);
        Ok(partitions)
    }

    fn checkpoint(&mut self, source: &str) -> Result<Option<Checkpoint>> {
        segment::checkpoint(&self.current()?.connection, source).sql("reading a checkpoint")
    }

    /// Begins a new segment when retention could let the current one go once it is closed.
    fn roll_if_due(&mut self, now: Micros) -> Result<()> {
        let oldest = self.config.segment_age;
        let current = self.current()?;
        let age = now.saturating_sub(current.begun_at);
        let is_due = |stream: &Stream| {
            let Retention { max_age, max_bytes, compact } = stream.row.retention;
            let bytes: u64 = stream.row.numbers().filter_map(|number| current.bytes_of(number)).sum();
            let old = (compact || max_age.is_some()) && age >= micros(max_age.unwrap_or(oldest).min(oldest));
            bytes > 0 && (old || max_bytes.is_some_and(|max_bytes| bytes >= max_bytes))
        };
        if current.streams.values().any(is_due) { self.roll(now) } else { Ok(()) }
    }

    /// Begins a new segment, unless a reader keeps the current one from being completed just now: then
    /// the next batch tries again.
    fn roll(&mut self, now: Micros) -> Result<()> {
        let current = self.current()?;
        if !current.complete().sql("completing a segment")? {
            return Ok(());
        }
        let number = current.number + 1;
        let checkpoints = segment::checkpoints(&current.connection).sql("reading checkpoints")?;
        let carried = Carried {
            streams: current.streams.values().map(|stream| stream.row.clone()).collect(),
            partitions: current
                .partitions
                .iter()
                .map(|row| PartitionRow::empty(row.number, row.next))
                .collect(),
            checkpoints,
        };
        let created = segment::create(&self.dir, number, now, &carried);
        // Once the new file has its name, even if no more than that succeeded, readers take the one before
        // it for closed: nothing may be written there.
        if created.is_ok() || segment::path(&self.dir, number).try_exists().unwrap_or(true) {
            self.current = None;
        }
        created?;
        self.current = Some(Current::open(&self.dir, number)?);
        Ok(())
    }
}

impl Current {
    fn open(dir: &std::path::Path, number: u64) -> Result<Self> {
        let path = segment::path(dir, number);
        let connection = segment::open(&path, Access::Write)?;
        let read = || -> rusqlite::Result<_> {
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
            connection.pragma_update(None, "cache_size", -16_384)?;
            let streams = segment::streams(&connection)?;
            Ok((segment::begun_at(&connection)?, streams, segment::partitions(&connection)?))
        };
        let (begun_at, streams, partitions) = read().sql(&format!("opening {}", path.display()))?;
        let contiguous = partitions.iter().zip(1..).all(|(row, number)| row.number == number);
        let known = streams.iter().all(|row| row.numbers().end as usize <= partitions.len() + 1);
        if !contiguous || !known {
            return Err(Error::new(Kind::Decode, format!("{} was changed by hand", path.display()))
                .hint("restore data_dir from a backup"));
        }
        let stream = |row: StreamRow| (Arc::clone(&row.name), Stream { row, turn: 0 });
        let streams = streams.into_iter().map(stream).collect();
        Ok(Self { number, begun_at, connection, streams, partitions })
    }

    /// Moves everything from SQLite's log into the file itself; whether all was.
    fn complete(&self) -> rusqlite::Result<bool> {
        self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
            let (busy, logged, moved): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(busy == 0 && logged == moved)
        })
    }

    /// The same, as it is on disk.
    fn rolled_back(mut self) -> rusqlite::Result<Self> {
        self.partitions = segment::partitions(&self.connection)?;
        Ok(self)
    }

    /// Bytes of all events in this segment.
    fn bytes(&self) -> u64 {
        self.partitions.iter().map(|row| row.bytes).sum()
    }

    /// Bytes of one partition in this segment.
    fn bytes_of(&self, number: u32) -> Option<u64> {
        self.partitions.get(number as usize - 1).map(|row| row.bytes)
    }

    /// Writes the batches; on an error nothing of them, and `self` must be opened again.
    fn write(&mut self, group: &[Pending]) -> rusqlite::Result<()> {
        let mut touched = BTreeSet::new();
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let sql = format!("INSERT INTO event ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)");
            let mut insert = transaction.prepare_cached(&sql)?;
            for event in group.iter().flat_map(|pending| &pending.events) {
                let index = index_of(&mut self.streams, event);
                let Some(row) = index.and_then(|index| self.partitions.get_mut(index)) else {
                    return Err(rusqlite::Error::InvalidParameterName(event.stream.to_string()));
                };
                rows::insert(&mut insert, place(row.number, row.next), event)?;
                row.next += 1;
                row.bytes += event.size() as u64;
                row.newest = row.newest.max(Some(event.time));
                touched.extend(index);
            }
            let sql = "UPDATE partition SET next = ?, bytes = ?, newest = ? WHERE number = ?";
            let mut update = transaction.prepare_cached(sql)?;
            for row in touched.iter().filter_map(|index| self.partitions.get(*index)) {
                update.execute(params![row.next, row.bytes, row.newest, row.number])?;
            }
        }
        for checkpoint in newest_of_each(group) {
            segment::put_checkpoint(&transaction, checkpoint)?;
        }
        transaction.commit()
    }

    fn ensure(&mut self, spec: &StreamSpec) -> Result<StreamRow> {
        if let Some(stream) = self.streams.get_mut(&spec.name) {
            if stream.row.partitions != spec.partitions {
                return Err(wrong_partitions(spec, stream.row.partitions));
            }
            if stream.row.retention != spec.retention {
                let row = StreamRow { retention: spec.retention, ..stream.row.clone() };
                segment::insert_stream(&self.connection, &row).sql("changing a stream's retention")?;
                stream.row = row;
            }
            return Ok(stream.row.clone());
        }
        let base = self.partitions.len() as u32 + 1;
        if spec.partitions == 0 || spec.partitions > segment::MAX_NUMBER - base + 1 {
            let left = segment::MAX_NUMBER - base + 1;
            let doing = format!("stream \"{}\" cannot have {} partitions", spec.name, spec.partitions);
            return Err(Error::new(Kind::Config, doing).hint(format!("give it 1 to {left}")));
        }
        let row = StreamRow {
            name: Arc::clone(&spec.name),
            partitions: spec.partitions,
            base,
            retention: spec.retention,
        };
        let partitions: Vec<_> = row.numbers().map(|number| PartitionRow::empty(number, 0)).collect();
        self.make(&row, &partitions).sql(&format!("making stream \"{}\"", spec.name))?;
        self.partitions.extend(partitions);
        self.streams.insert(Arc::clone(&row.name), Stream { row: row.clone(), turn: 0 });
        Ok(row)
    }

    fn make(&mut self, stream: &StreamRow, partitions: &[PartitionRow]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        segment::insert_stream(&transaction, stream)?;
        for partition in partitions {
            segment::insert_partition(&transaction, partition)?;
        }
        transaction.commit()
    }
}

/// Where the partition is that an event goes to; the publisher has checked that there is one.
fn index_of(streams: &mut HashMap<Arc<str>, Stream>, event: &Event) -> Option<usize> {
    let stream = streams.get_mut(&event.stream)?;
    let partition = event.partition.unwrap_or_else(|| {
        stream.turn = (stream.turn + 1) % stream.row.partitions.max(1);
        stream.turn
    });
    (stream.row.base as usize - 1).checked_add(partition as usize)
}

/// The last checkpoint of each source in the group: the others never become visible.
fn newest_of_each(group: &[Pending]) -> impl Iterator<Item = &Checkpoint> {
    let mut newest: Vec<&Checkpoint> = Vec::new();
    for checkpoint in group.iter().filter_map(|pending| pending.checkpoint.as_ref()) {
        match newest.iter_mut().find(|known| known.source == checkpoint.source) {
            Some(known) => *known = checkpoint,
            None => newest.push(checkpoint),
        }
    }
    newest.into_iter()
}

fn wrong_partitions(spec: &StreamSpec, partitions: u32) -> Error {
    let doing = format!(
        "stream \"{}\" has {partitions} partitions, the config says {}: its keys would change places",
        spec.name, spec.partitions
    );
    let hint = format!("set partitions = {partitions}, or give the stream a new name");
    Error::new(Kind::Contract, doing).hint(hint)
}

#[cfg(test)]
mod tests {
    use headwater_testkit::suites::bus::tools::{checkpoint, events, spec};
    use tokio::sync::Semaphore;

    use super::*;

    fn batch(n: u64) -> Pending {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let (done, _) = oneshot::channel();
        let (events, checkpoint) = (events(&"s".into(), 0, n..n + 1), Some(checkpoint("a", n)));
        Pending { events, checkpoint, bytes: 1, generation: 0, _room: permit, done }
    }

    #[test]
    fn a_segment_whose_successor_is_there_is_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let config = EmbeddedConfig { segment_bytes: 1, ..EmbeddedConfig::default() };
        let mut writer = Writer::open(dir.path().to_owned(), config).unwrap();
        writer.ensure(&spec("s", 1)).unwrap();
        segment::fail_syncs(2);
        writer.write(&[batch(1)]).unwrap();
        assert_eq!(segment::list(dir.path()).unwrap(), [1, 2], "made, and not known to be durable");
        assert!(writer.write(&[batch(2)]).is_err(), "its name must be durable before anything in it is");
        writer.write(&[batch(2)]).unwrap();
        let count = |number| {
            let file = segment::open(&segment::path(dir.path(), number), Access::Read).unwrap();
            file.query_row("SELECT count(*) FROM event", [], |row| row.get::<_, u64>(0)).unwrap()
        };
        assert_eq!((count(1), count(2)), (1, 1));
        drop(writer);
        let mut writer = Writer::open(dir.path().to_owned(), EmbeddedConfig::default()).unwrap();
        assert_eq!(writer.checkpoint("a").unwrap(), Some(checkpoint("a", 2)));
    }
}
