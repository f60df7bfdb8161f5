//! Letting go of events that are past their stream's retention.
//!
//! Only closed segments are touched. One in which every stream is past its retention is dropped whole;
//! one that a longer-lived stream keeps is made anew without the others' rows. Time is counted from when
//! a segment was closed, so late news is kept as long as any; size counts what came after the segment. Of
//! a stream with both, the limit that is reached first counts. Older events of a stream go before newer
//! ones, whatever the clock did.
//!
//! What cannot be done just now is left for the next time, and the rest is done: on a full disk it is the
//! segments that are dropped that make room.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};

use headwater_core::{Error, Kind, Micros, Result};
use tokio::sync::oneshot;

use super::compaction::Compactor;
use super::config::EmbeddedConfig;
use super::segment::{self, PartitionRow, StreamRow};
use super::writer::Command;
use crate::store::{Access, SqlExt, io, micros, now};

const DOING: &str = "letting go of old events";

/// Called before each change of what is on disk, with its name: tests end there, as a kill would.
pub(super) type Step<'a> = dyn FnMut(&'static str) -> Result<()> + 'a;

/// A wish to do it at a certain time.
pub(super) struct Request {
    pub(super) now: Micros,
    pub(super) reply: oneshot::Sender<Result<()>>,
}

/// The state of the retention thread.
pub(super) struct Retainer {
    dir: PathBuf,
    config: EmbeddedConfig,
    /// Closed segments by number, looked at once.
    closed: BTreeMap<u64, Closed>,
    /// Kept open: on a full disk readers could not open the file alone.
    compactor: Option<Compactor>,
}

struct Closed {
    begun_at: Micros,
    /// By number, from 1.
    partitions: Vec<PartitionRow>,
}

impl Closed {
    fn rows<'a>(&'a self, stream: &StreamRow) -> &'a [PartitionRow] {
        let numbers = stream.numbers();
        let last = self.partitions.len();
        let range = (numbers.start as usize - 1).min(last)..(numbers.end as usize - 1).min(last);
        self.partitions.get(range).unwrap_or_default()
    }

    fn bytes(&self, stream: &StreamRow) -> u64 {
        self.rows(stream).iter().map(|row| row.bytes).sum()
    }

    fn has(&self, stream: &StreamRow) -> bool {
        self.rows(stream).iter().any(|row| row.next > row.first)
    }
}

impl Retainer {
    pub(super) fn new(dir: PathBuf, config: EmbeddedConfig) -> Self {
        Self { dir, config, closed: BTreeMap::new(), compactor: None }
    }

    /// Works until there can be no more requests.
    pub(super) fn run(mut self, requests: &Receiver<Request>, writer: &Sender<Command>) {
        loop {
            match requests.recv_timeout(self.config.retain_interval) {
                Ok(Request { now, reply }) => drop(reply.send(self.once(writer, now))),
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(error) = self.once(writer, now()) {
                        tracing::warn!(%error, "old events stay for now");
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    pub(super) fn once(&mut self, writer: &Sender<Command>, now: Micros) -> Result<()> {
        let (reply, rolled) = oneshot::channel();
        let stopped = || Error::new(Kind::Internal, "the embedded bus has stopped");
        writer.send(Command::Roll { now, reply }).map_err(|_| stopped())?;
        let rolled = rolled.blocking_recv().map_err(|_| stopped())?;
        rolled.and(self.retain(now, &mut |_| Ok(())))
    }

    /// Lets go of what is past its retention at `now`, as far as that can be done; the first error of what
    /// cannot.
    pub(super) fn retain(&mut self, now: Micros, step: &mut Step<'_>) -> Result<()> {
        let Some((streams, last, newest)) = self.look()? else { return Ok(()) };
        let mut outcome = remove_orphans(&self.dir, last, step);
        // By their base, the streams of which older events stay.
        let mut stay = HashSet::new();
        // From the oldest on, so that of two events of a key the newer is moved last.
        let numbers: Vec<u64> = self.closed.keys().copied().collect();
        for number in numbers {
            let mut expired = self.expired(&streams, &newest, number, now);
            expired.retain(|stream| !stay.contains(&stream.base));
            let done = self.let_go(&streams, number, &expired, now, step);
            if let Some(closed) = self.closed.get(&number) {
                // What is compacted must be moved in order; what only goes may go in any.
                let goes = |stream| expired.contains(&stream) && (done.is_ok() || !stream.retention.compact);
                let stays = streams.iter().filter(|stream| closed.has(stream) && !goes(*stream));
                stay.extend(stays.map(|stream| stream.base));
            }
            outcome = outcome.and(done);
        }
        outcome.and(self.forget(&streams, &newest, now, step))
    }

    /// Lets `compacted.db` forget what it need not know any longer.
    fn forget(
        &mut self,
        streams: &[StreamRow],
        newest: &Closed,
        now: Micros,
        step: &mut Step<'_>,
    ) -> Result<()> {
        let compactor = match self.compactor.take() {
            None => Compactor::open_existing(&self.dir)?,
            open => open,
        };
        let Some(mut compactor) = compactor else { return Ok(()) };
        let held = |stream: &StreamRow| self.bytes_from(stream, newest, 0);
        let after = micros(self.config.tombstone_retention);
        let done = step("forget deletions").and_then(|()| compactor.forget(streams, after, now, held));
        self.compactor = Some(compactor);
        done
    }

    /// Sees which segments there are; the streams, and the number of the one being written and what it
    /// holds.
    fn look(&mut self) -> Result<Option<(Vec<StreamRow>, u64, Closed)>> {
        let mut numbers = segment::list(&self.dir)?;
        let Some(last) = numbers.pop() else { return Ok(None) };
        self.closed.retain(|number, _| numbers.binary_search(number).is_ok());
        for number in numbers {
            if !self.closed.contains_key(&number) {
                let (closed, _) = look_at(&self.dir, number, Access::Immutable)?;
                self.closed.insert(number, closed);
            }
        }
        let (newest, streams) = look_at(&self.dir, last, Access::Read)?;
        Ok(Some((streams, last, newest)))
    }

    /// Bytes that segments from `number` on hold of a stream.
    fn bytes_from(&self, stream: &StreamRow, newest: &Closed, number: u64) -> u64 {
        let closed = self.closed.range(number..).map(|(_, closed)| closed.bytes(stream));
        closed.sum::<u64>() + newest.bytes(stream)
    }

    /// The streams with rows in segment `number` that are past their retention there.
    fn expired<'a>(
        &self,
        streams: &'a [StreamRow],
        newest: &Closed,
        number: u64,
        now: Micros,
    ) -> Vec<&'a StreamRow> {
        // It was closed when the next was begun. One that was begun in the future tells nothing: the clock
        // was wrong.
        let later = self.closed.range(number + 1..).map(|(_, later)| later.begun_at);
        let closed_at = later.chain([newest.begun_at]).find(|begun_at| *begun_at <= now);
        let age = closed_at.map(|closed_at| now.saturating_sub(closed_at));
        let is_expired = |stream: &&StreamRow| {
            let retention = stream.retention;
            let old = retention.max_age.zip(age).is_some_and(|(max_age, age)| age >= micros(max_age));
            let large = retention.max_bytes;
            let large = large.is_some_and(|max| self.bytes_from(stream, newest, number + 1) >= max);
            let compacted = retention.compact && retention.max_age.is_none() && retention.max_bytes.is_none();
            self.closed.get(&number).is_some_and(|closed| closed.has(stream)) && (old || large || compacted)
        };
        streams.iter().filter(is_expired).collect()
    }

    /// Lets go of the expired streams' rows in one segment, and of the segment if none are left.
    fn let_go(
        &mut self,
        streams: &[StreamRow],
        number: u64,
        expired: &[&StreamRow],
        now: Micros,
        step: &mut Step<'_>,
    ) -> Result<()> {
        let Some(closed) = self.closed.get_mut(&number) else { return Ok(()) };
        for stream in expired.iter().filter(|stream| stream.retention.compact) {
            let compactor = match &mut self.compactor {
                Some(compactor) => compactor,
                none => none.insert(Compactor::open(&self.dir)?),
            };
            compactor.take(number, closed.rows(stream), now, step)?;
        }
        let mut live = streams.iter().filter(|stream| closed.has(stream));
        let path = segment::path(&self.dir, number);
        if live.all(|stream| expired.contains(&stream)) {
            self.closed.remove(&number);
            step("drop a segment")?;
            segment::remove(&path)?;
            step("drop a segment's log")?;
            segment::remove_log(&path)?;
            return segment::sync_dir(&self.dir);
        }
        if !expired.is_empty() {
            let gone: Vec<PartitionRow> =
                expired.iter().flat_map(|stream| closed.rows(stream)).copied().collect();
            step("rewrite a segment")?;
            segment::rewrite(&path, &gone)?;
            (*closed, _) = look_at(&self.dir, number, Access::Immutable)?;
        }
        Ok(())
    }
}

fn look_at(dir: &Path, number: u64, access: Access) -> Result<(Closed, Vec<StreamRow>)> {
    let connection = segment::open(&segment::path(dir, number), access)?;
    let look = || -> rusqlite::Result<_> {
        let (begun_at, partitions) = (segment::begun_at(&connection)?, segment::partitions(&connection)?);
        Ok((Closed { begun_at, partitions }, segment::streams(&connection)?))
    };
    look().sql(DOING)
}

/// Removes what a kill left behind: logs of segments that were dropped, and drafts of segments up to `last`.
/// (A draft of a later one is the writer's, which may be at it; here nothing is begun yet.)
fn remove_orphans(dir: &Path, last: u64, step: &mut Step<'_>) -> Result<()> {
    let doing = "looking for files that were left behind";
    for entry in io(std::fs::read_dir(dir), doing)? {
        let name = io(entry, doing)?.file_name();
        let Some(name) = name.to_str() else { continue };
        let parts = name.strip_prefix("segment-").and_then(|name| name.split_once(".db"));
        let is_orphan = parts.is_some_and(|(number, rest)| match rest {
            "-wal" | "-shm" => !dir.join(format!("segment-{number}.db")).exists(),
            draft => draft.starts_with(".new") && number.parse().is_ok_and(|number: u64| number <= last),
        });
        if is_orphan {
            step("remove an orphan")?;
            segment::remove(&dir.join(name))?;
        }
    }
    Ok(())
}
