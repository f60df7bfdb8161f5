//! What the runtime says of itself: what `/status` serves and `headwater status` shows.

use headwater_core::Micros;
use headwater_core::ports::{BusStatus, ShelfCount, TableProgress};
use serde::{Deserialize, Serialize};

/// The whole runtime at one moment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RuntimeStatus {
    /// Headwater's version.
    pub version: String,
    /// When it started.
    pub started_at: Micros,
    /// The memory that the process has resident, in bytes, where the system tells.
    pub memory_bytes: Option<u64>,
    /// Every source, by name.
    pub sources: Vec<SourceReport>,
    /// Every outbox that is emptied by query, by the name of its source.
    #[serde(default)]
    pub relays: Vec<RelayReport>,
    /// Every push, by name.
    #[serde(default)]
    pub pushes: Vec<PushReport>,
    /// Every stream, by name: the declared ones and those that outbox rows made.
    pub streams: Vec<StreamReport>,
    /// What the bus holds; `None` when it did not answer.
    pub bus: Option<BusStatus>,
    /// Why the bus did not answer.
    pub bus_error: Option<String>,
}

impl SourceReport {
    /// Why it is not ready, in a sentence; `None` when it is reading and gets on.
    pub(crate) fn not_ready(&self) -> Option<String> {
        not_ready("source", &self.name, self.phase, self.error.as_deref())
    }
}

impl RelayReport {
    /// As [`SourceReport::not_ready`].
    pub(crate) fn not_ready(&self) -> Option<String> {
        not_ready("the relay of", &self.name, self.phase, self.error.as_deref())
    }
}

fn not_ready(what: &str, name: &str, phase: Phase, error: Option<&str>) -> Option<String> {
    if error.is_none() && matches!(phase, Phase::Snapshot | Phase::Streaming) {
        return None;
    }
    let error = error.map(|error| format!(": {error}")).unwrap_or_default();
    Some(format!("{what} {name} is {}{error}", phase.as_str()))
}

/// One outbox that is emptied by query.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RelayReport {
    /// Its source's name.
    pub name: String,
    /// What it is doing.
    pub phase: Phase,
    /// What went wrong, while it is retrying or when it has failed.
    pub error: Option<String>,
    /// Since when it has been retrying.
    pub retrying_since: Option<Micros>,
    /// How often it was retried since it last got on.
    pub attempts: u32,
    /// The lanes that this process works now.
    pub lanes: u32,
    /// How old the oldest row is that it claimed and that is not settled; 0 when there is none.
    pub lag_seconds: Option<f64>,
    /// Events made durable since the start.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Events a second, over the last ten seconds.
    pub events_per_second: f64,
    /// What is set aside in the outbox; `None` when it did not answer.
    #[serde(default)]
    pub aside: Option<ShelfCount>,
}

/// One push.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PushReport {
    /// Its name.
    pub name: String,
    /// What it is doing: retrying while nothing but failures comes.
    pub phase: Phase,
    /// What went wrong the last time, unless something succeeded since.
    pub error: Option<String>,
    /// Since when nothing but failures came.
    pub retrying_since: Option<Micros>,
    /// How many they are.
    pub attempts: u32,
    /// Events delivered since the start.
    pub events: u64,
    /// Events a second, over the last ten seconds.
    pub events_per_second: f64,
    /// Whether what has to be set aside waits, because there is no room for it.
    #[serde(default)]
    pub full: bool,
    /// What is set aside; `None` when the store of it did not answer.
    pub aside: Option<ShelfCount>,
}

/// One source.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SourceReport {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub phase: Phase,
    /// What went wrong, while it is retrying or when it has failed; also why nothing is confirmed.
    pub error: Option<String>,
    /// Since when it has been retrying.
    pub retrying_since: Option<Micros>,
    /// How often it was retried since it last got on.
    pub attempts: u32,
    /// The newest confirmed place, in words the database's own tools understand.
    pub position: Option<String>,
    /// Bytes of log that are not confirmed, where the source can tell.
    pub lag_bytes: Option<u64>,
    /// How old the oldest change is that is not yet durable; 0 when there is none.
    pub lag_seconds: Option<f64>,
    /// The tables of a snapshot, while one is taken.
    pub snapshot: Vec<TableProgress>,
    /// Events made durable since the start.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Events a second, over the last ten seconds.
    pub events_per_second: f64,
    /// Bytes that were read and are not yet durable.
    pub in_flight_bytes: u64,
    /// Changes that are parked; `None` when the store of them did not answer.
    pub parked: Option<u64>,
}

/// What a source is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Not begun.
    #[default]
    Starting,
    /// Connecting and checking.
    Connecting,
    /// Reading tables.
    Snapshot,
    /// Following the log.
    Streaming,
    /// Waiting to try again.
    Retrying,
    /// Given up: no retry can help.
    Failed,
    /// Ended because it was asked to.
    Stopped,
}

impl Phase {
    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Connecting => "connecting",
            Self::Snapshot => "snapshot",
            Self::Streaming => "streaming",
            Self::Retrying => "retrying",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

/// One stream.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StreamReport {
    /// Its name.
    pub name: String,
    /// Why it is stopped, its changes held in the parked store; `None` when it runs.
    pub stopped: Option<String>,
    /// Its partitions.
    pub partitions: u32,
    /// Events made durable since the start.
    pub events: u64,
    /// Changes that are parked; `None` when the store of them did not answer.
    pub parked: Option<u64>,
}

/// The memory that the process has resident, in bytes, where the system tells.
pub(crate) fn memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
