//! What one reader knows of the segments, and how it reads a partition across them.
//!
//! A read takes its rows out and ends: no transaction is held while they are delivered. Files may go,
//! and rows may move into `compacted.db`, between two reads; whoever finds fewer rows than it expected
//! looks there before it goes on.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_core::{Micros, Record, Result};
use rusqlite::{Connection, params};

use super::compacted::Compacted;
use super::rows::{COLUMNS, Rows};
use super::segment::{self, PartitionRow, StreamRow, place, unplace};
use crate::store::{Access, SqlExt};

/// Rows of one read; at least one, however large.
const READ_EVENTS: usize = 1000;
/// Bytes of one read, the last row beyond.
const READ_BYTES: usize = 1 << 20;
/// Connections to closed segments that are kept open.
const OPEN_SEGMENTS: usize = 4;
/// How often files that went are let go of.
const LIST_INTERVAL: Duration = Duration::from_secs(1);

const READING: &str = "reading the embedded bus";

/// The segments as one reader last saw them.
pub(super) struct Catalog {
    dir: PathBuf,
    segments: Vec<Segment>,
    compacted: Option<Compacted>,
    listed: Instant,
    reads: u64,
}

struct Segment {
    number: u64,
    begun_at: Micros,
    /// By number, from 1.
    partitions: Vec<PartitionRow>,
    /// SQLite's `data_version` when `partitions` was read.
    version: i64,
    connection: Option<Connection>,
    /// Whether a newer segment follows.
    closed: bool,
    /// Which file it was when it was looked at: retention may make it anew.
    inode: u64,
    used: u64,
}

impl Catalog {
    /// Looks at every segment in `dir`.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let (segments, compacted) = (Vec::new(), None);
        let mut catalog = Self { dir: dir.to_owned(), segments, compacted, listed: Instant::now(), reads: 0 };
        catalog.list()?;
        Ok(catalog)
    }

    /// Sees what was committed since the last look; whether there was anything.
    pub(super) fn refresh(&mut self) -> Result<bool> {
        let next = self.segments.last().map_or(1, |last| last.number + 1);
        if segment::path(&self.dir, next).exists() {
            self.list()?;
            return Ok(true);
        }
        if self.listed.elapsed() > LIST_INTERVAL {
            self.list()?;
        }
        match self.segments.last_mut() {
            Some(last) => last.reload(&self.dir),
            None => Ok(false),
        }
    }

    /// Lists the files again: lets go of those that went, looks at those that are new.
    fn list(&mut self) -> Result<()> {
        let numbers = segment::list(&self.dir)?;
        self.listed = Instant::now();
        self.segments.retain(|segment| numbers.binary_search(&segment.number).is_ok());
        let last = numbers.last().copied();
        for number in numbers {
            let closed = Some(number) != last;
            match self.segments.binary_search_by_key(&number, |segment| segment.number) {
                Ok(at) => match self.segments.get_mut(at) {
                    Some(segment) if closed && !segment.is_final(&self.dir) => segment.close(&self.dir)?,
                    _ => {}
                },
                Err(at) => {
                    if let Some(segment) = Segment::open(&self.dir, number, closed)? {
                        self.segments.insert(at, segment);
                    }
                }
            }
        }
        // Connections keep files that went, or were made anew, on the disk.
        self.close_some(0);
        Ok(())
    }

    /// Closes connections to closed segments but for `keep` that were used last.
    fn close_some(&mut self, keep: usize) {
        let closed = self.segments.iter_mut().filter(|segment| segment.closed);
        let mut open: Vec<_> = closed.filter(|segment| segment.connection.is_some()).collect();
        open.sort_by_key(|segment| std::cmp::Reverse(segment.used));
        for segment in open.into_iter().skip(keep) {
            segment.connection = None;
        }
    }

    /// The streams, by the newest segment.
    pub(super) fn streams(&mut self) -> Result<Vec<StreamRow>> {
        self.newest(segment::streams)
    }

    /// Asks something of the newest segment.
    pub(super) fn newest<T: Default>(
        &mut self,
        ask: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let Some(last) = self.segments.last_mut() else { return Ok(T::default()) };
        ask(last.connection(&self.dir)?).sql(READING)
    }

    /// What each segment holds of a partition, oldest first, with the time the segment was begun.
    pub(super) fn rows(&self, number: u32) -> impl DoubleEndedIterator<Item = (Micros, PartitionRow)> {
        let row = move |segment: &Segment| Some((segment.begun_at, segment.row(number)?));
        self.segments.iter().filter_map(row)
    }

    /// The offset of the oldest event of a partition that is still held, or of its next one.
    pub(super) fn beginning(&mut self, number: u32) -> Result<u64> {
        let mut oldest = self.rows(number).find(|(_, row)| row.next > row.first).map(|(_, row)| row.first);
        if let Some(compacted) = self.compacted()? {
            oldest = compacted.first_offset(number)?.or(oldest);
        }
        Ok(oldest.unwrap_or_else(|| self.end(number)))
    }

    /// The offset that the next event of a partition will get.
    pub(super) fn end(&self, number: u32) -> u64 {
        self.rows(number).next_back().map_or(0, |(_, row)| row.next)
    }

    /// The offset of the first event of a partition committed at or after `time`.
    pub(super) fn at_time(&mut self, number: u32, time: Micros) -> Result<u64> {
        if let Some(compacted) = self.compacted()?
            && let Some(offset) = first_since(compacted.connection(), number, time)?
        {
            return Ok(offset);
        }
        for at in 0..self.segments.len() {
            let segment = &mut self.segments[at];
            if segment.row(number).is_none_or(|row| row.newest < Some(time)) {
                continue;
            }
            if let Some(offset) = first_since(segment.connection(&self.dir)?, number, time)? {
                return Ok(offset);
            }
        }
        Ok(self.end(number))
    }

    /// When the first event of a partition at or after `offset` was committed.
    pub(super) fn time_of(&mut self, number: u32, offset: u64) -> Result<Option<Micros>> {
        let after =
            |segment: &Segment| segment.row(number).is_some_and(|row| row.next > offset.max(row.first));
        let Some(segment) = self.segments.iter_mut().find(|segment| after(segment)) else { return Ok(None) };
        let sql = "SELECT time FROM event WHERE place >= ? AND place < ? ORDER BY place LIMIT 1";
        let connection = segment.connection(&self.dir)?;
        let first = || -> rusqlite::Result<Option<Micros>> {
            let values = params![place(number, offset), place(number + 1, 0)];
            connection.prepare_cached(sql)?.query_map(values, |row| row.get(0))?.next().transpose()
        };
        first().sql(READING)
    }

    /// The events of a partition from `offset` on, as many as one read takes, and the offset to go on
    /// with; no events when there are none yet.
    pub(super) fn read(
        &mut self,
        stream: &StreamRow,
        number: u32,
        mut offset: u64,
    ) -> Result<(Vec<Record>, u64)> {
        self.reads += 1;
        loop {
            let next = |segment: &Segment| segment.row(number).map_or(0, |row| row.next);
            let at = self.segments.partition_point(|segment| next(segment) <= offset);
            let Some(segment) = self.segments.get_mut(at) else { return Ok((Vec::new(), offset)) };
            segment.used = self.reads;
            let (end, file) = (next(segment), segment::path(&self.dir, segment.number));
            let connection = match segment.connection(&self.dir) {
                Ok(connection) => connection,
                // Retention dropped the file since the last look.
                Err(_) if !file.exists() => {
                    self.list()?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let mut records = read(connection, stream, number, offset..end)?;
            let found = records.first().map_or(end, |record| record.offset);
            if found > offset {
                let compacted = self.compacted()?;
                let moved = compacted.map(|compacted| compacted.read(stream, number, offset..found));
                match moved.transpose()?.filter(|moved| !moved.is_empty()) {
                    Some(moved) => records = moved,
                    None if stream.retention.compact => {}
                    None => warn_of_gap(stream, number, offset, found),
                }
            }
            self.close_some(OPEN_SEGMENTS);
            match records.last() {
                Some(last) => {
                    let next = last.offset + 1;
                    return Ok((records, next));
                }
                None => offset = end,
            }
        }
    }

    /// How many events of a stream were moved out of their segments, and their bytes.
    pub(super) fn moved(&mut self, stream: &StreamRow) -> Result<(u64, u64)> {
        self.compacted()?.map_or(Ok((0, 0)), |compacted| compacted.usage(stream))
    }

    /// Where events of compacted streams go; `None` when nothing was moved yet.
    fn compacted(&mut self) -> Result<Option<&Compacted>> {
        if self.compacted.is_none() {
            self.compacted = Compacted::open_existing(&self.dir)?;
        }
        Ok(self.compacted.as_ref())
    }
}

/// What tells a file from another of the same name; 0 when there is none.
fn inode(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.ino())
}

fn warn_of_gap(stream: &StreamRow, number: u32, from: u64, to: u64) {
    let (stream, partition) = (&*stream.name, number - stream.base);
    tracing::warn!(stream, partition, from, to, "retention let events go before this reader came to them");
}

impl Segment {
    /// Looks at a segment; `None` when it was dropped since it was listed.
    fn open(dir: &Path, number: u64, closed: bool) -> Result<Option<Self>> {
        let (partitions, connection) = (Vec::new(), None);
        let inode = inode(&segment::path(dir, number));
        let mut segment =
            Self { number, begun_at: 0, partitions, version: -1, connection, closed, inode, used: 0 };
        match segment.reload(dir) {
            Ok(_) => {}
            Err(_) if !segment::path(dir, number).exists() => return Ok(None),
            Err(error) => return Err(error),
        }
        let begun_at = segment::begun_at(segment.connection(dir)?);
        Ok(Some(Self { begun_at: begun_at.sql(READING)?, ..segment }))
    }

    /// Whether it was looked at after it was closed, and is still the same file.
    fn is_final(&self, dir: &Path) -> bool {
        self.closed && self.inode == inode(&segment::path(dir, self.number))
    }

    /// Looks once more at what a segment holds, now that it is closed or was made anew.
    fn close(&mut self, dir: &Path) -> Result<()> {
        self.inode = inode(&segment::path(dir, self.number));
        (self.closed, self.connection) = (true, None);
        match self.reload(dir) {
            Err(error) if segment::path(dir, self.number).exists() => Err(error),
            _ => Ok(()),
        }
    }

    fn row(&self, number: u32) -> Option<PartitionRow> {
        self.partitions.get(number.checked_sub(1)? as usize).copied()
    }

    fn connection(&mut self, dir: &Path) -> Result<&Connection> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                self.version = -1; // versions of two connections do not compare
                let access = if self.closed { Access::Immutable } else { Access::Read };
                segment::open(&segment::path(dir, self.number), access)?
            }
        };
        Ok(self.connection.insert(connection))
    }

    /// Reads `partitions` again if anything was committed; whether it was.
    fn reload(&mut self, dir: &Path) -> Result<bool> {
        let connection = self.connection(dir)?;
        let version = || connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0));
        let version: i64 = version().sql(READING)?;
        if version == self.version {
            return Ok(false);
        }
        // The version was read first: a commit between the two is seen again, never missed.
        self.partitions = segment::partitions(self.connection(dir)?).sql(READING)?;
        self.version = version;
        Ok(true)
    }
}

/// Reads the rows of a partition with offsets in `range` out of a table of events.
pub(super) fn read(
    connection: &Connection,
    stream: &StreamRow,
    number: u32,
    range: std::ops::Range<u64>,
) -> Result<Vec<Record>> {
    let sql = format!("SELECT {COLUMNS} FROM event WHERE place >= ? AND place < ? ORDER BY place");
    let mut rows = Rows::new(Arc::clone(&stream.name), stream.base);
    let mut read = || -> rusqlite::Result<()> {
        let mut statement = connection.prepare_cached(&sql)?;
        let mut found = statement.query(params![place(number, range.start), place(number, range.end)])?;
        while rows.len() < READ_EVENTS && rows.bytes() < READ_BYTES {
            match found.next()? {
                Some(row) => rows.push(row)?,
                None => break,
            }
        }
        Ok(())
    };
    read().sql(READING)?;
    Ok(rows.finish())
}

/// The offset of the first event of a partition in a table of events, committed at or after `time`.
fn first_since(connection: &Connection, number: u32, time: Micros) -> Result<Option<u64>> {
    let sql = "SELECT place FROM event WHERE place >= ? AND place < ? AND time >= ? ORDER BY place LIMIT 1";
    let first = || -> rusqlite::Result<Option<i64>> {
        let mut statement = connection.prepare_cached(sql)?;
        let values = params![place(number, 0), place(number + 1, 0), time];
        statement.query_map(values, |row| row.get(0))?.next().transpose()
    };
    Ok(first().sql(READING)?.map(|place| unplace(place).1))
}
