//! The embedded bus: streams in SQLite files under `data_dir/bus`, nothing to install.

mod config;

use std::path::Path;

use async_trait::async_trait;
use headwater_core::ports::{Bus, BusStatus, Published, Subscribe, Subscription};
use headwater_core::{Checkpoint, Error, Event, Kind, Micros, Result, StreamSpec};

pub use config::EmbeddedConfig;

/// A bus in a directory.
pub struct EmbeddedBus {}

impl EmbeddedBus {
    /// Opens the bus in `data_dir/bus` for publishing and reading, making it if there is none. One
    /// process at a time may: an error of kind `Busy` names the one that does.
    ///
    /// Dropping the bus writes what it accepted, then lets the next process in.
    pub async fn open(_data_dir: &Path, _config: EmbeddedConfig) -> Result<Self> {
        Err(unfinished())
    }

    /// Opens the bus in `data_dir/bus` for reading beside the process that publishes (`tail`, `status`):
    /// `ensure` and `publish` are refused.
    pub async fn open_reader(_data_dir: &Path, _config: EmbeddedConfig) -> Result<Self> {
        Err(unfinished())
    }

    /// Lets go what is past its stream's retention at `now`; happens by itself every `retain_interval`.
    pub async fn retain(&self, _now: Micros) -> Result<()> {
        Err(unfinished())
    }
}

fn unfinished() -> Error {
    Error::new(Kind::Internal, "the embedded bus is being built")
}

#[async_trait]
impl Bus for EmbeddedBus {
    async fn ensure(&self, _spec: &StreamSpec) -> Result<u32> {
        Err(unfinished())
    }

    async fn publish(&self, _events: Vec<Event>, _checkpoint: Option<Checkpoint>) -> Result<Published> {
        Err(unfinished())
    }

    async fn checkpoint(&self, _source: &str) -> Result<Option<Checkpoint>> {
        Err(unfinished())
    }

    async fn subscribe(&self, _subscribe: Subscribe) -> Result<Box<dyn Subscription>> {
        Err(unfinished())
    }

    async fn status(&self) -> Result<BusStatus> {
        Err(unfinished())
    }
}
