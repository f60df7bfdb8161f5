//! An outbox that is read from the log: its rows are settled behind the checkpoint, and relays are kept away.
//!
//! Log and relays share one table, and only one of them may empty it. So the log holds the leases of all lanes,
//! under its slot's name, which stays in the table after it has ended: should a relay work there meanwhile, the name
//! is another, and the log knows that it missed something. It then reads the rows that are not published from the
//! table (as a snapshot does) and goes on behind that.
//!
//! A row may be settled once everything is durable that was in the log when the row was seen: then its own
//! event is. (A row is seen after its transaction wrote its end to the log.)

use std::time::Duration;

use headwater_core::ports::OutboxStore as _;
use headwater_core::{Error, Kind, Result};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::lease::millis;
use super::{Keep, Names, PostgresOutboxStore};
use crate::postgres::client::{Connection, Mode, PgError, QueryRow, quote_literal};
use crate::postgres::follow::Ready;
use crate::postgres::lsn;
use crate::postgres::state::State;
use crate::postgres::url::ConnectOptions;

/// How often it is looked for rows to settle.
const LOOK: Duration = Duration::from_millis(500);

/// How often old rows are looked for.
const CLEAN: Duration = Duration::from_mins(1);

/// How the names of owners end that have yet to read what relays left.
const READING: &str = ":reading";

/// Rows that are settled in one statement.
const TOGETHER: usize = 10_000;

/// What an open source holds of the outbox that it reads.
pub struct Behind {
    url: ConnectOptions,
    names: Names,
    /// `schema.name`, as a checkpoint says it.
    table: String,
    /// How the names of this slot's owners begin; the one of this run.
    prefix: String,
    owner: String,
    keep: Keep,
    connection: Connection,
    /// Until when the lanes are ours, by our own clock.
    ours_until: Instant,
    /// Relays were here since this slot was read last, or a reading that mends that has not ended.
    stale: bool,
}

/// What a durable checkpoint says: everything before the place is published; whether the outbox was read whole.
type Confirmed = (u64, bool);

impl Behind {
    /// Takes the lanes. `None` where the table is none of Headwater's own, or the server is read only; an error
    /// of kind `Busy` while relays empty it.
    pub async fn take(url: &ConnectOptions, table: &str, slot: &str, keep: Keep) -> Result<Option<Self>> {
        let names = Names::new(table);
        let mut connection = Connection::connect(url, Mode::Sql).await?;
        let lease = quote_literal(&names.lease());
        let there = format!("SELECT to_regclass({lease}) IS NOT NULL, pg_is_in_recovery()");
        let there = connection.query(&there).await?;
        if !there.first().is_some_and(|row| row.is_true(0)) {
            return Ok(None);
        }
        if there.first().is_some_and(|row| row.is_true(1)) {
            tracing::warn!(
                table,
                "a standby cannot be written to: rows of the outbox are not settled, and relays not kept away"
            );
            return Ok(None);
        }
        let prefix = format!("log:{slot}:");
        let owner = format!("{prefix}{:08x}", rand::random::<u32>());
        let mut behind = Self {
            url: url.clone(),
            table: format!("{}.{}", names.schema, names.name),
            names,
            prefix,
            owner,
            keep,
            connection,
            ours_until: Instant::now() + keep.lease,
            stale: false,
        };
        behind.stale = behind.lanes().await?;
        Ok(Some(behind))
    }

    /// Whether rows may be missing in what the slot still has.
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// `schema.name`.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Takes all lanes, or none; says whether another had one of them since.
    async fn lanes(&mut self) -> Result<bool> {
        let (lease, owner) = (self.names.lease(), quote_literal(&self.owner));
        let reading = quote_literal(&self.reading());
        let (until, prefix) = (self.until(), quote_literal(&self.prefix));
        // One simple query is one transaction. A lane that nobody ever had is no reason to read anything again.
        let taken = format!(
            "WITH lanes AS (SELECT lane, relay, epoch, until FROM {lease} ORDER BY lane FOR UPDATE), \
             busy AS (SELECT lane, relay FROM lanes WHERE until > clock_timestamp() AND NOT starts_with(relay, {prefix})), \
             stale AS (SELECT bool_or(epoch > 0 AND (relay IS NULL OR NOT starts_with(relay, {prefix}) OR relay LIKE '%{READING}')) AS so FROM lanes), \
             took AS (UPDATE {lease} AS lease SET epoch = lease.epoch + 1, until = {until}, \
                 relay = CASE WHEN stale.so THEN {reading} ELSE {owner} END \
                 FROM lanes, stale WHERE lease.lane = lanes.lane AND NOT EXISTS (SELECT FROM busy)) \
             SELECT (SELECT string_agg(DISTINCT relay, ', ') FROM busy), (SELECT so FROM stale)"
        );
        let rows = self.connection.query(&taken).await.map_err(|error| self.explained(error))?;
        let row = rows
            .first()
            .ok_or_else(|| Error::new(Kind::Decode, "taking the lanes of an outbox says nothing"))?;
        match row.get(0) {
            None => Ok(row.is_true(1)),
            Some(busy) => Err(Error::new(Kind::Busy, format!("{} is being emptied by {busy}", self.table)).hint(
                "an outbox is emptied by relays or from the log: stop the one, and the other goes on by itself; \
                 `relay` of the source says which",
            )),
        }
    }

    /// Settles rows, keeps the lanes, and cleans, until `confirmed` is dropped; then gives the lanes back. What
    /// makes the source end is said by `out`.
    async fn run(
        mut self,
        mut confirmed: watch::Receiver<Confirmed>,
        ours: watch::Sender<Instant>,
        out: mpsc::WeakSender<Result<Ready>>,
    ) {
        let store = PostgresOutboxStore::new(&self.url, &self.table);
        let mut seen = Seen::default();
        let (mut renew, mut clean) = (Instant::now(), Instant::now());
        loop {
            let known = *confirmed.borrow_and_update();
            let worked = self.once(&mut seen, &mut renew, known).await;
            ours.send_replace(self.ours_until);
            if let Err(error) = worked {
                if let Some(out) = out.upgrade() {
                    let _ = out.send(Err(error)).await;
                }
                return;
            }
            if Instant::now() >= clean {
                clean = Instant::now() + CLEAN;
                match store.clean(self.keep.retention).await {
                    // More may be left.
                    Ok(some) if some > 0 => clean = Instant::now(),
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(table = self.table, %error, "published rows of the outbox stay for now")
                    }
                }
            }
            let waits = seen.ids.is_empty() || seen.end > confirmed.borrow().0;
            if waits {
                let ended = tokio::select! {
                    changed = confirmed.changed(), if !seen.ids.is_empty() => changed.is_err(),
                    () = sleep(LOOK) => confirmed.has_changed().is_err(),
                };
                if ended {
                    let known = *confirmed.borrow();
                    return self.leave(&mut seen, known).await;
                }
            }
        }
    }

    async fn once(&mut self, seen: &mut Seen, renew: &mut Instant, (place, whole): Confirmed) -> Result<()> {
        if Instant::now() >= *renew {
            *renew = Instant::now() + self.keep.lease / 4;
            self.renew(whole).await?;
        }
        if !whole {
            return Ok(());
        }
        if !seen.ids.is_empty() && seen.end <= place {
            self.settle(seen).await?;
        }
        if seen.ids.is_empty() {
            self.look(seen).await?;
        }
        Ok(())
    }

    /// Keeps the lanes; what mends a gap has ended once the outbox was read whole.
    pub async fn renew(&mut self, whole: bool) -> Result<()> {
        let asked = Instant::now();
        let (owner, reading) = (quote_literal(&self.owner), quote_literal(&self.reading()));
        let now = if whole { owner.clone() } else { "relay".to_owned() };
        let (lease, until) = (self.names.lease(), self.until());
        let sql = format!(
            "UPDATE {lease} SET until = {until}, relay = {now} WHERE relay IN ({owner}, {reading}) RETURNING lane"
        );
        let held = self.query(&sql).await?;
        if held.len() == usize::from(headwater_core::ports::LANES) {
            self.ours_until = asked + self.keep.lease;
            return Ok(());
        }
        Err(Error::new(Kind::Busy, format!("others have taken over {}", self.table)))
    }

    /// Looks for rows that are not settled, then for the end of the log.
    async fn look(&mut self, seen: &mut Seen) -> Result<()> {
        let outbox = self.names.outbox();
        let of = |states: &str| format!("(SELECT id FROM {outbox} WHERE state {states} LIMIT {TOGETHER})");
        let some = [of("= 'new'"), of("= 'waiting'"), of("IN ('retrying', 'parked')")].join(" UNION ALL ");
        let rows = self.query(&format!("{some} LIMIT {TOGETHER}")).await?;
        if rows.is_empty() {
            return Ok(());
        }
        let end = self.query("SELECT pg_current_wal_insert_lsn()").await?;
        let end = end.first().ok_or_else(|| Error::new(Kind::Decode, "the log has no end"))?;
        seen.end = lsn::parse(end.text(0)?)?;
        seen.ids = rows.iter().map(|row| row.text(0).map(str::to_owned)).collect::<Result<_>>()?;
        Ok(())
    }

    async fn settle(&mut self, seen: &mut Seen) -> Result<()> {
        let ids = quote_literal(&format!("{{{}}}", seen.ids.join(",")));
        let (outbox, lease, owner) = (self.names.outbox(), self.names.lease(), quote_literal(&self.owner));
        let sql = format!(
            "UPDATE {outbox} SET state = 'published', settled_at = clock_timestamp(), error = NULL, next_try = NULL \
             WHERE id = ANY({ids}::uuid[]) AND state <> 'published' AND state <> 'dropped' \
             AND EXISTS (SELECT FROM {lease} WHERE relay = {owner} FOR SHARE)"
        );
        self.query(&sql).await?;
        seen.ids.clear();
        Ok(())
    }

    /// What was seen and is durable is settled; the lanes are free at once.
    async fn leave(mut self, seen: &mut Seen, (place, whole): Confirmed) {
        if whole && !seen.ids.is_empty() && seen.end <= place {
            self.settle(seen).await.ok();
        }
        let (owner, reading) = (quote_literal(&self.owner), quote_literal(&self.reading()));
        let lease = self.names.lease();
        let free = format!("UPDATE {lease} SET until = '-infinity' WHERE relay IN ({owner}, {reading})");
        if let Err(error) = self.query(&free).await {
            tracing::warn!(table = self.table, %error, "the lanes of the outbox stay taken until their lease ends");
        }
    }

    /// By a connection that is made again when it was lost.
    async fn query(&mut self, sql: &str) -> Result<Vec<QueryRow>> {
        match self.connection.query(sql).await {
            Err(error) if PgError::code_of(&error).is_none() => {
                self.connection = Connection::connect(&self.url, Mode::Sql).await?;
                self.connection.query(sql).await
            }
            answered => answered,
        }
        .map_err(|error| self.explained(error))
    }

    fn explained(&self, error: Error) -> Error {
        if PgError::code_of(&error) != Some("42501") {
            return error;
        }
        let (outbox, lease) = (self.names.outbox(), self.names.lease());
        let hint = format!(
            "its rows are settled behind what is published: as the owner, GRANT SELECT, UPDATE, DELETE ON {outbox}, {lease} TO the user"
        );
        Error::new(Kind::Refused, format!("keeping the outbox {}", self.table)).because(error).hint(hint)
    }

    /// Who holds the lanes while rows that relays left are read.
    fn reading(&self) -> String {
        format!("{}{READING}", self.owner)
    }

    fn until(&self) -> String {
        format!("clock_timestamp() + {} * interval '1 millisecond'", millis(self.keep.lease))
    }
}

/// Rows that were not settled when they were seen.
#[derive(Default)]
struct Seen {
    ids: Vec<String>,
    /// The end of the log afterwards.
    end: u64,
}

/// The task that settles rows of an open source's outbox.
pub struct Settling {
    table: String,
    confirmed: watch::Sender<Confirmed>,
    ours: watch::Receiver<Instant>,
    task: JoinHandle<()>,
}

impl Settling {
    /// Starts it; `state` is what the source begins with.
    pub fn start(behind: Behind, state: &State, out: mpsc::WeakSender<Result<Ready>>) -> Self {
        let table = behind.table.clone();
        let (confirmed, told) = watch::channel(Self::said(state, &table));
        let (until, ours) = watch::channel(behind.ours_until);
        Self { table, confirmed, ours, task: tokio::spawn(behind.run(told, until, out)) }
    }

    /// An error of kind `Busy` once the lanes may be another's: a process that stood still does not go on with what
    /// it had.
    pub fn ours(&self) -> Result<()> {
        if Instant::now() < *self.ours.borrow() {
            return Ok(());
        }
        Err(Error::new(Kind::Busy, format!("the lanes of {} were not renewed in time", self.table)))
    }

    /// A checkpoint with this state is durable.
    pub fn confirm(&self, state: &State) {
        self.confirmed.send_replace(Self::said(state, &self.table));
    }

    /// Settles what may be, and gives the lanes back.
    pub async fn end(self) {
        let Self { confirmed, task, .. } = self;
        drop(confirmed);
        task.await.ok();
    }

    /// Ends it at once: the lanes stay taken until their lease ends, or this slot's next run takes them.
    pub fn abort(&self) {
        self.task.abort();
    }

    fn said(state: &State, table: &str) -> Confirmed {
        (state.confirmed, state.snapshots.get(table).is_some_and(|oid| *oid != 0))
    }
}
