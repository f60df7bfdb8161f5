//! How far a source has come.

use serde::{Deserialize, Serialize};

use crate::Position;

/// How far a source has come, stored beside what it published.
///
/// After a restart the source opens from it, and the runtime drops every change at or below its
/// position: those were published with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The source's name in the config.
    pub source: String,
    /// Every change at or below this was published.
    pub position: Position,
    /// What the connector needs to resume (confirmed log position, snapshot progress); only it reads this.
    pub state: serde_json::Value,
}
