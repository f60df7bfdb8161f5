//! What every [`Connector`] and its sources must do.
//!
//! An adapter's test file implements [`Factory`] and calls `headwater_testkit::source_suite!(factory)`,
//! which makes one `#[tokio::test]` of each function here.

use std::sync::Arc;

use async_trait::async_trait;
use headwater_core::ports::Connector;

/// Makes databases to capture from.
#[async_trait]
pub trait Factory: Send + Sync {
    /// A new, empty database; nothing captures it yet. It goes when dropped.
    async fn database(&self) -> Box<dyn Database>;

    /// What this kind of database can do.
    fn capabilities(&self) -> Capabilities;
}

/// A database under test.
#[async_trait]
pub trait Database: Send + Sync {
    /// A new session, with transactions of its own.
    async fn session(&self) -> Box<dyn Session>;

    /// A connector named `test` that captures `tables` and takes an initial snapshot if asked.
    fn connector(&self, tables: &[&str], snapshot: bool) -> Arc<dyn Connector>;
}

/// A session on a database. The SQL that tests give it is understood by PostgreSQL and SQLite.
#[async_trait]
pub trait Session: Send {
    /// Runs statements, one after the other. Panics when one fails.
    async fn execute(&mut self, sql: &str);

    /// Runs a query: its rows, each value as text, in the words that captured cells use.
    async fn query(&mut self, sql: &str) -> Vec<Vec<Option<String>>>;
}

/// What differs between kinds of database.
#[derive(Debug, Clone, Copy)]
pub struct Capabilities {
    /// Several transactions may write at the same time, and commit in another order than they began.
    pub concurrent_writers: bool,
    /// The state before a change is captured whole, without more settings.
    pub full_before: bool,
    /// A source that is open knows whether more is to come: a snapshot's chunks can be told apart.
    pub snapshot_resumes: bool,
}
