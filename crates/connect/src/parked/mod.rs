//! The parked store: changes set aside, in one fsynced SQLite file (`schema.sql`).

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use headwater_core::ports::{Parked, ParkedCount, ParkedStore, ParkedUsage};
use headwater_core::{Error, EventId, Kind, Result, ResultExt};
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
            Ok((open(&path)?, store::open(&path, Access::Read)?))
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

fn open(path: &Path) -> Result<Connection> {
    let connection = store::open(path, Access::Create)?;
    let make = || -> rusqlite::Result<()> {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.execute_batch(include_str!("schema.sql"))
    };
    make().sql(&format!("opening {}", path.display()))?;
    Ok(connection)
}

fn size(parked: &Parked) -> usize {
    let key = parked.order_key.as_ref().map_or(0, Bytes::len);
    parked.source.len() + parked.stream.len() + parked.reason.len() + parked.change.len() + key + ROW_BYTES
}

/// Adds all in one transaction; the bytes of the store after it, which is rolled back beyond `budget`.
fn park(connection: &Connection, parked: &[Parked], budget: u64) -> rusqlite::Result<Result<(), u64>> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    {
        let mut insert = transaction.prepare_cached(
            "INSERT INTO parked (id, source, stream, order_key, reason, change, parked_at, bytes)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
        )?;
        for one in parked {
            insert.execute(params![
                &one.id.as_bytes()[..],
                &*one.source,
                &*one.stream,
                one.order_key.as_deref(),
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
    let sql = "SELECT source, stream, order_key, count(*), sum(bytes), min(seq), reason FROM parked
         GROUP BY source, stream, order_key ORDER BY min(seq)";
    let mut statement = connection.prepare_cached(sql)?;
    let line = |row: &Row<'_>| {
        Ok(ParkedUsage {
            source: row.get_ref(0)?.as_str()?.into(),
            stream: row.get_ref(1)?.as_str()?.into(),
            order_key: row.get_ref(2)?.as_blob_or_null()?.map(Bytes::copy_from_slice),
            count: row.get(3)?,
            bytes: row.get(4)?,
            reason: row.get(6)?, // of the row with the least seq: SQLite promises that for a bare column
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
    (source, stream, order_key): (&str, &str, Option<&[u8]>),
    bytes: usize,
) -> rusqlite::Result<Vec<Parked>> {
    let sql = "SELECT id, source, stream, order_key, reason, change, parked_at FROM parked
         WHERE source = ? AND stream = ? AND order_key IS ? ORDER BY seq";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![source, stream, order_key])?;
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
        order_key: row.get_ref(3)?.as_blob_or_null()?.map(Bytes::copy_from_slice),
        reason: row.get(4)?,
        change: Bytes::copy_from_slice(row.get_ref(5)?.as_blob()?),
        parked_at: row.get(6)?,
    })
}

fn remove(connection: &Connection, ids: &[EventId]) -> rusqlite::Result<()> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    {
        let mut delete = transaction.prepare_cached("DELETE FROM parked WHERE id = ?")?;
        for id in ids {
            delete.execute([&id.as_bytes()[..]])?;
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

    async fn list(
        &self,
        source: &str,
        stream: &str,
        order_key: Option<&[u8]>,
        bytes: usize,
    ) -> Result<Vec<Parked>> {
        let (source, stream, order_key) =
            (source.to_owned(), stream.to_owned(), order_key.map(<[u8]>::to_vec));
        self.with(move |connection| {
            list(connection, (&source, &stream, order_key.as_deref()), bytes).sql("reading what is parked")
        })
        .await
    }

    async fn remove(&self, ids: &[EventId]) -> Result<()> {
        let ids = ids.to_vec();
        self.with(move |connection| remove(connection, &ids).sql("removing what was parked")).await
    }
}
