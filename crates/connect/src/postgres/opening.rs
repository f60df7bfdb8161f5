//! From a checkpoint, or none, to where a source begins: which slot, which tables are still to be read.

use std::time::{Duration, Instant};

use headwater_core::{Checkpoint, Error, Kind, Position, Result, ResultExt};

use super::client::{Connection, Mode};
use super::config::{Names, PostgresConfig};
use super::lane::Lane;
use super::setup::{self, CapturedTable, Prepared, Server, Slot};
use super::snapshot::{Exported, Upcoming, wanted};
use super::state::State;
use super::url::ConnectOptions;
use crate::requests::SnapshotRequest;
use crate::settings::SnapshotMode;

/// How long the server may take to let go of a slot.
const LINGER: Duration = Duration::from_secs(5);

/// Where a source begins.
pub struct Opening {
    /// A connection for the stream, of the lane's reactor.
    pub connection: Connection,
    /// The server and its objects.
    pub prepared: Prepared,
    /// What the first checkpoint says.
    pub state: State,
    /// The place of the first checkpoint.
    pub position: Position,
    /// The snapshot that is to be taken.
    pub upcoming: Option<Upcoming>,
}

/// What an opening goes by.
pub struct Wish<'a> {
    /// The source's names.
    pub names: &'a Names,
    /// Its settings.
    pub config: &'a PostgresConfig,
    /// Where it stands.
    pub from: Option<&'a Checkpoint>,
    /// What an operator asked for.
    pub request: Option<&'a SnapshotRequest>,
    /// This run of Headwater.
    pub run: &'a str,
    /// The thread that will read the stream.
    pub lane: &'a Lane,
    /// The outbox, where its rows say which of them are published.
    pub outbox: Option<OwnOutbox<'a>>,
}

/// An outbox of Headwater's own layout.
#[derive(Debug, Clone, Copy)]
pub struct OwnOutbox<'a> {
    /// `schema.name`.
    pub table: &'a str,
    /// Relays emptied it since its log was read last.
    pub stale: bool,
}

impl Wish<'_> {
    /// Connects, has everything prepared, and decides.
    pub async fn open(&self) -> Result<Opening> {
        let mut connection = self.connect().await?;
        let stored = self.from.map(State::read).transpose()?;
        match (self.prepare(&mut connection, stored.as_ref()).await, stored) {
            // What the slot would have had was published by relays, or is in the table.
            (Err(hole), Some(stored)) if hole.kind() == Kind::Hole && self.begins_anew() => {
                tracing::warn!(source = self.names.source, %hole, "the outbox is read from its table");
                self.anew(connection, stored.epoch + 1).await
            }
            (Ok(prepared), Some(stored)) => self.go_on(connection, prepared, stored).await,
            (Ok(prepared), None) => self.begin(connection, prepared, 1).await,
            (Err(hole), stored) if hole.kind() == Kind::Hole && self.mends(stored.as_ref()) => {
                tracing::warn!(source = self.names.source, %hole, "all tables are read anew, as was asked for");
                self.anew(connection, stored.map_or(1, |stored| stored.epoch + 1)).await
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Begins with another slot.
    async fn anew(&self, mut connection: Connection, epoch: u64) -> Result<Opening> {
        setup::drop_slot(&mut connection, &self.names.slot).await?;
        let prepared = self.prepare(&mut connection, None).await?;
        self.begin(connection, prepared, epoch).await
    }

    /// Whether nothing but an outbox is captured that relays have emptied since.
    fn begins_anew(&self) -> bool {
        self.is_stale() && self.config.tables.is_empty()
    }

    fn is_stale(&self) -> bool {
        self.outbox.is_some_and(|outbox| outbox.stale)
    }

    /// Connects for the stream.
    async fn connect(&self) -> Result<Connection> {
        let options = self.config.url.clone();
        let connecting = self.lane.spawn(async move { setup::connect(&options).await });
        connecting.await.doing(Kind::Internal, || "connecting for replication".to_owned())?
    }

    /// As [`setup::prepare`], with some patience for whoever uses the slot.
    async fn prepare(&self, connection: &mut Connection, stored: Option<&State>) -> Result<Prepared> {
        let deadline = Instant::now() + LINGER;
        loop {
            match setup::prepare(connection, self.names, self.config, stored).await {
                Err(busy) if lingers(&busy, deadline).await => {}
                prepared => return prepared,
            }
        }
    }

    /// Reading all tables anew is what mends a hole; an operator has to ask for it.
    fn mends(&self, stored: Option<&State>) -> bool {
        let known = stored.and_then(|stored| stored.request.as_ref());
        self.request.is_some_and(|request| request.tables.is_empty() && known != Some(&request.id))
    }

    /// Goes on from a checkpoint.
    async fn go_on(&self, connection: Connection, prepared: Prepared, mut state: State) -> Result<Opening> {
        if state.timeline != prepared.server.timeline {
            state.timeline = prepared.server.timeline;
            state.epoch += 1;
            // The log may have forked before the place that is stored: what the slot has not seen confirmed
            // comes again, under the new epoch, rather than a part of it never.
            state.confirmed = prepared.slot.as_ref().map_or(state.confirmed, |slot| slot.confirmed);
        }
        for table in wanted::published(&mut state, &prepared.listing, &prepared.tables) {
            self.warn_of_gap(&table);
        }
        let unread = self.unread(&mut state, &prepared.tables, self.is_stale());
        let upcoming = self.temporary(unread).await?;
        Ok(self.opening(connection, prepared, state, upcoming))
    }

    /// Says that changes of a table are missing.
    fn warn_of_gap(&self, table: &str) {
        let source = &self.names.source;
        if self.config.snapshot == SnapshotMode::Never {
            tracing::warn!(
                source,
                table,
                "the table was not published, or not whole, for a while: its changes since are missing; \
                 have it read anew: headwater snapshot --source {source} --table {table}"
            );
        } else {
            tracing::warn!(
                source,
                table,
                "the table was not published, or not whole, for a while: it is read anew; rows that were \
                 deleted meanwhile cannot be told"
            );
        }
    }

    /// Begins where the slot begins, which is made if need be.
    async fn begin(&self, mut connection: Connection, prepared: Prepared, epoch: u64) -> Result<Opening> {
        let mut state = self.first(&prepared.server, epoch);
        wanted::published(&mut state, &prepared.listing, &prepared.tables);
        let unread = self.unread(&mut state, &prepared.tables, true);
        let upcoming = match &prepared.slot {
            Some(slot) => {
                state.confirmed = slot.confirmed;
                self.temporary(unread).await?
            }
            None => {
                let export = !unread.is_empty();
                let created = setup::create_slot(&mut connection, &self.names.slot, false, export).await?;
                state.confirmed = created.consistent_point;
                if export {
                    let stream = self.connect().await?;
                    let keeper = std::mem::replace(&mut connection, stream);
                    Some(Upcoming::ready(Exported::new(created, keeper)?, unread))
                } else {
                    None
                }
            }
        };
        Ok(self.opening(connection, prepared, state, upcoming))
    }

    fn opening(
        &self,
        connection: Connection,
        prepared: Prepared,
        state: State,
        upcoming: Option<Upcoming>,
    ) -> Opening {
        let stored = self.from.map(|from| from.position).filter(|stored| stored.epoch() == state.epoch);
        let position = stored.unwrap_or_else(|| Position::of(state.epoch, [state.confirmed, 0, 0]));
        Opening { connection, prepared, state, position, upcoming }
    }

    /// `outbox`: whether rows of an outbox may be there that no log tells of. They are read whatever the config
    /// says of snapshots: they were never published.
    fn unread(&self, state: &mut State, tables: &[CapturedTable], outbox: bool) -> Vec<CapturedTable> {
        wanted::update(state, tables, self.config.snapshot, self.run);
        if let Some(own) = self.outbox.filter(|_| outbox) {
            wanted::again(state, own.table);
        }
        if let Some(request) = self.request {
            wanted::ask(state, tables, request);
        }
        wanted::unread(state, tables)
    }

    async fn temporary(&self, unread: Vec<CapturedTable>) -> Result<Option<Upcoming>> {
        if unread.is_empty() {
            return Ok(None);
        }
        Upcoming::temporary(&self.config.url, &self.names.slot, unread).await.map(Some)
    }

    fn first(&self, server: &Server, epoch: u64) -> State {
        State {
            system_id: server.system_id.clone(),
            database: server.database.clone(),
            timeline: server.timeline,
            slot: self.names.slot.clone(),
            epoch,
            ..State::default()
        }
    }
}

/// Whether nobody uses the slot of this name.
pub async fn free(options: &ConnectOptions, slot: &str) -> Result<()> {
    let mut connection = Connection::connect(options, Mode::Sql).await?;
    let deadline = Instant::now() + LINGER;
    loop {
        match Slot::find(&mut connection, slot).await?.map_or(Ok(()), |found| found.free(slot)) {
            Err(busy) if lingers(&busy, deadline).await => {}
            free => return free,
        }
    }
}

/// Whether to ask again, after a moment, as somebody uses the slot: the server takes a while to notice that a
/// connection was lost, and an earlier one of ours may still hold it.
async fn lingers(error: &Error, deadline: Instant) -> bool {
    let again = error.kind() == Kind::Busy && Instant::now() < deadline;
    if again {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    again
}
