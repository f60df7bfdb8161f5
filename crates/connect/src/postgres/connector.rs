//! A configured PostgreSQL source: opening it, checking it, its status.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use headwater_core::ports::{Check, Connector, Source, SourceState, SourceStatus};
use headwater_core::{Checkpoint, Kind, Origin, Result, ResultExt};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::catalog::Catalog;
use super::check::check;
use super::client::{Connection, Mode, quote_ident, quote_option};
use super::config::{Names, PostgresConfig};
use super::decode::{Captured, Decoder};
use super::feedback::Feedback;
use super::follow::{Follow, Turn};
use super::lane::Lane;
use super::lsn;
use super::messages::Messages;
use super::monitor::Monitor;
use super::opening::{Opening, OwnOutbox, Wish, free};
use super::outbox::{Behind, Keep, Settling};
use super::pulse::Pulse;
use super::snapshot::{self, OutboxRows};
use super::source::{PostgresSource, Tasks};
use super::spill::Spill;
use super::state::State;
use crate::requests::Requests;

/// Batches that wait to be shaped.
const AHEAD: usize = 2;

/// A configured PostgreSQL source.
pub struct PostgresConnector {
    config: PostgresConfig,
    names: Names,
    spill: PathBuf,
    /// Whether transactions have to come whole.
    whole: Arc<AtomicBool>,
    requests: Requests,
    monitor: Arc<Monitor>,
    /// This run of Headwater, for `snapshot = "always"`.
    run: String,
    keep: Keep,
}

impl PostgresConnector {
    /// The source `name`; what it must keep on disk goes below `data_dir`, where it also finds what an
    /// operator asks of it.
    pub fn new(name: &str, config: PostgresConfig, data_dir: &Path) -> Result<Self> {
        Ok(Self {
            names: config.names(name)?,
            config,
            spill: data_dir.join("spill").join(name),
            whole: Arc::default(),
            requests: Requests::new(data_dir, name),
            monitor: Arc::default(),
            run: format!("{:016x}", rand::random::<u64>()),
            keep: Keep::default(),
        })
    }

    /// How an outbox of Headwater's own layout is kept while it is read from the log.
    #[must_use]
    pub fn keep(mut self, keep: Keep) -> Self {
        self.keep = keep;
        self
    }

    /// The outbox, where its rows are settled behind the log.
    async fn behind(&self) -> Result<Option<Behind>> {
        match &self.config.outbox {
            Some(outbox) => Behind::take(&self.config.url, &outbox.table, &self.names.slot, self.keep).await,
            None => Ok(None),
        }
    }
}

#[async_trait]
impl Connector for PostgresConnector {
    async fn open(&self, from: Option<&Checkpoint>) -> Result<Box<dyn Source>> {
        self.monitor.state(SourceState::Connecting);
        let requests = self.requests.clone();
        let reading = tokio::task::spawn_blocking(move || requests.read());
        let request = reading.await.doing(Kind::Internal, || "looking for requests".to_owned())??;
        let mut behind = self.behind().await?;
        let lane = Lane::start(&self.names.source)?;
        let wish = Wish {
            names: &self.names,
            config: &self.config,
            from,
            request: request.as_ref(),
            run: &self.run,
            lane: &lane,
            outbox: behind.as_ref().map(|own| OwnOutbox { table: own.table(), stale: own.is_stale() }),
        };
        let opening = wish.open().await?;
        // Making a slot may have taken longer than the lease: what relays did meanwhile is not in its snapshot.
        if let Some(behind) = &mut behind {
            behind.renew(false).await?;
        }
        Ok(Box::new(self.follow(opening, lane, behind).await?))
    }

    async fn free(&self) -> Result<()> {
        free(&self.config.url, &self.names.slot).await
    }

    async fn check(&self) -> Result<Check> {
        Ok(check(&self.names, &self.config).await)
    }

    fn status(&self) -> SourceStatus {
        self.monitor.status()
    }
}

impl PostgresConnector {
    async fn follow(&self, opening: Opening, lane: Lane, behind: Option<Behind>) -> Result<PostgresSource> {
        let Opening { connection, prepared, state, position, upcoming } = opening;
        let mut catalog = Connection::connect(&self.config.url, Mode::Sql).await?;
        let period = reply_period(&mut catalog).await?;
        let decoder = self.decoder(&state, catalog, Captured::new(&prepared.tables));
        let start = self.start(&state, &prepared.publications);
        let spill = Spill::open(&self.spill).await?;
        let (reader, writer) = connection.start_replication(&start).await?;
        let end = CancellationToken::new();
        let (feedback, writing) = Feedback::start(writer, state.confirmed, period, end.clone());
        self.monitor.confirmed(state.confirmed);
        self.monitor.state(match upcoming {
            Some(_) => SourceState::Snapshot,
            None => SourceState::Streaming,
        });
        let (out, batches) = tokio::sync::mpsc::channel(AHEAD);
        let pulse = Pulse {
            options: self.config.url.clone(),
            heartbeat: self.config.heartbeat,
            monitor: self.monitor.clone(),
            version: prepared.server.version,
            tables: prepared.tables.clone(),
            listing: prepared.listing,
            out: out.downgrade(),
            end: end.clone(),
        };
        let snapshots = snapshot::Settings {
            options: self.config.url.clone(),
            slot: self.names.slot.clone(),
            workers: self.config.snapshot_workers,
            version: prepared.server.version,
            publications: prepared.publications,
            tables: prepared.tables,
            outbox: self.outbox_rows(behind.is_some()),
            requests: self.requests.clone(),
            tasks: Handle::current(),
        };
        let settling = behind.map(|behind| Settling::start(behind, &state, out.downgrade()));
        let before = state.checkpoint(&self.names.source, position)?;
        let follow = Follow {
            source: self.names.source.clone(),
            reader,
            feedback: feedback.clone(),
            decoder,
            spill,
            whole: self.whole.clone(),
            state,
            position,
            upcoming,
            snapshots,
            end: end.clone(),
            out,
            monitor: self.monitor.clone(),
            turn: Turn::default(),
        };
        let others = [lane.spawn(follow.run()), tokio::spawn(pulse.run())];
        let (monitor, requests) = (self.monitor.clone(), self.requests.clone());
        Ok(PostgresSource::new(
            batches,
            before,
            feedback,
            monitor,
            requests,
            Tasks { writing, others, settling, end, _lane: lane },
        ))
    }

    /// What a snapshot reads of the outbox.
    fn outbox_rows(&self, own: bool) -> OutboxRows {
        match &self.config.outbox {
            _ if own => OutboxRows::Own,
            outbox => OutboxRows::All(outbox.as_ref().map(|outbox| outbox.columns.timestamp().to_owned())),
        }
    }

    fn decoder(&self, state: &State, catalog: Connection, captured: Captured) -> Decoder {
        let origin = Origin {
            source: self.names.source.clone(),
            connector: "postgres".to_owned(),
            database: state.database.clone(),
            system_id: state.system_id.clone(),
        };
        let outbox = self.config.outbox.as_ref();
        let columns = outbox.map(|outbox| outbox.columns.clone()).unwrap_or_default();
        let messages = Messages::new(&self.config.messages, captured.outbox(), &columns);
        Decoder::new(Arc::new(origin), state.epoch, Catalog::new(catalog), captured, messages)
    }

    fn start(&self, state: &State, publications: &[String]) -> String {
        let publications: Vec<String> = publications.iter().map(|name| quote_ident(name)).collect();
        format!(
            "START_REPLICATION SLOT \"{}\" LOGICAL {} (proto_version '2', streaming '{}', messages 'true', publication_names {})",
            self.names.slot,
            lsn::text(state.confirmed),
            if self.whole.load(Ordering::Relaxed) { "off" } else { "on" },
            quote_option(&publications.join(",")),
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
