//! Opening a PostgreSQL source: connect, prepare, find or make the slot, begin to follow.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use headwater_core::ports::{Connector, Finding, Source, SourceState, SourceStatus};
use headwater_core::{Checkpoint, Origin, Position, Result};
use tokio::time::Instant;

use super::catalog::Catalog;
use super::check::check;
use super::client::{Connection, Mode, quote_ident, quote_literal};
use super::config::{Names, PostgresConfig};
use super::decode::Decoder;
use super::feedback::Feedback;
use super::follow::Follow;
use super::lsn;
use super::messages::Messages;
use super::setup::{self, Server};
use super::source::PostgresSource;
use super::spill::Spill;
use super::state::State;

/// Batches that wait to be shaped.
const AHEAD: usize = 2;

/// A configured PostgreSQL source.
pub struct PostgresConnector {
    config: PostgresConfig,
    names: Names,
    spill: PathBuf,
    status: Arc<Mutex<SourceStatus>>,
}

impl PostgresConnector {
    /// The source `name`; what it must keep on disk goes below `data_dir`.
    pub fn new(name: &str, config: PostgresConfig, data_dir: &Path) -> Result<Self> {
        let names = config.names(name)?;
        let spill = data_dir.join("spill").join(name);
        Ok(Self { config, names, spill, status: Arc::default() })
    }

    fn set(&self, state: SourceState) {
        if let Ok(mut status) = self.status.lock() {
            status.state = state;
        }
    }

    /// The outbox table, schema and name, where there is one.
    fn outbox(&self) -> Option<(String, String)> {
        let table = &self.config.outbox.as_ref()?.table;
        let (schema, name) = table.split_once('.').unwrap_or(("public", table));
        Some((schema.to_owned(), name.to_owned()))
    }
}

#[async_trait]
impl Connector for PostgresConnector {
    async fn open(&self, from: Option<&Checkpoint>) -> Result<Box<dyn Source>> {
        self.set(SourceState::Connecting);
        let mut connection = setup::connect(&self.config.url).await?;
        let stored = from.map(State::read).transpose()?;
        let ready = setup::prepare(&mut connection, &self.names, &self.config, stored.as_ref()).await?;
        let confirmed = match (&stored, ready.slot.as_ref().map(|slot| slot.confirmed)) {
            (Some(stored), _) => stored.confirmed,
            (None, Some(confirmed)) => confirmed,
            (None, None) => {
                let created = setup::create_slot(&mut connection, &self.names.slot, false, true).await?;
                created.consistent_point
            }
        };
        let state = stored.unwrap_or_else(|| self.first_state(&ready.server, confirmed));
        let position = from.map_or(Position::of(state.epoch, [confirmed, 0, 0]), |from| from.position);
        let source = self.follow(connection, state, &ready.publications, position).await?;
        self.set(SourceState::Streaming);
        Ok(Box::new(source))
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        Ok(check(&self.names, &self.config).await)
    }

    fn status(&self) -> SourceStatus {
        self.status.lock().map(|status| status.clone()).unwrap_or_default()
    }
}

impl PostgresConnector {
    fn first_state(&self, server: &Server, confirmed: u64) -> State {
        State {
            system_id: server.system_id.clone(),
            database: server.database.clone(),
            timeline: server.timeline,
            slot: self.names.slot.clone(),
            epoch: 1,
            confirmed,
            snapshots: Default::default(),
            request: None,
        }
    }

    async fn follow(
        &self,
        connection: Connection,
        state: State,
        publications: &[String],
        position: Position,
    ) -> Result<PostgresSource> {
        let mut catalog = Connection::connect(&self.config.url, Mode::Sql).await?;
        let period = reply_period(&mut catalog).await?;
        let origin = Origin {
            source: self.names.source.clone(),
            connector: "postgres".to_owned(),
            database: state.database.clone(),
            system_id: state.system_id.clone(),
        };
        let columns = self.config.outbox.as_ref().map(|outbox| outbox.columns.clone()).unwrap_or_default();
        let messages = Messages::new(&self.config.messages, self.outbox().as_ref(), &columns);
        let decoder =
            Decoder::new(Arc::new(origin), state.epoch, Catalog::new(catalog), self.outbox(), messages);
        let (reader, writer) = connection.start_replication(&self.start(&state, publications)).await?;
        let (feedback, writing) = Feedback::start(writer, state.confirmed, period);
        let (out, batches) = tokio::sync::mpsc::channel(AHEAD);
        let follow = Follow {
            source: self.names.source.clone(),
            reader,
            feedback: feedback.clone(),
            decoder,
            spill: Spill::open(&self.spill)?,
            server_end: state.confirmed,
            state,
            position,
            out,
            status: self.status.clone(),
            piece: None,
            idle_since: Instant::now(),
            moved: false,
        };
        let following = tokio::spawn(follow.run());
        let tasks = vec![writing.abort_handle(), following.abort_handle()];
        Ok(PostgresSource { batches, feedback, status: self.status.clone(), tasks })
    }

    fn start(&self, state: &State, publications: &[String]) -> String {
        let publications: Vec<String> = publications.iter().map(|name| quote_ident(name)).collect();
        format!(
            "START_REPLICATION SLOT \"{}\" LOGICAL {} (proto_version '2', streaming 'on', messages 'true', publication_names {})",
            self.names.slot,
            lsn::text(state.confirmed),
            quote_literal(&publications.join(",")),
        )
    }
}

/// How often the server must hear from us: a third of its patience, and at least every ten seconds.
async fn reply_period(connection: &mut Connection) -> Result<Duration> {
    let rows = connection.query("select setting from pg_settings where name = 'wal_sender_timeout'").await?;
    let patience: u64 = rows.first().map_or(Ok(0), |row| row.number(0))?;
    let longest = Duration::from_secs(10);
    Ok(if patience == 0 { longest } else { Duration::from_millis(patience / 3).min(longest) })
}
