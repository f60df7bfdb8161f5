//! Moving the newest event of each key from a closed segment into `compacted.db`.
//!
//! A chunk of rows and the mark that it was moved are one transaction, and rows leave their segment
//! only afterwards: wherever a kill comes between, an event is in one of the files, or in both with the
//! same place.

use std::path::{Path, PathBuf};

use headwater_core::{Micros, Result, Retention};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::retention::Step;
use super::rows::COLUMNS;
use super::segment::{self, PartitionRow, StreamRow, place};
use crate::store::{Access, SqlExt, immutable_uri, micros};

/// Offsets that are moved in one transaction.
const CHUNK: u64 = 4096;

const DOING: &str = "compacting a stream";

/// The one writer of `compacted.db`.
pub(super) struct Compactor {
    dir: PathBuf,
    connection: Connection,
}

impl Compactor {
    fn path(dir: &Path) -> PathBuf {
        dir.join("compacted.db")
    }

    /// Opens the file, making it where it is not there.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let path = Self::path(dir);
        if !path.exists() {
            segment::make(&path, None, |new| new.execute_batch(include_str!("compacted.sql")))?;
        }
        Self::open_file(dir, &path)
    }

    /// Opens the file if it is there.
    pub(super) fn open_existing(dir: &Path) -> Result<Option<Self>> {
        let path = Self::path(dir);
        if path.exists() { Self::open_file(dir, &path).map(Some) } else { Ok(None) }
    }

    fn open_file(dir: &Path, path: &Path) -> Result<Self> {
        let connection = segment::open(path, Access::Write)?;
        connection.pragma_update(None, "synchronous", "FULL").sql(DOING)?;
        Ok(Self { dir: dir.to_owned(), connection })
    }

    /// Moves a stream's newest events out of segment `number`, which holds `rows` of its partitions.
    pub(super) fn take(
        &mut self,
        number: u64,
        rows: &[PartitionRow],
        now: Micros,
        step: &mut Step<'_>,
    ) -> Result<()> {
        let file = segment::path(&self.dir, number);
        self.connection.execute("ATTACH ? AS source", [immutable_uri(&file)]).sql(DOING)?;
        let taken = rows.iter().try_for_each(|row| self.take_partition(row, now, step));
        self.connection.execute("DETACH source", []).sql(DOING)?;
        taken
    }

    fn take_partition(&self, row: &PartitionRow, now: Micros, step: &mut Step<'_>) -> Result<()> {
        let moved = "SELECT next FROM moved WHERE number = ?";
        let moved = self.connection.query_row(moved, [row.number], |row| row.get(0)).optional();
        let mut from = moved.sql(DOING)?.unwrap_or(0).max(row.first);
        while from < row.next {
            let to = row.next.min(from + CHUNK);
            step("move a chunk")?;
            self.take_chunk(row.number, from, to, now).sql(DOING)?;
            from = to;
        }
        Ok(())
    }

    /// In order, each event takes the place of the one before it with the same key.
    fn take_chunk(&self, number: u32, from: u64, to: u64, now: Micros) -> rusqlite::Result<()> {
        let on = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let sql = format!(
            "INSERT OR REPLACE INTO main.event ({COLUMNS}, moved_at)
             SELECT {COLUMNS}, ? FROM source.event WHERE place >= ? AND place < ? ORDER BY place"
        );
        on.prepare_cached(&sql)?.execute(params![now, place(number, from), place(number, to)])?;
        on.prepare_cached("INSERT OR REPLACE INTO main.moved VALUES (?, ?)")?.execute(params![number, to])?;
        on.commit()
    }

    /// Forgets deletions that are old enough, and what streams that are no longer compacted left here;
    /// `held` gives the bytes that segments hold of a stream.
    pub(super) fn forget(
        &mut self,
        streams: &[StreamRow],
        tombstone_retention: Micros,
        now: Micros,
        held: impl Fn(&StreamRow) -> u64,
    ) -> Result<()> {
        let before = now.saturating_sub(tombstone_retention);
        let sql = "DELETE FROM event WHERE payload IS NULL AND moved_at <= ?";
        let mut gone = self.connection.execute(sql, [before]).sql(DOING)?;
        for stream in streams.iter().filter(|stream| !stream.retention.compact) {
            let Retention { max_age, max_bytes, .. } = stream.retention;
            let full = max_bytes.is_some_and(|max_bytes| held(stream) >= max_bytes);
            let before = if full { Some(now) } else { max_age.map(|age| now.saturating_sub(micros(age))) };
            let Some(before) = before else { continue };
            let numbers = stream.numbers();
            let sql = "DELETE FROM event WHERE place >= ? AND place < ? AND moved_at <= ?";
            let values = params![place(numbers.start, 0), place(numbers.end, 0), before];
            gone += self.connection.execute(sql, values).sql(DOING)?;
        }
        if gone > 0 {
            reclaim(&self.connection)?;
        }
        Ok(())
    }
}

/// Gives space back to the file system when a quarter of a file is free.
fn reclaim(connection: &Connection) -> Result<()> {
    let count = |name| connection.pragma_query_value(None, name, |row| row.get::<_, u64>(0));
    if count("freelist_count").sql(DOING)? * 4 < count("page_count").sql(DOING)? {
        return Ok(());
    }
    let doing = "giving back the space of old events";
    connection.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)").sql(doing)
}
