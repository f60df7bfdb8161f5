//! What a stream exposes of a table.

use std::sync::Arc;

use headwater_core::{Error, Kind, Result, Table};

/// What a stream exposes of a table: nothing else of the table reaches its consumers (invariant 8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contract {
    /// The stream's name.
    pub stream: Arc<str>,
    /// The contract's version; every event carries it.
    pub version: u32,
    /// The exposed columns in the order they are written: (the table's column, the exposed name).
    pub columns: Vec<(String, String)>,
    /// The table's columns that make the message key. Empty: events have no key.
    pub key: Vec<String>,
    /// The table's name, where several tables feed the stream and keys must be told apart.
    pub key_prefix: Option<String>,
}

impl Contract {
    /// The place in `table` of a column that the contract names.
    pub(super) fn locate(&self, table: &Table, column: &str) -> Result<usize> {
        table.column(column).ok_or_else(|| {
            let doing =
                format!("stream {}: table {} has no column \"{column}\"", self.stream, table.full_name());
            Error::new(Kind::Contract, doing).hint(format!(
                "bring the column back, or change the contract of [stream.{}] and raise its version",
                self.stream
            ))
        })
    }

    /// The name under which consumers see a column: the table's own where the contract does not expose
    /// it (a key column may be left out of the row).
    pub(super) fn exposed<'a>(&'a self, column: &'a str) -> &'a str {
        self.columns.iter().find(|(name, _)| name == column).map_or(column, |(_, exposed)| exposed)
    }
}
