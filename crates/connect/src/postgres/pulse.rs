//! What a source does beside reading: asks how long the log is, looks whether its tables are still the same
//! and published as they were, writes heartbeats, and sees the server shut down.
//!
//! The server keeps the log for a slot until something of the slot's own database is confirmed. Where
//! that database is idle and others of the server are busy, a heartbeat is that something: a message that
//! comes back as an empty transaction.
//!
//! Of a table that is not published the log says nothing, so the log alone would never tell that a name has
//! come to mean such a table.
//!
//! A server that shuts down ends ordinary connections at once, but waits until what reads its log has confirmed
//! all of it. That may be never: while the bus is away, or a snapshot is taken. Then we have to go.

use std::sync::Arc;
use std::time::Duration;

use headwater_core::{Error, Kind, Result};
use tokio::sync::mpsc::WeakSender;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::client::{Connection, Mode, PgError};
use super::follow::Ready;
use super::lsn;
use super::monitor::Monitor;
use super::setup::{CapturedTable, Listing, another};
use super::url::ConnectOptions;

/// How often the server is asked for the end of its log, and for what else may have changed.
const LOOK: Duration = Duration::from_secs(10);

/// How long a server that shuts down waits for us while nothing is confirmed.
const GRACE: Duration = Duration::from_secs(5);

const END: &str =
    "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END";

/// Nothing on a standby, which may write nothing until it is promoted.
const BEAT: &str =
    "SELECT pg_logical_emit_message(true, 'headwater-heartbeat', '') WHERE NOT pg_is_in_recovery()";

/// The task of one open source.
pub struct Pulse {
    /// Where.
    pub options: ConnectOptions,
    /// How often a heartbeat is written.
    pub heartbeat: Option<Duration>,
    /// Who is told of the log's end.
    pub monitor: Arc<Monitor>,
    /// The server's `server_version_num`.
    pub version: u32,
    /// The captured tables.
    pub tables: Vec<CapturedTable>,
    /// How they are published.
    pub listing: Listing,
    /// Where it is said that the source has to be opened again.
    pub out: WeakSender<Result<Ready>>,
    /// Gives up the connection that reads the log.
    pub end: CancellationToken,
}

impl Pulse {
    /// Runs until it is aborted, or the server shuts down. What fails is tried again the next time; the
    /// stream sees for itself when the server is away.
    pub async fn run(mut self) {
        let mut connection = None;
        let mut due = Instant::now();
        loop {
            let beat = self.heartbeat.filter(|_| Instant::now() >= due);
            due = beat.map_or(due, |heartbeat| Instant::now() + heartbeat);
            let error = match self.once(&mut connection, beat.is_some()).await {
                Ok((connection, changed)) => tokio::select! {
                    () = self.rest(changed, due) => continue,
                    error = connection.ended() => error,
                },
                Err(error) => error,
            };
            connection = None;
            match PgError::code_of(&error) {
                Some("57P01" | "57P03") => return self.leave().await,
                // No right, no such function, read only by a setting: it would be refused for ever.
                Some("42501" | "42883" | "25006") if self.heartbeat.take().is_some() => {
                    tracing::warn!(%error, "no heartbeats are written");
                }
                _ => {}
            }
            sleep(self.pause(due)).await;
        }
    }

    /// How long until the next look, or until the next heartbeat is due.
    fn pause(&self, due: Instant) -> Duration {
        self.heartbeat.map_or(LOOK, |_| due.saturating_duration_since(Instant::now()).min(LOOK))
    }

    /// Waits for the next time; says first that the source has to be opened again, where it has.
    async fn rest(&self, changed: Option<Error>, due: Instant) {
        if let (Some(changed), Some(out)) = (changed, self.out.upgrade()) {
            let _ = out.send(Err(changed)).await;
        }
        sleep(self.pause(due)).await;
    }

    /// The server shuts down. As long as more and more is confirmed it can wait for the rest; it ends the
    /// connection itself when it has all.
    async fn leave(&self) {
        let mut before = None;
        while before != Some(self.monitor.place()) {
            before = Some(self.monitor.place());
            sleep(GRACE).await;
        }
        self.end.cancel();
    }

    /// Also says why the source has to be opened again, if it has to.
    async fn once<'a>(
        &self,
        connection: &'a mut Option<Connection>,
        beat: bool,
    ) -> Result<(&'a mut Connection, Option<Error>)> {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(Connection::connect(&self.options, Mode::Sql).await?),
        };
        if beat {
            connection.query(BEAT).await?;
        }
        let rows = connection.query(END).await?;
        let row = rows.first().ok_or_else(|| Error::new(Kind::Decode, "the log has no end"))?;
        self.monitor.heard(lsn::parse(row.text(0)?)?);
        let changed = self.changed(connection).await?;
        Ok((connection, changed))
    }

    async fn changed(&self, connection: &mut Connection) -> Result<Option<Error>> {
        let again = |what: String| Ok(Some(Error::new(Kind::Unavailable, what)));
        if let Some(name) = another(connection, &self.tables).await? {
            return again(format!("{name} is another table than when the source was opened"));
        }
        let publications: Vec<String> = self.listing.publications.keys().cloned().collect();
        if Listing::read(connection, self.version, &publications, &self.tables).await? != self.listing {
            return again(format!("publication {} was altered", publications.join(", ")));
        }
        Ok(None)
    }
}
