//! What every [`Connector`] and its sources must do.
//!
//! An adapter's test file implements [`Factory`] and calls `headwater_testkit::source_suite!(FACTORY)`,
//! which makes one `#[tokio::test]` of each function named there; FACTORY is an expression, evaluated in
//! each test, that may await.

mod resuming;
mod snapshots;
mod streaming;
mod tools;

use std::sync::Arc;

use async_trait::async_trait;
use headwater_core::ports::Connector;

pub use resuming::*;
pub use snapshots::*;
pub use streaming::*;
pub use tools::{Reading, describe, row_text};

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

    /// A connector named `test` that captures these tables of the default schema, and reads them whole
    /// first if `snapshot` is asked for. Each call makes another one for the same source, as a new
    /// process would.
    async fn connector(&self, tables: &[&str], snapshot: bool) -> Arc<dyn Connector>;

    /// The statement, if one is needed, after which the whole row is known before each change of `table`.
    fn full_identity(&self, table: &str) -> Option<String>;
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
    /// Each change tells which transaction made it.
    pub tells_transactions: bool,
}

/// Makes a test of each function of the suite.
#[macro_export]
macro_rules! source_suite {
    ($factory:expr) => {
        $crate::source_suite!(@each $factory;
            // streaming
            changes_come_in_commit_order,
            commit_order_counts_not_the_order_of_beginning,
            changes_say_where_they_come_from,
            rollbacks_never_appear,
            only_captured_tables_are_read,
            a_changed_key_is_told_with_the_old_one,
            the_row_before_is_told,
            a_wait_ends_with_a_commit,
            dropped_waits_lose_nothing,
            a_large_transaction_fits_the_budget,
            status_says_what_it_does,
            // resuming
            what_is_not_confirmed_comes_again_the_same,
            what_is_confirmed_does_not_come_again,
            nothing_is_lost_while_closed,
            a_checkpoint_without_confirmation_is_enough,
            // snapshots
            a_snapshot_reads_what_is_there,
            an_empty_table_has_a_snapshot_too,
            a_snapshot_and_its_stream_have_no_hole,
            a_snapshot_is_taken_once,
            a_snapshot_goes_on_after_a_restart,
            a_table_that_is_added_later_is_read_too,
        );
    };
    (@each $factory:expr; $($test:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let factory = $factory;
                $crate::suites::source::$test(&factory).await;
            }
        )*
    };
}
