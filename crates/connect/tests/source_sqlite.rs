//! The SQLite source does what every source must.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use headwater_connect::settings::SnapshotMode;
use headwater_connect::sqlite::{SqliteConfig, SqliteConnector};
use headwater_core::ports::Connector;
use headwater_testkit::suites::source::{Capabilities, Database, Factory, Session};
use rusqlite::Connection;
use rusqlite::types::ValueRef;

struct Files;

#[async_trait]
impl Factory for Files {
    async fn database(&self) -> Box<dyn Database> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shop.db");
        Connection::open(&path).unwrap().pragma_update(None, "journal_mode", "wal").unwrap();
        Box::new(OneFile { _dir: dir, path })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { concurrent_writers: false, tells_transactions: false }
    }
}

struct OneFile {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

#[async_trait]
impl Database for OneFile {
    async fn session(&self) -> Box<dyn Session> {
        let conn = Connection::open(&self.path).unwrap();
        conn.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
        Box::new(OneSession { conn })
    }

    async fn connector(&self, tables: &[&str], snapshot: bool) -> Arc<dyn Connector> {
        let mut config = SqliteConfig::new(&self.path, tables);
        config.snapshot = if snapshot { SnapshotMode::Initial } else { SnapshotMode::Never };
        Arc::new(SqliteConnector::new("test", config).unwrap())
    }

    fn full_identity(&self, _: &str) -> Option<String> {
        None
    }
}

struct OneSession {
    conn: Connection,
}

#[async_trait]
impl Session for OneSession {
    async fn execute(&mut self, sql: &str) {
        tokio::task::block_in_place(|| self.conn.execute_batch(sql)).unwrap();
    }

    async fn query(&mut self, sql: &str) -> Vec<Vec<Option<String>>> {
        let mut statement = self.conn.prepare(sql).unwrap();
        let width = statement.column_count();
        let text = |value: ValueRef<'_>| match value {
            ValueRef::Null => None,
            ValueRef::Integer(number) => Some(number.to_string()),
            ValueRef::Real(number) => Some(format!("{number:?}")),
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                Some(String::from_utf8_lossy(bytes).into_owned())
            }
        };
        let rows = statement.query_map([], |row| (0..width).map(|at| row.get_ref(at).map(text)).collect());
        rows.unwrap().map(Result::unwrap).collect()
    }
}

headwater_testkit::source_suite!(Files);
