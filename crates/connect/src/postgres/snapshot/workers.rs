//! The connections that read tables, all in one snapshot.
//!
//! Workers take pieces from one queue. A piece is some pages of a table, so nothing may move the rows of
//! a table to other pages (VACUUM FULL, CLUSTER) until all its pieces are read: a worker keeps the
//! transaction in which it read a piece, and with it a lock on the table, until the table is finished.
//!
//! Between the making of the snapshot and that lock a table may have been rewritten (ALTER TABLE ... TYPE,
//! TRUNCATE, VACUUM FULL). What a rewrite leaves may be invisible to an older snapshot: such a table is not
//! read, and the caller is told to read it in a later one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use headwater_core::{Error, Kind, Result, Row};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use super::plan::{Chunk, Planned};
use super::rows;
use super::taking::Settings;
use crate::postgres::client::{Connection, Mode, PgError, quote_literal};
use crate::postgres::decode::FEW;
use crate::postgres::url::ConnectOptions;

/// What workers hand out.
pub enum Piece {
    /// Rows of a table.
    Rows(Arc<Planned>, Vec<Row>),
    /// All rows of a table were handed out.
    Done(Arc<Planned>),
    /// A table was rewritten since the snapshot was made, and is not read in it.
    Rewritten(Arc<Planned>),
}

/// Running workers; they end when this is dropped.
pub struct Workers {
    pieces: mpsc::Receiver<Result<Piece>>,
    tasks: JoinSet<()>,
}

impl Workers {
    /// Starts workers on `chunks`, which are in the order of their tables. They read ahead of
    /// [`Workers::next`] by one gulp each.
    pub fn start(settings: &Settings, snapshot: &str, chunks: VecDeque<Chunk>) -> Self {
        let count = settings.workers.clamp(1, chunks.len().max(1));
        let queue = Arc::new(Mutex::new(chunks));
        let (out, pieces) = mpsc::channel(count);
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let worker = Worker { snapshot: snapshot.to_owned(), queue: queue.clone(), out: out.clone() };
            let options = settings.options.clone();
            let work = async move {
                if let Err(error) = worker.run(&options).await {
                    let _ = worker.out.send(Err(error)).await;
                }
            };
            tasks.spawn_on(work, &settings.tasks);
        }
        Self { pieces, tasks }
    }

    /// The next piece; `None` when no table is left. A worker that panics never finishes its piece, and
    /// the others would wait for it.
    pub async fn next(&mut self) -> Option<Result<Piece>> {
        loop {
            tokio::select! {
                Some(ended) = self.tasks.join_next() => if let Err(error) = ended {
                    return Some(Err(panicked(error)));
                },
                piece = self.pieces.recv() => match piece {
                    Some(piece) => return Some(piece),
                    None => break,
                },
            }
        }
        // A worker lets go of the channel a little before it has ended.
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                return Some(Err(panicked(error)));
            }
        }
        None
    }
}

fn panicked(error: JoinError) -> Error {
    Error::new(Kind::Internal, "reading a table").because(error)
}

/// A table that a worker has locked.
struct Held {
    table: Arc<Planned>,
    /// It is stored elsewhere than the snapshot says.
    rewritten: bool,
}

struct Worker {
    snapshot: String,
    queue: Arc<Mutex<VecDeque<Chunk>>>,
    out: mpsc::Sender<Result<Piece>>,
}

impl Worker {
    async fn run(&self, options: &ConnectOptions) -> Result<()> {
        let mut connection = Connection::connect(options, Mode::Sql).await?;
        // Rows that a policy hides from us must be an error, not missing.
        connection.query("SET row_security = off").await?;
        let mut held: Option<Held> = None;
        while let Some(chunk) = self.take() {
            let table = chunk.table.clone();
            let current = match held.take() {
                Some(held) if Arc::ptr_eq(&held.table, &table) => held,
                other => {
                    if let Some(other) = other {
                        other.table.finished().await;
                        connection.query("COMMIT").await?;
                    }
                    self.hold(&mut connection, table.clone()).await?
                }
            };
            if !current.rewritten {
                self.copy(&mut connection, &chunk).await?;
            }
            let end = if current.rewritten { Piece::Rewritten } else { Piece::Done };
            held = Some(current);
            if table.piece_done() && !self.hand_out(end(table)).await {
                return Ok(());
            }
        }
        if let Some(held) = held {
            held.table.finished().await;
        }
        Ok(())
    }

    fn take(&self) -> Option<Chunk> {
        self.queue.lock().ok()?.pop_front()
    }

    /// Locks a table, in a transaction that sees what the snapshot sees.
    async fn hold(&self, connection: &mut Connection, table: Arc<Planned>) -> Result<Held> {
        self.begin(connection).await?;
        let failed = |error| changed(error, &table.name);
        connection.query(&table.lock_sql()).await.map_err(failed)?;
        let rows = connection.query(&table.still_sql()).await.map_err(failed)?;
        let still = |at: usize| rows.first().is_some_and(|row| row.is_true(at));
        match (still(0), still(1)) {
            (true, same_storage) => Ok(Held { table, rewritten: !same_storage }),
            (false, _) => Err(Error::new(Kind::Unavailable, replaced(&table.name))),
        }
    }

    async fn begin(&self, connection: &mut Connection) -> Result<()> {
        let sql = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
            quote_literal(&self.snapshot)
        );
        match connection.query(&sql).await {
            // The connection that exported it is gone; another snapshot can be taken.
            Err(error) if matches!(PgError::code_of(&error), Some("22023" | "42704" | "55000")) => {
                Err(Error::new(Kind::Unavailable, "the snapshot is no longer there").because(error))
            }
            begun => begun.map(drop),
        }
    }

    async fn copy(&self, connection: &mut Connection, chunk: &Chunk) -> Result<()> {
        let columns = chunk.table.table.columns.len();
        let failed = |error| changed(error, &chunk.table.name);
        let mut copy = connection.copy_out(&chunk.sql()).await.map_err(failed)?;
        while let Some(gulp) = copy.next().await.map_err(failed)? {
            let bytes = gulp.bytes().clone();
            let mut rows =
                gulp.map(|body| rows::row(bytes.slice(body), columns)).collect::<Result<Vec<_>>>()?;
            // Of a small table: a few rows must not keep the whole buffer.
            if bytes.len() < FEW {
                rows.iter_mut().for_each(|row| *row = row.detached());
            }
            if !self.hand_out(Piece::Rows(chunk.table.clone(), rows)).await {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Says whether anybody still listens.
    async fn hand_out(&self, piece: Piece) -> bool {
        self.out.send(Ok(piece)).await.is_ok()
    }
}

/// A table that was altered or dropped since it was planned is planned anew when the source is opened again.
fn changed(error: Error, table: &str) -> Error {
    match PgError::code_of(&error) {
        Some("42P01" | "42703" | "3F000") => Error::new(Kind::Unavailable, replaced(table)).because(error),
        _ => error,
    }
}

fn replaced(table: &str) -> String {
    format!("table {table} changed while its snapshot began")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is next, if anything comes at all.
    async fn next(pieces: mpsc::Receiver<Result<Piece>>, tasks: JoinSet<()>) -> Option<Result<Piece>> {
        let (mut workers, patience) = (Workers { pieces, tasks }, std::time::Duration::from_secs(10));
        tokio::time::timeout(patience, workers.next()).await.unwrap()
    }

    #[tokio::test]
    async fn a_worker_that_panics_is_an_error_while_others_wait_for_it() {
        let (out, pieces) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            std::future::pending::<()>().await;
            drop(out);
        });
        tasks.spawn(async { panic!("a worker") });
        let error = next(pieces, tasks).await.unwrap().err().unwrap();
        assert!(error.to_string().contains("panicked"), "{error}");
    }

    #[tokio::test]
    async fn a_worker_that_panics_last_is_not_taken_for_the_end() {
        for _ in 0..100 {
            let (out, pieces) = mpsc::channel::<Result<Piece>>(1);
            let mut tasks = JoinSet::new();
            tasks.spawn(async move {
                let _out = out;
                panic!("a worker");
            });
            assert!(next(pieces, tasks).await.unwrap().is_err());
        }
    }
}
