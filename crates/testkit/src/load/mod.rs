//! A load of inserts, updates, deletes and rollbacks that writes down what it committed.

mod postgres;
mod sqlite;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::checker::History;

pub use postgres::TABLES;
pub use sqlite::TABLES as SQLITE_TABLES;

/// Keys each worker owns: so that a worker knows its keys' versions without asking.
const KEYS: i64 = 50;

/// A running load; stop it and wait for it to end.
pub struct Load {
    shared: Shared,
    workers: Vec<tokio::task::JoinHandle<()>>,
}

/// What the workers share with who started them.
#[derive(Debug, Clone, Default)]
struct Shared {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
}

impl Load {
    /// Starts `workers` writers on the database at `url`, which has [`TABLES`]; on `sqlite:///path`, which has
    /// [`SQLITE_TABLES`]. `seed` makes the choice of work repeatable. A writer that loses its connection
    /// goes on with a new one.
    pub fn start(url: &str, workers: u64, seed: u64) -> Self {
        let shared = Shared::default();
        let spawn = |number: u64| {
            let first = number as i64 * KEYS;
            let random = StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9e37_79b9));
            let shared = shared.clone();
            match url.strip_prefix("sqlite://").map(PathBuf::from) {
                Some(path) => {
                    let worker = sqlite::Worker { shared, first, random };
                    tokio::task::spawn_blocking(move || worker.run(&path))
                }
                None => {
                    let (url, truncates) = (url.to_owned(), number == 0);
                    let worker = postgres::Worker { url, truncates, first, messages: false, random, shared };
                    tokio::spawn(worker.run())
                }
            }
        };
        Self { workers: (0..workers).map(spawn).collect(), shared }
    }

    /// Transactions committed so far, as far as the writers know.
    pub fn committed(&self) -> u64 {
        self.shared.committed.load(Ordering::Relaxed)
    }

    /// Stops the writers and waits for them.
    pub async fn stop(self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            worker.await.expect("a load worker panicked");
        }
    }
}

/// One who writes to a database, and makes its transactions up.
trait Writer {
    /// What it knows of its keys.
    type Known: Clone;

    /// Begins a transaction.
    const BEGIN: &str;
    /// Goes back to the savepoint `s`.
    const BACK: &str;

    /// Chooses what is done.
    fn random(&mut self) -> &mut StdRng;

    /// One statement, and a line of history for each change that it makes.
    fn step(&mut self, known: &mut Self::Known, note: &str) -> String;

    /// One transaction as SQL text, what is known after it, and whether it commits.
    fn transaction(&mut self, known: &Self::Known) -> (String, Self::Known, bool) {
        let mut after = known.clone();
        let mut sql = Self::BEGIN.to_owned();
        // Now and then a large one, so that transactions are cut by batches, and sent before they end.
        let steps = if self.random().random_ratio(1, 50) { 300 } else { self.random().random_range(1..=5) };
        for _ in 0..steps {
            if self.random().random_ratio(1, 10) {
                let mut discarded = after.clone();
                sql += "savepoint s;";
                sql += &self.step(&mut discarded, "rolled back to a savepoint");
                sql += Self::BACK;
            }
            sql += &self.step(&mut after, "");
        }
        let commits = self.random().random_ratio(4, 5);
        sql += if commits { "commit;" } else { "rollback;" };
        (sql, after, commits)
    }
}

/// What was committed, per stream and key, in order.
pub async fn history(url: &str) -> Result<History, String> {
    let history = match url.strip_prefix("sqlite://") {
        Some(path) => sqlite::history(Path::new(path)).map_err(|error| error.to_string()),
        None => postgres::history(url).await.map_err(|error| error.to_string()),
    };
    history.map_err(|error| format!("reading the history: {error}"))
}
