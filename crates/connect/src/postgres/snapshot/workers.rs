//! The connections that read tables, all in one snapshot.
//!
//! A piece is some pages of a table, so nothing may move the rows of a table to other pages (VACUUM FULL,
//! CLUSTER) until all its pieces are read. Workers see to that together: each takes a lock on the table
//! before its first piece of it, and keeps it until no piece is left to take. So from the first lock to the
//! end of the last piece, somebody has one.
//!
//! A worker that waits for a lock (perhaps behind the owner's ALTER TABLE, which waits for another worker)
//! has no piece and no other lock, and workers never wait for each other: nobody can be waiting in a circle.
//!
//! Between the making of the snapshot and that lock a table may have been rewritten (ALTER TABLE ... TYPE,
//! TRUNCATE, VACUUM FULL). What a rewrite leaves may be invisible to an older snapshot: such a table is not
//! read, and the caller is told to read it in a later one.

use std::sync::Arc;

use headwater_core::{Error, Kind, Result, Row};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use super::plan::{Chunk, Planned};
use super::queue::Queue;
use super::rows;
use super::taking::Settings;
use crate::postgres::client::{Connection, Mode, PgError, quote_literal};
use crate::postgres::decode::FEW;
use crate::postgres::url::ConnectOptions;

/// What is left to read.
pub type Left = Queue<Arc<Planned>, Chunk>;

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
    /// How many tables are not finished.
    unfinished: usize,
}

impl Workers {
    /// Starts workers on the tables in `queue`. They read ahead of [`Workers::next`] by one gulp each.
    pub fn start(settings: &Settings, snapshot: &str, queue: Left) -> Self {
        let count = settings.workers.clamp(1, queue.pieces().max(1));
        let unfinished = queue.tables().len();
        let queue = Arc::new(queue);
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
        Self { pieces, tasks, unfinished }
    }

    /// The next piece; `None` when all tables are finished.
    pub async fn next(&mut self) -> Option<Result<Piece>> {
        while self.unfinished > 0 {
            tokio::select! {
                // A worker that panics never finishes its piece.
                Some(ended) = self.tasks.join_next() => if let Err(error) = ended {
                    return Some(Err(panicked(error)));
                },
                Some(piece) = self.pieces.recv() => {
                    if let Ok(Piece::Done(_) | Piece::Rewritten(_)) = piece {
                        self.unfinished -= 1;
                    }
                    return Some(piece);
                }
                else => return Some(Err(Error::new(Kind::Internal, "a table was not read to its end"))),
            }
        }
        None
    }
}

fn panicked(error: JoinError) -> Error {
    Error::new(Kind::Internal, "reading a table").because(error)
}

struct Worker {
    snapshot: String,
    queue: Arc<Left>,
    out: mpsc::Sender<Result<Piece>>,
}

impl Worker {
    async fn run(&self, options: &ConnectOptions) -> Result<()> {
        let mut connection = Connection::connect(options, Mode::Sql).await?;
        // Rows that a policy hides from us must be an error, not missing.
        connection.query("SET row_security = off").await?;
        while let Some(at) = self.queue.come() {
            let held = self.hold(&mut connection, &self.queue.tables()[at]).await;
            match self.queue.arrive(at) {
                Some(first) => {
                    if !self.read(&mut connection, at, first, held?).await? {
                        return Ok(());
                    }
                }
                // Others have taken all of its pieces, and what became of it since does not matter.
                None => drop(held),
            }
            connection.query("ROLLBACK").await?;
        }
        Ok(())
    }

    /// Reads pieces of a locked table until none is left. Says whether anybody still listens.
    async fn read(
        &self,
        connection: &mut Connection,
        at: usize,
        first: Chunk,
        rewritten: bool,
    ) -> Result<bool> {
        let mut next = Some(first);
        while let Some(chunk) = next {
            if !rewritten && !self.copy(connection, &chunk).await? {
                return Ok(false);
            }
            let table = chunk.table;
            if table.piece_done() {
                let end = if rewritten { Piece::Rewritten(table) } else { Piece::Done(table) };
                if !self.hand_out(end).await {
                    return Ok(false);
                }
            }
            next = self.queue.take(at);
        }
        Ok(true)
    }

    /// Locks a table, in a transaction that sees what the snapshot sees. Says whether it was rewritten: it
    /// is stored elsewhere than the snapshot says.
    async fn hold(&self, connection: &mut Connection, table: &Planned) -> Result<bool> {
        self.begin(connection).await?;
        let failed = |error| changed(error, &table.name);
        connection.query(&table.lock_sql()).await.map_err(failed)?;
        let rows = connection.query(&table.still_sql()).await.map_err(failed)?;
        let still = |at: usize| rows.first().is_some_and(|row| row.is_true(at));
        match (still(0), still(1)) {
            (true, same_storage) => Ok(!same_storage),
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

    /// Hands out the rows of a piece. Says whether anybody still listens.
    async fn copy(&self, connection: &mut Connection, chunk: &Chunk) -> Result<bool> {
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
                return Ok(false);
            }
        }
        Ok(true)
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
        let (mut workers, patience) =
            (Workers { pieces, tasks, unfinished: 1 }, std::time::Duration::from_secs(10));
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
