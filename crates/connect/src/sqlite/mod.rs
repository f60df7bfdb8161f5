//! Capture from SQLite: triggers write each change to a change table in the transaction that made it.
//!
//! - `layout`: our tables; `shape`, `index`: what the application's tables look like; `triggers`: the SQL
//!   on them; `plan`, `install`: bringing the ones in step with the others.
//! - `reader`: changes; `chunk`, `snapshot`: whole tables; `capture`: both in order; `resume`: from where.
//! - `worker`, `source`: the thread that does it, and its async side; `prune`, `watch`, `check`.
//!
//! A trigger cannot know which transaction it runs in, so each change is its own transaction here: its id
//! is the change's. Changes of one transaction still follow each other, and none of it is read before it
//! commits. `committed_at` is when the statement ran, to the millisecond.

mod capture;
mod check;
mod chunk;
mod config;
mod definition;
mod errors;
pub mod inbox;
mod index;
mod install;
mod layout;
pub mod outbox;
mod plan;
mod prune;
mod reader;
mod resume;
mod row;
mod shape;
mod snapshot;
mod source;
mod state;
mod transaction;
mod triggers;
#[cfg(test)]
mod triggers_test;
mod watch;
mod worker;

use std::path::Path;

use async_trait::async_trait;
use headwater_core::ports::{Check, Connector, Source, SourceState, SourceStatus};
use headwater_core::{Checkpoint, Error, Kind, Result};

use crate::requests::Requests;
use capture::Setup;
use outbox::Keep;
use source::SqliteSource;

pub use config::{SqliteConfig, file_of};
pub use install::{install, removal_script, remove, script};

/// A SQLite database that changes are captured from.
pub struct SqliteConnector {
    setup: Setup,
}

impl SqliteConnector {
    /// The source `name`. Nothing is opened yet. A config that makes no sense is an error of kind `Config`.
    pub fn new(name: &str, config: SqliteConfig) -> Result<Self> {
        let problem = |what: &str, hint: &str| {
            Err(Error::new(Kind::Config, format!("source {name}: {what}")).hint(hint))
        };
        if config.tables.is_empty() && config.outbox.is_none() {
            return problem(
                "it names no tables and no outbox",
                "set tables = [\"*\"] to capture every table",
            );
        }
        if config.poll_min > config.poll_max {
            return problem(
                "poll_min is longer than poll_max",
                "leave both out: the defaults are 1ms and 20ms",
            );
        }
        let setup = Setup {
            name: name.to_owned(),
            config,
            requests: None,
            keep: Keep::default(),
            status: Default::default(),
            started: Default::default(),
        };
        Ok(Self { setup })
    }

    /// How an outbox of Headwater's own layout is kept that is read by triggers.
    #[must_use]
    pub fn keep(mut self, keep: Keep) -> Self {
        self.setup.keep = keep;
        self
    }

    /// Follows requests for a snapshot that `headwater snapshot` leaves under `data_dir`.
    #[must_use]
    pub fn requests(mut self, data_dir: &Path) -> Self {
        self.setup.requests = Some(Requests::new(data_dir, &self.setup.name));
        self
    }
}

#[async_trait]
impl Connector for SqliteConnector {
    async fn open(&self, from: Option<&Checkpoint>) -> Result<Box<dyn Source>> {
        let opened = SqliteSource::open(self.setup.clone(), from.cloned()).await;
        if opened.is_err() {
            self.setup.say(|status| status.state = SourceState::Closed);
        }
        Ok(Box::new(opened?))
    }

    async fn check(&self) -> Result<Check> {
        let setup = self.setup.clone();
        let findings = tokio::task::spawn_blocking(move || check::check(&setup)).await;
        findings.map_err(|error| Error::new(Kind::Internal, "checking a SQLite source").because(error))
    }

    fn status(&self) -> SourceStatus {
        self.setup.status.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}
