//! `compacted.db`: the newest event of each key of compacted streams, moved out of closed segments with
//! their offsets.

use std::ops::Range;
use std::path::Path;

use headwater_core::{Record, Result};
use rusqlite::{Connection, params};

use super::catalog;
use super::segment::{self, StreamRow, place, unplace};
use crate::store::{Access, SqlExt};

const READING: &str = "reading compacted events";

/// The file, open for reading.
pub(super) struct Compacted(Connection);

impl Compacted {
    /// Opens the file for reading, if it is there.
    pub(super) fn open_existing(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("compacted.db");
        if !path.exists() {
            return Ok(None);
        }
        Ok(Some(Self(segment::open(&path, Access::Read)?)))
    }

    /// Its connection; the `event` table is laid out like a segment's.
    pub(super) fn connection(&self) -> &Connection {
        &self.0
    }

    /// The oldest offset of a partition in here.
    pub(super) fn first_offset(&self, number: u32) -> Result<Option<u64>> {
        let sql = "SELECT min(place) FROM event WHERE place >= ? AND place < ?";
        let values = params![place(number, 0), place(number + 1, 0)];
        let first =
            self.0.prepare_cached(sql).and_then(|mut first| first.query_row(values, |row| row.get(0)));
        let first: Option<i64> = first.sql(READING)?;
        Ok(first.map(|place| unplace(place).1))
    }

    /// How many events of a stream are in here, and about how many bytes.
    pub(super) fn usage(&self, stream: &StreamRow) -> Result<(u64, u64)> {
        let sql = "SELECT count(*), coalesce(sum(octet_length(payload) + octet_length(key) + 96), 0)
            FROM event WHERE place >= ? AND place < ?";
        let numbers = stream.numbers();
        let values = params![place(numbers.start, 0), place(numbers.end, 0)];
        let usage = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        self.0.prepare_cached(sql).and_then(|mut usage_of| usage_of.query_row(values, usage)).sql(READING)
    }

    /// The events of a partition with offsets in `range`, as many as one read takes.
    pub(super) fn read(&self, stream: &StreamRow, number: u32, range: Range<u64>) -> Result<Vec<Record>> {
        catalog::read(&self.0, stream, number, range)
    }
}
