//! A database in a folder, and its source.

use std::path::PathBuf;
use std::sync::Arc;

use headwater_connect::sqlite::{SqliteConfig, SqliteConnector};
use headwater_core::ports::Connector;
use headwater_core::{Change, Checkpoint, Error};
use headwater_testkit::suites::source::Reading;
use rusqlite::Connection;

/// A database, and the application's connection to it.
pub struct Shop {
    pub dir: tempfile::TempDir,
    pub path: PathBuf,
    pub conn: Connection,
}

impl Shop {
    /// A database in WAL mode that `sql` has made tables in, and a table `marker`.
    pub fn new(sql: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shop.db");
        let conn = Connection::open(&path).unwrap();
        conn.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
        conn.execute_batch("pragma journal_mode = wal; create table marker (id integer primary key)")
            .unwrap();
        conn.execute_batch(sql).unwrap();
        Self { dir, path, conn }
    }

    /// Runs statements as the application.
    pub fn execute(&self, sql: &str) {
        self.conn.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// The settings that capture `tables`, and the marker.
    pub fn config(&self, tables: &[&str]) -> SqliteConfig {
        let mut config = SqliteConfig::new(&self.path, tables);
        config.tables.push("marker".into());
        config
    }

    /// The source with these settings; requests to it are under the database's folder.
    pub fn connector(&self, config: SqliteConfig) -> Arc<dyn Connector> {
        Arc::new(SqliteConnector::new("test", config).unwrap().requests(self.dir.path()))
    }

    /// Opens and reads.
    pub async fn read(&self, config: SqliteConfig, from: Option<&Checkpoint>) -> Reading {
        Reading::open(&self.connector(config), from).await
    }

    /// The error of an open that must fail.
    pub async fn refusal(&self, config: SqliteConfig, from: Option<&Checkpoint>) -> Error {
        match self.connector(config).open(from).await {
            Ok(_) => panic!("the source opened"),
            Err(error) => error,
        }
    }

    /// Writes the marker, and reads to it.
    pub async fn read_all(&self, reading: &mut Reading, marker: u64) {
        self.execute(&format!("insert into marker values ({marker})"));
        reading.until(marker).await;
    }

    /// One value of the database.
    pub fn one<T: rusqlite::types::FromSql>(&self, sql: &str) -> T {
        self.conn.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }
}

/// A row after a change, each cell as `kind:bytes`.
pub fn cells(row: &headwater_core::Row) -> Vec<String> {
    row.values().map(|value| format!("{value:?}")).collect()
}

/// The row after a change.
pub fn after(change: &Change) -> Vec<String> {
    change.after.as_ref().map(cells).unwrap_or_default()
}

/// The row before a change.
pub fn before(change: &Change) -> Vec<String> {
    change.before.as_ref().map(cells).unwrap_or_default()
}
