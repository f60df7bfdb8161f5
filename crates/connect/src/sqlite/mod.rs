//! Capture from SQLite: triggers write each change to a change table in the transaction that made it.

mod config;

use std::path::Path;

use async_trait::async_trait;
use headwater_core::ports::{Connector, Finding, Source, SourceStatus};
use headwater_core::{Checkpoint, Error, Kind, Result};

use crate::requests::Requests;
use crate::settings::Outbox;

pub use config::{SqliteConfig, file_of};

/// A SQLite database that changes are captured from.
pub struct SqliteConnector {
    _name: String,
    _config: SqliteConfig,
    _requests: Option<Requests>,
}

impl SqliteConnector {
    /// The source `name`. Nothing is opened yet. A config that makes no sense is an error of kind `Config`.
    pub fn new(name: &str, config: SqliteConfig) -> Result<Self> {
        Ok(Self { _name: name.to_owned(), _config: config, _requests: None })
    }

    /// Follows requests for a snapshot that `headwater snapshot` leaves under `data_dir`.
    #[must_use]
    pub fn requests(mut self, data_dir: &Path) -> Self {
        self._requests = Some(Requests::new(data_dir, &self._name));
        self
    }
}

fn unfinished() -> Error {
    Error::new(Kind::Internal, "the SQLite source is being built")
}

#[async_trait]
impl Connector for SqliteConnector {
    async fn open(&self, _from: Option<&Checkpoint>) -> Result<Box<dyn Source>> {
        Err(unfinished())
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        Err(unfinished())
    }

    fn status(&self) -> SourceStatus {
        SourceStatus::default()
    }
}

/// Installs what capture needs, in one transaction: the change table, triggers on `tables` (names, or
/// `"*"`), and the outbox table with its trigger, where one is named and missing. Doing it again changes
/// nothing but what a changed table asks for. Returns a line for each thing done. Blocks.
pub fn install(_path: &Path, _tables: &[String], _outbox: Option<&Outbox>) -> Result<Vec<String>> {
    Err(unfinished())
}

/// The SQL that [`install`] would run now, as a script for the `sqlite3` command. Blocks.
pub fn script(_path: &Path, _tables: &[String], _outbox: Option<&Outbox>) -> Result<String> {
    Err(unfinished())
}

/// Removes the triggers and the change table, with all changes that were not read yet; the outbox
/// table stays. Returns a line for each thing done. Blocks.
pub fn remove(_path: &Path) -> Result<Vec<String>> {
    Err(unfinished())
}
