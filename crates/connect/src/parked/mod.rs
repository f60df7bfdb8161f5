//! The parked store: changes set aside, in one fsynced SQLite file.

use std::path::Path;

use async_trait::async_trait;
use headwater_core::ports::{Parked, ParkedStore, ParkedUsage};
use headwater_core::{Error, EventId, Kind, Result};

/// Parked changes in `data_dir/parked.db`.
pub struct SqliteParkedStore {}

impl SqliteParkedStore {
    /// Opens `data_dir/parked.db`, making it if there is none; it holds at most `budget` bytes of changes.
    pub async fn open(_data_dir: &Path, _budget: u64) -> Result<Self> {
        Err(unfinished())
    }
}

fn unfinished() -> Error {
    Error::new(Kind::Internal, "the parked store is being built")
}

#[async_trait]
impl ParkedStore for SqliteParkedStore {
    async fn park(&self, _parked: Vec<Parked>) -> Result<()> {
        Err(unfinished())
    }

    async fn usage(&self) -> Result<Vec<ParkedUsage>> {
        Err(unfinished())
    }

    async fn list(
        &self,
        _source: &str,
        _stream: &str,
        _order_key: Option<&[u8]>,
        _limit: usize,
    ) -> Result<Vec<Parked>> {
        Err(unfinished())
    }

    async fn remove(&self, _ids: &[EventId]) -> Result<()> {
        Err(unfinished())
    }
}
