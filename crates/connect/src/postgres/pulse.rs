//! What a source does from time to time: asks how long the log is, and writes heartbeats.
//!
//! The server keeps the log for a slot until something of the slot's own database is confirmed. Where
//! that database is idle and others of the server are busy, a heartbeat is that something: a message that
//! comes back as an empty transaction.

use std::sync::Arc;
use std::time::Duration;

use headwater_core::{Error, Kind, Result};

use super::client::{Connection, Mode, PgError};
use super::lsn;
use super::monitor::Monitor;
use super::url::ConnectOptions;

/// How often the server is asked for the end of its log.
const LOOK: Duration = Duration::from_secs(10);

const END: &str =
    "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END";

const BEAT: &str = "SELECT pg_logical_emit_message(true, 'headwater-heartbeat', '')";

/// The task of one open source.
pub struct Pulse {
    /// Where.
    pub options: ConnectOptions,
    /// How often a heartbeat is written.
    pub heartbeat: Option<Duration>,
    /// Who is told of the log's end.
    pub monitor: Arc<Monitor>,
}

impl Pulse {
    /// Runs until it is aborted. What fails is tried again the next time; the stream sees for itself
    /// when the server is away.
    pub async fn run(mut self) {
        let mut connection = None;
        loop {
            if let Err(error) = self.once(&mut connection).await {
                connection = None;
                // No right, no such function, read only: it would be refused for ever.
                let refused = matches!(PgError::code_of(&error), Some("42501" | "42883" | "25006"));
                if refused && self.heartbeat.take().is_some() {
                    tracing::warn!(%error, "no heartbeats are written");
                }
            }
            tokio::time::sleep(self.heartbeat.unwrap_or(LOOK)).await;
        }
    }

    async fn once(&self, connection: &mut Option<Connection>) -> Result<()> {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(Connection::connect(&self.options, Mode::Sql).await?),
        };
        if self.heartbeat.is_some() {
            connection.query(BEAT).await?;
        }
        let rows = connection.query(END).await?;
        let row = rows.first().ok_or_else(|| Error::new(Kind::Decode, "the log has no end"))?;
        self.monitor.heard(lsn::parse(row.text(0)?)?);
        Ok(())
    }
}
