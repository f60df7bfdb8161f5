//! What every [`Bus`] must do.
//!
//! An adapter's test file implements [`Factory`] and calls `headwater_testkit::bus_suite!(factory)`,
//! which makes one `#[tokio::test]` of each function here.

use std::sync::Arc;

use async_trait::async_trait;
use headwater_core::Result;
use headwater_core::ports::Bus;

/// Opens the bus under test. Every test uses stream, group and source names of its own, so factories
/// may share a server.
#[async_trait]
pub trait Factory: Send + Sync {
    /// Opens the bus for publishing and reading. Called again after the last one was dropped, it must
    /// find what that one held.
    async fn open(&self) -> Result<Arc<dyn Bus>>;

    /// Opens the bus a second time beside the first, as another process would, for reading.
    async fn open_reader(&self) -> Result<Arc<dyn Bus>>;

    /// What this kind of bus promises beyond the port.
    fn capabilities(&self) -> Capabilities;
}

/// What differs between kinds of bus.
#[derive(Debug, Clone, Copy)]
pub struct Capabilities {
    /// Events and their checkpoint become visible in one step.
    pub atomic_checkpoint: bool,
    /// The largest payload to try, in bytes.
    pub max_payload: usize,
}
