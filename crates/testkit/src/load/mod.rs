//! A load of inserts, updates, deletes and rollbacks that writes down what it committed.

mod sqlite;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::{Connection, Executor, PgConnection, Row};

use crate::checker::Step;

/// The captured table and, beside it, the history that the load keeps of it (not to be captured).
pub const TABLES: &str = "
    create table account (id bigint primary key, version bigint not null, note text);
    create table history (seq bigserial primary key, id bigint, version bigint, op text);";

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
                None => tokio::spawn(Worker { url: url.to_owned(), first, random, shared }.run()),
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

/// What was committed, per key, in order.
pub async fn history(url: &str) -> Result<HashMap<i64, Vec<Step>>, String> {
    let history = match url.strip_prefix("sqlite://") {
        Some(path) => sqlite::history(Path::new(path)).map_err(|error| error.to_string()),
        None => in_postgres(url).await.map_err(|error| error.to_string()),
    };
    history.map_err(|error| format!("reading the history: {error}"))
}

async fn in_postgres(url: &str) -> sqlx::Result<HashMap<i64, Vec<Step>>> {
    let mut connection = PgConnection::connect(url).await?;
    let mut history: HashMap<i64, Vec<Step>> = HashMap::new();
    let rows = connection.fetch_all("select id, version, op from history order by id, version").await?;
    for row in rows {
        history.entry(row.get(0)).or_default().push(Step { version: Some(row.get(1)), op: row.get(2) });
    }
    Ok(history)
}

struct Worker {
    url: String,
    first: i64,
    random: StdRng,
    shared: Shared,
}

/// A key's last version, and whether its row is there.
type Versions = HashMap<i64, (i64, bool)>;

impl Worker {
    async fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            if let Err(error) = self.work().await {
                // The server was killed, as kill tests do; it comes back.
                if matches!(error, sqlx::Error::Database(ref e) if e.code().is_some_and(|c| c.starts_with("42")))
                {
                    panic!("the load's own SQL is wrong: {error}");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    async fn work(&mut self) -> sqlx::Result<()> {
        let mut connection = PgConnection::connect(&self.url).await?;
        let mut versions = self.versions(&mut connection).await?;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let (sql, after, commits) = self.transaction(&versions);
            connection.execute(sqlx::AssertSqlSafe(sql)).await?;
            if commits {
                versions = after;
                self.shared.committed.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// What the database says of this worker's keys: a commit whose answer was lost may have happened.
    async fn versions(&self, connection: &mut PgConnection) -> sqlx::Result<Versions> {
        let sql = format!(
            "select distinct on (id) id, version, op <> 'delete' from history
             where id >= {} and id < {} order by id, version desc",
            self.first,
            self.first + KEYS
        );
        let rows = connection.fetch_all(sqlx::AssertSqlSafe(sql)).await?;
        Ok(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect())
    }

    /// One transaction as SQL text, the versions after it, and whether it commits.
    fn transaction(&mut self, versions: &Versions) -> (String, Versions, bool) {
        let mut after = versions.clone();
        let mut sql = String::from("begin;");
        // Now and then a large one, so that transactions are cut by batches.
        let steps = if self.random.random_ratio(1, 50) { 300 } else { self.random.random_range(1..=5) };
        for _ in 0..steps {
            if self.random.random_ratio(1, 10) {
                let mut discarded = after.clone();
                sql += "savepoint s;";
                sql += &self.step(&mut discarded, "rolled back to a savepoint");
                sql += "rollback to s;";
            }
            sql += &self.step(&mut after, "");
        }
        let commits = self.random.random_ratio(4, 5);
        sql += if commits { "commit;" } else { "rollback;" };
        (sql, after, commits)
    }

    /// One change of one key, and its line of history.
    fn step(&mut self, versions: &mut Versions, note: &str) -> String {
        let key = self.first + self.random.random_range(0..KEYS);
        let (version, alive) = versions.get(&key).copied().unwrap_or((0, false));
        let version = version + 1;
        let delete = alive && self.random.random_ratio(1, 4);
        versions.insert(key, (version, !delete));
        let (op, change) = match (alive, delete) {
            (false, _) => ("create", format!("insert into account values ({key}, {version}, '{note}')")),
            (true, false) => (
                "update",
                format!("update account set version = {version}, note = '{note}' where id = {key}"),
            ),
            (true, true) => ("delete", format!("delete from account where id = {key}")),
        };
        format!("{change}; insert into history (id, version, op) values ({key}, {version}, '{op}');")
    }
}
