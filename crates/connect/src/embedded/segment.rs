//! Segment files: their names, their layout (`schema.sql`), and what each says of itself.
//!
//! Only the newest segment is written to. A closed one is never changed in place: its last commit was
//! moved out of SQLite's log before the next segment was made, and what retention leaves of it is a new
//! file that takes its name. So closed segments are read without locks and without files beside them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use headwater_core::{Checkpoint, Error, Kind, Micros, Result, Retention};
use rusqlite::{Connection, Row, Transaction, TransactionBehavior, params};

use crate::store::{self, Access, SqlExt, io, micros};

/// The version of `schema.sql`, in each file's `user_version`.
const VERSION: i64 = 1;

/// Bits of a place that hold the offset: at 100,000 events a second a partition fills them in 44 years,
/// and 16 bits are left to number the partitions of all streams.
const OFFSET_BITS: u32 = 47;

/// The largest number a partition may have.
pub(super) const MAX_NUMBER: u32 = (1 << (63 - OFFSET_BITS)) - 1;

/// The rowid of an event.
pub(super) fn place(number: u32, offset: u64) -> i64 {
    (i64::from(number) << OFFSET_BITS) | (offset.min((1 << OFFSET_BITS) - 1) as i64)
}

/// The partition number and the offset of a rowid.
pub(super) fn unplace(place: i64) -> (u32, u64) {
    ((place >> OFFSET_BITS) as u32, (place & ((1 << OFFSET_BITS) - 1)) as u64)
}

/// A stream, as a segment's `stream` table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StreamRow {
    pub(super) name: Arc<str>,
    pub(super) partitions: u32,
    pub(super) base: u32,
    pub(super) retention: Retention,
}

impl StreamRow {
    /// The numbers of its partitions.
    pub(super) fn numbers(&self) -> std::ops::Range<u32> {
        self.base..self.base + self.partitions
    }
}

/// What a segment holds of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PartitionRow {
    pub(super) number: u32,
    pub(super) first: u64,
    pub(super) next: u64,
    pub(super) bytes: u64,
    pub(super) newest: Option<Micros>,
}

impl PartitionRow {
    /// An empty one, to begin at `first`.
    pub(super) fn empty(number: u32, first: u64) -> Self {
        Self { number, first, next: first, bytes: 0, newest: None }
    }
}

/// All that the first transaction of a segment carries over from the one before.
#[derive(Debug, Default)]
pub(super) struct Carried {
    pub(super) streams: Vec<StreamRow>,
    pub(super) partitions: Vec<PartitionRow>,
    pub(super) checkpoints: Vec<Checkpoint>,
}

/// Where segment `number` is.
pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("segment-{number:08}.db"))
}

/// The numbers of the segments in `dir`, rising; the last one is being written.
pub(super) fn list(dir: &Path) -> Result<Vec<u64>> {
    let doing = "listing the segments of the embedded bus";
    let mut numbers = Vec::new();
    for entry in io(std::fs::read_dir(dir), doing)? {
        let name = io(entry, doing)?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix("segment-")?.strip_suffix(".db"));
        numbers.extend(digits.and_then(|digits| digits.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Makes segment `number`.
pub(super) fn create(dir: &Path, number: u64, now: Micros, carried: &Carried) -> Result<()> {
    make(&path(dir, number), None, |new| fill(new, number, now, carried))
}

/// Makes a file: complete and durable before it has its name, so it is there whole or not at all.
/// `from` is a complete file that `fill` finds attached as `source`.
pub(super) fn make(
    path: &Path,
    from: Option<&Path>,
    fill: impl FnOnce(&Connection) -> rusqlite::Result<()>,
) -> Result<()> {
    let draft = path.with_extension("db.new");
    let doing = format!("making {}", path.display());
    let remove_draft = || remove(&draft).and_then(|()| remove_log(&draft));
    remove_draft()?;
    let drawn =
        store::open(&draft, Access::Create).and_then(|connection| draw(connection, from, fill).sql(&doing));
    if let Err(error) = drawn {
        // What there is of it may be all the room that the disk had left.
        drop(remove_draft());
        return Err(error);
    }
    io(std::fs::rename(&draft, path), &doing)?;
    match path.parent() {
        Some(dir) => sync_dir(dir),
        None => Ok(()),
    }
}

/// Fills a file that nobody sees yet. Without a journal: the commit itself writes the rows into the file
/// and syncs it, so that its success says that they are there. (What a log still held at the end, closing
/// would move into the file, and would be silent about a disk that is too full for that.)
fn draw(
    connection: Connection,
    from: Option<&Path>,
    fill: impl FnOnce(&Connection) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    // Measured with 600-byte events: pages of 16 KiB cost a quarter less CPU than 4 KiB, 64 KiB more.
    connection.pragma_update(None, "page_size", 16384)?;
    connection.pragma_update(None, "journal_mode", "OFF")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    if let Some(from) = from {
        connection.execute("ATTACH ? AS source", [store::immutable_uri(from)])?;
    }
    let transaction = Transaction::new_unchecked(&connection, TransactionBehavior::Immediate)?;
    fill(&transaction)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()?;
    let logged = |row: &Row<'_>| Ok(row.get_ref(0)?.as_str()? == "wal");
    if !connection.pragma_update_and_check(Some("main"), "journal_mode", "WAL", logged)? {
        return Err(rusqlite::Error::InvalidQuery);
    }
    connection.close().map_err(|(_, error)| error)
}

/// Makes a closed segment anew without the events of `gone`.
pub(super) fn rewrite(path: &Path, gone: &[PartitionRow]) -> Result<()> {
    // All of the log is in the file; left behind, it would be taken for the new one's.
    remove_log(path)?;
    make(path, Some(path), |new| {
        new.execute_batch(include_str!("schema.sql"))?;
        for table in ["segment", "stream", "partition", "checkpoint"] {
            new.execute(&format!("INSERT INTO {table} SELECT * FROM source.{table}"), [])?;
        }
        for row in partitions(new)? {
            if gone.iter().any(|gone| gone.number == row.number) {
                insert_partition(new, &PartitionRow::empty(row.number, row.next))?;
            } else {
                let sql = "INSERT INTO event SELECT * FROM source.event
                    WHERE place >= ? AND place < ? ORDER BY place";
                let values = params![place(row.number, row.first), place(row.number, row.next)];
                new.prepare_cached(sql)?.execute(values)?;
            }
        }
        Ok(())
    })
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => io(removed, &format!("removing {}", path.display())),
    }
}

/// Removes the files that SQLite keeps beside one.
pub(super) fn remove_log(path: &Path) -> Result<()> {
    ["-wal", "-shm"].into_iter().try_for_each(|suffix| {
        let mut name = path.to_owned().into_os_string();
        name.push(suffix);
        remove(Path::new(&name))
    })
}

/// Makes names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    let synced = std::fs::File::open(dir).and_then(|dir| dir.sync_all());
    #[cfg(test)]
    let synced = synced.and_then(|()| FAILING_SYNCS.with(fail_one));
    io(synced, &format!("syncing {}", dir.display()))
}

#[cfg(test)]
thread_local! {
    static FAILING_SYNCS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Lets the next syncs of directories by this thread fail.
#[cfg(test)]
pub(super) fn fail_syncs(count: u32) {
    FAILING_SYNCS.set(count);
}

#[cfg(test)]
fn fail_one(left: &std::cell::Cell<u32>) -> std::io::Result<()> {
    let failing = left.get();
    left.set(failing.saturating_sub(1));
    if failing > 0 { Err(std::io::Error::other("a sync that fails")) } else { Ok(()) }
}

fn fill(on: &Connection, number: u64, now: Micros, carried: &Carried) -> rusqlite::Result<()> {
    on.execute_batch(include_str!("schema.sql"))?;
    on.execute("INSERT INTO segment VALUES (?, ?)", params![number, now])?;
    carried.streams.iter().try_for_each(|stream| insert_stream(on, stream))?;
    carried.partitions.iter().try_for_each(|partition| insert_partition(on, partition))?;
    carried.checkpoints.iter().try_for_each(|checkpoint| put_checkpoint(on, checkpoint))
}

/// Opens a segment and checks that this version of Headwater understands it.
pub(super) fn open(path: &Path, access: Access) -> Result<Connection> {
    let connection = store::open(path, access)?;
    let version: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .sql(&format!("opening {}", path.display()))?;
    if version != VERSION {
        let doing = format!("{} has version {version}, this Headwater reads {VERSION}", path.display());
        return Err(Error::new(Kind::Refused, doing).hint("use the Headwater that wrote it, or a newer one"));
    }
    Ok(connection)
}

/// Writes a stream that is new.
pub(super) fn insert_stream(connection: &Connection, stream: &StreamRow) -> rusqlite::Result<()> {
    let max_age = stream.retention.max_age.map(micros);
    let max_bytes = stream.retention.max_bytes;
    let sql = "INSERT OR REPLACE INTO stream VALUES (?, ?, ?, ?, ?, ?)";
    let (name, compact) = (&*stream.name, stream.retention.compact);
    let values = params![name, stream.partitions, stream.base, max_age, max_bytes, compact];
    connection.prepare_cached(sql)?.execute(values).map(drop)
}

/// Writes what the segment holds of a partition.
pub(super) fn insert_partition(connection: &Connection, row: &PartitionRow) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO partition VALUES (?, ?, ?, ?, ?)";
    let values = params![row.number, row.first, row.next, row.bytes, row.newest];
    connection.prepare_cached(sql)?.execute(values).map(drop)
}

/// Writes how far a source has come.
pub(super) fn put_checkpoint(connection: &Connection, checkpoint: &Checkpoint) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO checkpoint VALUES (?, ?, ?)";
    let values = params![checkpoint.source, checkpoint.position.to_string(), checkpoint.state.to_string()];
    connection.prepare_cached(sql)?.execute(values).map(drop)
}

/// The streams that a segment knows of.
pub(super) fn streams(connection: &Connection) -> rusqlite::Result<Vec<StreamRow>> {
    let sql = "SELECT name, partitions, base, max_age, max_bytes, compact FROM stream ORDER BY base";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([], |row| {
        let max_age = row.get::<_, Option<u64>>(3)?.map(Duration::from_micros);
        let retention = Retention { max_age, max_bytes: row.get(4)?, compact: row.get(5)? };
        let name = Arc::from(row.get_ref(0)?.as_str()?);
        Ok(StreamRow { name, partitions: row.get(1)?, base: row.get(2)?, retention })
    })?;
    rows.collect()
}

/// What a segment holds of each partition, by number.
pub(super) fn partitions(connection: &Connection) -> rusqlite::Result<Vec<PartitionRow>> {
    let sql = "SELECT number, first, next, bytes, newest FROM partition ORDER BY number";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([], |row| {
        let (first, next, bytes) = (row.get(1)?, row.get(2)?, row.get(3)?);
        Ok(PartitionRow { number: row.get(0)?, first, next, bytes, newest: row.get(4)? })
    })?;
    rows.collect()
}

/// The checkpoints in a segment.
pub(super) fn checkpoints(connection: &Connection) -> rusqlite::Result<Vec<Checkpoint>> {
    let sql = "SELECT source, position, state FROM checkpoint ORDER BY source";
    connection.prepare_cached(sql)?.query_map([], checkpoint_of)?.collect()
}

/// The checkpoint of one source.
pub(super) fn checkpoint(connection: &Connection, source: &str) -> rusqlite::Result<Option<Checkpoint>> {
    let sql = "SELECT source, position, state FROM checkpoint WHERE source = ?";
    connection.prepare_cached(sql)?.query_map([source], checkpoint_of)?.next().transpose()
}

fn checkpoint_of(row: &Row<'_>) -> rusqlite::Result<Checkpoint> {
    let unreadable = |column, error: Box<dyn std::error::Error + Send + Sync>| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error)
    };
    let position = row.get_ref(1)?.as_str()?.parse().map_err(|error| unreadable(1, Box::new(error)))?;
    let state =
        serde_json::from_str(row.get_ref(2)?.as_str()?).map_err(|error| unreadable(2, error.into()))?;
    Ok(Checkpoint { source: row.get(0)?, position, state })
}

/// When a segment was begun.
pub(super) fn begun_at(connection: &Connection) -> rusqlite::Result<Micros> {
    connection.query_row("SELECT begun_at FROM segment", [], |row| row.get(0))
}
