//! The parked store: changes set aside, in one fsynced SQLite file (`schema.sql`).

mod file;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use headwater_core::ports::{HoldsBack, Parked, ParkedCount, ParkedStore, ParkedUsage};
use headwater_core::{Error, EventId, Kind, Position, Result, ResultExt};
use rusqlite::types::Type;
use rusqlite::{Connection, Row, Transaction, TransactionBehavior, params};

use crate::store::{self, Access, SqlExt};

/// What a parked change takes beside its own bytes: its row, its places in the indexes.
const ROW_BYTES: usize = 128;

/// Parked changes in `data_dir/parked.db`.
pub struct SqliteParkedStore {
    connection: Arc<Mutex<Connection>>,
    /// Counts, while the other one writes.
    reader: Arc<Mutex<Connection>>,
    budget: u64,
}

impl SqliteParkedStore {
    /// Opens `data_dir/parked.db`, making it if there is none; it holds at most `budget` bytes of changes.
    pub async fn open(data_dir: &Path, budget: u64) -> Result<Self> {
        let dir = data_dir.to_owned();
        let connections = blocking(move || {
            std::fs::create_dir_all(&dir).doing(Kind::Unavailable, || format!("making {}", dir.display()))?;
            let path = dir.join("parked.db");
            Ok((file::open(&path)?, store::open(&path, Access::Read)?))
        });
        let (connection, reader) = connections.await?;
        let (connection, reader) = (Arc::new(Mutex::new(connection)), Arc::new(Mutex::new(reader)));
        Ok(Self { connection, reader, budget })
    }

    /// Does something with the connection on a thread that may block.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let connection = Arc::clone(&self.connection);
        blocking(move || work(&connection.lock().unwrap_or_else(PoisonError::into_inner))).await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let stopped = |_| Err(Error::new(Kind::Internal, "the parked store has stopped"));
    tokio::task::spawn_blocking(work).await.unwrap_or_else(stopped)
}

fn size(parked: &Parked) -> usize {
    let key = columns(&parked.holds).1.map_or(0, <[u8]>::len);
    parked.source.len() + parked.stream.len() + parked.reason.len() + parked.change.len() + key + ROW_BYTES
}

/// Adds all in one transaction; the bytes of the store after it, which is rolled back beyond `budget`.
fn park(connection: &Connection, parked: &[Parked], budget: u64) -> rusqlite::Result<Result<(), u64>> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    {
        let mut insert = transaction.prepare_cached(
            "INSERT INTO parked (id, source, stream, holds, order_key, place, reason, change, parked_at, bytes)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (source, stream, id) DO NOTHING",
        )?;
        for one in parked {
            let (holds, order_key) = columns(&one.holds);
            insert.execute(params![
                &one.id.as_bytes()[..],
                &*one.source,
                &*one.stream,
                holds,
                order_key,
                place(&one.position),
                one.reason,
                &one.change[..],
                one.parked_at,
                size(one),
            ])?;
        }
    }
    let total: u64 = transaction.query_row("SELECT bytes FROM total", [], |row| row.get(0))?;
    if total > budget {
        return Ok(Err(total));
    }
    transaction.commit().map(Ok)
}

fn usage(connection: &Connection) -> rusqlite::Result<Vec<ParkedUsage>> {
    // Reason and seq are those of the row with the least place: SQLite promises that for bare columns.
    let sql = "SELECT source, stream, holds, order_key, count(*), sum(bytes), reason, min(place) FROM parked
         GROUP BY source, stream, holds, order_key ORDER BY seq";
    let mut statement = connection.prepare_cached(sql)?;
    let line = |row: &Row<'_>| {
        Ok(ParkedUsage {
            source: row.get_ref(0)?.as_str()?.into(),
            stream: row.get_ref(1)?.as_str()?.into(),
            holds: holds_of(row, 2)?,
            count: row.get(4)?,
            bytes: row.get(5)?,
            reason: row.get(6)?,
        })
    };
    statement.query_map([], line)?.collect()
}

/// Reads the index alone.
fn counts(connection: &Connection) -> rusqlite::Result<Vec<ParkedCount>> {
    let sql = "SELECT source, stream, count(*) FROM parked GROUP BY source, stream";
    let mut statement = connection.prepare_cached(sql)?;
    let line = |row: &Row<'_>| {
        let (source, stream) = (row.get_ref(0)?.as_str()?.into(), row.get_ref(1)?.as_str()?.into());
        Ok(ParkedCount { source, stream, count: row.get(2)? })
    };
    statement.query_map([], line)?.collect()
}

fn list(
    connection: &Connection,
    (source, stream, holds): (&str, &str, &HoldsBack),
    bytes: usize,
) -> rusqlite::Result<Vec<Parked>> {
    let sql = "SELECT id, source, stream, holds, order_key, place, reason, change, parked_at FROM parked
         WHERE source = ? AND stream = ? AND holds = ? AND order_key IS ? ORDER BY place, seq";
    let mut statement = connection.prepare_cached(sql)?;
    let (holds, order_key) = columns(holds);
    let mut rows = statement.query(params![source, stream, holds, order_key])?;
    let (mut listed, mut taken) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let parked = parked_of(row)?;
        taken += size(&parked);
        if taken > bytes && !listed.is_empty() {
            break;
        }
        listed.push(parked);
    }
    Ok(listed)
}

fn parked_of(row: &Row<'_>) -> rusqlite::Result<Parked> {
    let wrong = |_| rusqlite::Error::InvalidColumnType(0, "id".into(), Type::Blob);
    Ok(Parked {
        id: EventId::from_bytes(row.get_ref(0)?.as_blob()?.try_into().map_err(wrong)?),
        source: row.get_ref(1)?.as_str()?.into(),
        stream: row.get_ref(2)?.as_str()?.into(),
        holds: holds_of(row, 3)?,
        position: position_of(row, 5)?,
        reason: row.get(6)?,
        change: Bytes::copy_from_slice(row.get_ref(7)?.as_blob()?),
        parked_at: row.get(8)?,
    })
}

/// The columns `holds` and `order_key`.
fn columns(holds: &HoldsBack) -> (i64, Option<&[u8]>) {
    match holds {
        HoldsBack::Stream => (0, None),
        HoldsBack::Key(order_key) => (1, Some(order_key)),
        HoldsBack::Nothing => (2, None),
    }
}

/// What the column `holds`, at `at`, and `order_key` behind it say.
fn holds_of(row: &Row<'_>, at: usize) -> rusqlite::Result<HoldsBack> {
    match row.get(at)? {
        0 => Ok(HoldsBack::Stream),
        1 => Ok(HoldsBack::Key(Bytes::copy_from_slice(row.get_ref(at + 1)?.as_blob()?))),
        2 => Ok(HoldsBack::Nothing),
        other => Err(rusqlite::Error::IntegralValueOutOfRange(at, other)),
    }
}

/// A position as bytes that sort as positions do.
fn place(position: &Position) -> Vec<u8> {
    [&position.epoch().to_be_bytes()[..], position.bytes()].concat()
}

fn position_of(row: &Row<'_>, at: usize) -> rusqlite::Result<Position> {
    let place = row.get_ref(at)?.as_blob()?.split_first_chunk();
    place
        .and_then(|(epoch, bytes)| Position::new(u64::from_be_bytes(*epoch), bytes))
        .ok_or_else(|| rusqlite::Error::InvalidColumnType(at, "place".into(), Type::Blob))
}

fn remove(connection: &Connection, source: &str, stream: &str, ids: &[EventId]) -> rusqlite::Result<()> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    {
        let mut delete =
            transaction.prepare_cached("DELETE FROM parked WHERE source = ? AND stream = ? AND id = ?")?;
        for id in ids {
            delete.execute(params![source, stream, &id.as_bytes()[..]])?;
        }
    }
    transaction.commit()
}

#[async_trait]
impl ParkedStore for SqliteParkedStore {
    async fn park(&self, parked: Vec<Parked>) -> Result<()> {
        let budget = self.budget;
        let (count, done) =
            (parked.len(), self.with(move |connection| park(connection, &parked, budget).sql("parking")));
        done.await?.map_err(|total| {
            let doing =
                format!("{count} changes cannot be parked: with them {total} bytes are, {budget} may be");
            Error::new(Kind::Full, doing).hint(
                "see `headwater parked`; mend what holds them and restart, or raise `budget` of [parked]",
            )
        })
    }

    async fn usage(&self) -> Result<Vec<ParkedUsage>> {
        self.with(|connection| usage(connection).sql("reading what is parked")).await
    }

    async fn counts(&self) -> Result<Vec<ParkedCount>> {
        let reader = Arc::clone(&self.reader);
        blocking(move || {
            counts(&reader.lock().unwrap_or_else(PoisonError::into_inner)).sql("counting what is parked")
        })
        .await
    }

    async fn list(&self, source: &str, stream: &str, holds: &HoldsBack, bytes: usize) -> Result<Vec<Parked>> {
        let (source, stream, holds) = (source.to_owned(), stream.to_owned(), holds.clone());
        self.with(move |connection| {
            list(connection, (&source, &stream, &holds), bytes).sql("reading what is parked")
        })
        .await
    }

    async fn remove(&self, source: &str, stream: &str, ids: &[EventId]) -> Result<()> {
        let (source, stream, ids) = (source.to_owned(), stream.to_owned(), ids.to_vec());
        let work = move |connection: &Connection| {
            remove(connection, &source, &stream, &ids).sql("removing what was parked")
        };
        self.with(work).await
    }
}
