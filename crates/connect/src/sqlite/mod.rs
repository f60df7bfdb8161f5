//! Capture from SQLite: triggers write each change to a change table in the transaction that made it.

mod config;
mod definition;
mod errors;
mod index;
mod install;
mod layout;
mod outbox;
mod plan;
mod shape;
mod triggers;
#[cfg(test)]
mod triggers_test;

use std::path::Path;

use async_trait::async_trait;
use headwater_core::ports::{Connector, Finding, Source, SourceStatus};
use headwater_core::{Checkpoint, Error, Kind, Result};

use crate::requests::Requests;

pub use config::{SqliteConfig, file_of};
pub use install::{install, remove, script};

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
