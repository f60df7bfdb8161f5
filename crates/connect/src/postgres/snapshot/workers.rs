//! The connections that read tables, all in one snapshot.
//!
//! Workers take pieces from one queue. A piece is some pages of a table, so nothing may move the rows of
//! a table to other pages (VACUUM FULL, CLUSTER) until all its pieces are read: a worker keeps the
//! transaction in which it read a piece, and with it a lock on the table, until the table is finished.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use headwater_core::{Error, Kind, Result, Row};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::plan::{Chunk, Planned};
use super::rows;
use super::taking::Settings;
use crate::postgres::client::{Connection, Mode, PgError, quote_literal};
use crate::postgres::url::ConnectOptions;

/// What workers hand out.
pub enum Piece {
    /// Rows of a table.
    Rows(Arc<Planned>, Vec<Row>),
    /// All rows of a table were handed out.
    Done(Arc<Planned>),
}

/// Running workers; they end when this is dropped.
pub struct Workers {
    pieces: mpsc::Receiver<Result<Piece>>,
    _tasks: JoinSet<()>,
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
        Self { pieces, _tasks: tasks }
    }

    /// The next piece; `None` when all tables were read.
    pub async fn next(&mut self) -> Option<Result<Piece>> {
        self.pieces.recv().await
    }
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
        let mut held: Option<Arc<Planned>> = None;
        while let Some(chunk) = self.take() {
            if held.as_ref().is_none_or(|held| !Arc::ptr_eq(held, &chunk.table)) {
                if let Some(held) = held.take() {
                    held.finished().await;
                    connection.query("COMMIT").await?;
                }
                self.begin(&mut connection).await?;
                held = Some(chunk.table.clone());
            }
            self.copy(&mut connection, &chunk).await?;
            if chunk.table.piece_done() && !self.hand_out(Piece::Done(chunk.table)).await {
                return Ok(());
            }
        }
        if let Some(held) = held {
            held.finished().await;
        }
        Ok(())
    }

    fn take(&self) -> Option<Chunk> {
        self.queue.lock().ok()?.pop_front()
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
            let rows = gulp.map(|body| rows::row(bytes.slice(body), columns)).collect::<Result<Vec<_>>>()?;
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
        Some("42P01" | "42703" | "3F000") => {
            Error::new(Kind::Unavailable, format!("table {table} changed while its snapshot began"))
                .because(error)
        }
        _ => error,
    }
}
