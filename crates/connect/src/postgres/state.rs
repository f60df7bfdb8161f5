//! What a PostgreSQL source keeps in its checkpoint.

use std::collections::{BTreeMap, BTreeSet};

use headwater_core::{Checkpoint, Kind, Position, Result, ResultExt};
use serde::{Deserialize, Serialize};

use super::lsn;

/// The checkpoint's `state`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The server's system identifier.
    pub system_id: String,
    /// The database.
    pub database: String,
    /// Its timeline.
    pub timeline: u32,
    /// The slot that is followed.
    pub slot: String,
    /// Rises when the log is another one.
    pub epoch: u64,
    /// Everything before this place was published: what the server may be told.
    #[serde(with = "lsn_text")]
    pub confirmed: u64,
    /// The captured tables, `schema.name`, that were read whole, or did not have to be, with the object
    /// identifier that each had then. 0 while a snapshot that was asked for is to come.
    pub snapshots: BTreeMap<String, u32>,
    /// The publications that are followed, with the object identifier of each. Empty in a checkpoint that
    /// does not say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub publications: BTreeMap<String, u32>,
    /// The operations that each of them publishes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub operations: BTreeMap<String, BTreeSet<String>>,
    /// The captured tables, `schema.name`, that these list or whose schema they do, with the object identifier
    /// of each entry: a table that is taken out and put in again has another.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub entries: BTreeMap<String, u32>,
    /// With `snapshot = "always"`: the run of Headwater in which all tables were last asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// The last request for a snapshot: what it asks for is part of `snapshots`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
}

impl State {
    /// The state that a checkpoint holds.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let doing = || format!("reading the checkpoint of source {}", checkpoint.source);
        serde_json::from_value(checkpoint.state.clone()).doing(Kind::Decode, doing)
    }

    /// The checkpoint of `source` at `position` with this state.
    pub fn checkpoint(&self, source: &str, position: Position) -> Result<Checkpoint> {
        let state = serde_json::to_value(self).doing(Kind::Internal, || "writing a checkpoint".to_owned())?;
        Ok(Checkpoint { source: source.to_owned(), position, state })
    }
}

mod lsn_text {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::lsn;

    pub fn serialize<S: Serializer>(lsn: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&lsn::text(*lsn))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        lsn::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
