//! One open source: where it stands, and what comes next. Blocks; runs on its own thread.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headwater_core::ports::{SourceState, SourceStatus};
use headwater_core::{Batch, Change, Checkpoint, Error, Kind, Origin, Position, Result};
use rusqlite::Connection;

use super::config::SqliteConfig;
use super::definition;
use super::errors::Sql as _;
use super::install::{bring_in_step, connect};
use super::layout;
use super::outbox::{Held, Keep};
use super::plan::{Note, Plan, Wanted, bare};
use super::reader::Reader;
use super::resume::{replaced, resume};
use super::snapshot::Tables;
use super::state::State;
use super::watch::{Watch, schema_version};
use crate::requests::{Requests, SnapshotRequest};
use crate::settings::SnapshotMode;

/// How often rare things are looked for: requests, and the file itself.
const LOOK: Duration = Duration::from_millis(500);

/// What a look at the database found.
enum View {
    /// What comes next, if anything.
    Read(Option<Batch>),
    /// Nothing was read: the schema changed.
    OutOfStep,
}

/// What a connector gives to each of its sources.
#[derive(Clone)]
pub struct Setup {
    /// The source's name.
    pub name: String,
    /// Its settings.
    pub config: SqliteConfig,
    /// Where requests to it lie.
    pub requests: Option<Requests>,
    /// How an outbox is kept.
    pub keep: Keep,
    /// What it says of itself.
    pub status: Arc<Mutex<SourceStatus>>,
    /// Whether a source was opened before: `snapshot = "always"` asks for one snapshot a start, and
    /// opening anew after a failure is none.
    pub started: Arc<AtomicBool>,
}

/// An open source.
pub struct Capture {
    pub(super) setup: Setup,
    pub(super) conn: Connection,
    watch: Watch,
    /// The lease of the outbox.
    pub(super) held: Option<Held>,
    pub(super) reader: Reader,
    pub(super) state: State,
    epoch: u64,
    /// The place of the last thing handed out: a change's id, and the number of reads behind it.
    pub(super) place: (u64, u64),
    pub(super) tables: Tables,
    /// Whether there may be changes that were not read.
    unread: bool,
    looked: Instant,
}

impl Capture {
    /// Opens the database and finds the place to go on from.
    pub fn open(setup: Setup, from: Option<&Checkpoint>) -> Result<Self> {
        setup.say(|status| status.state = SourceState::Connecting);
        let path = &setup.config.path;
        let mut conn = connect(path)?;
        let watch = Watch::new(path)?;
        let read = from.map_or(0, |from| from.position.numbers()[0]);
        // Before triggers are made anew: what they could not see is not to be skipped.
        let gaps = if layout::installed(&conn)? { definition::gaps(&conn)? } else { BTreeMap::new() };
        let mut held = setup.held(&conn)?;
        let plan = in_step(&setup, &mut conn, read)?;
        if held.is_none() {
            held = setup.held(&conn)?;
        }
        let request = setup.requests.as_ref().map(Requests::read).transpose()?.flatten();
        let resumed = resume(&setup, &conn, from, request.as_ref())?;
        let origin = Arc::new(Origin {
            source: setup.name.clone(),
            connector: "sqlite".into(),
            database: path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            system_id: resumed.state.system_id.clone(),
        });
        let mut capture = Self {
            reader: Reader::new(origin, resumed.epoch),
            tables: Tables::default(),
            watch,
            state: resumed.state,
            epoch: resumed.epoch,
            place: resumed.place,
            unread: true,
            looked: Instant::now(),
            conn,
            held,
            setup,
        };
        capture.skip(&gaps);
        capture.captured(plan)?;
        capture.follow(request)?;
        if capture.setup.config.snapshot == SnapshotMode::Always
            && !capture.setup.started.swap(true, Ordering::Relaxed)
        {
            capture.state.done.clear();
            capture.state.snapshot = None;
        }
        let position = format!("change {}", capture.place.0);
        capture.setup.say(|status| status.position = Some(position));
        capture.show_phase();
        Ok(capture)
    }

    /// What comes next: about `budget` bytes; `None` when there is nothing.
    pub fn next(&mut self, budget: usize) -> Result<Option<Batch>> {
        self.held.as_ref().map_or(Ok(()), Held::check)?;
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            self.watch.same_file()?;
            let request = self.setup.requests.as_ref().map(Requests::read).transpose()?.flatten();
            self.follow(request)?;
        }
        if self.watch.moved(&self.conn)? {
            self.unread = true;
        }
        if !self.unread && !self.reads_tables() {
            return Ok(None);
        }
        match self.in_one_view(|capture| capture.next_in_view(budget))? {
            View::Read(batch) => Ok(batch),
            // What was written since is read when the triggers were seen to: the next time.
            View::OutOfStep => self.keep_in_step().map(|()| None),
        }
    }

    /// Reads as of one moment: whatever is committed meanwhile is not seen before the next time.
    fn in_one_view<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let doing = || "reading the database".to_owned();
        self.conn.execute_batch("BEGIN").sql(doing)?;
        let read = work(self);
        // Some failures end the transaction themselves.
        if !self.conn.is_autocommit() {
            self.conn.execute_batch("ROLLBACK").sql(doing)?;
        }
        read
    }

    /// What comes next in a database that is the one that was read, and whose triggers are in step: a
    /// change that is read here was made by the triggers that its tables need, and a copy that was put
    /// in the file's place is not taken for news.
    fn next_in_view(&mut self, budget: usize) -> Result<View> {
        if schema_version(&self.conn)? != self.state.schema {
            return Ok(View::OutOfStep);
        }
        self.same_database()?;
        if let Some(batch) = self.next_of_snapshot(budget)? {
            return Ok(View::Read(Some(batch)));
        }
        if !self.unread {
            return Ok(View::Read(None));
        }
        let changes = self.changes(u64::MAX, budget)?;
        Ok(View::Read(if changes.is_empty() { None } else { Some(self.batch(changes)?) }))
    }

    /// An error of kind `Unavailable` when the file holds another copy now: opening it again says what
    /// that means.
    fn same_database(&self) -> Result<()> {
        match replaced(&self.conn, &self.state, self.place.0)? {
            None => Ok(()),
            Some(problem) => {
                let path = self.setup.config.path.display();
                let what = format!("{path} was replaced by another copy: {problem}");
                Err(Error::new(Kind::Unavailable, what))
            }
        }
    }

    /// Changes up to the id `until`.
    pub(super) fn changes(&mut self, until: u64, budget: usize) -> Result<Vec<Change>> {
        let read = self.reader.read(&self.conn, self.place.0, until, budget)?;
        if let Some(last) = read.last {
            self.place = (last.id, 0);
            self.state.anchor = Some(last);
        }
        if until == u64::MAX {
            self.unread = read.more;
        }
        Ok(read.changes)
    }

    /// Changes, and where the source stands after them.
    pub(super) fn batch(&self, changes: Vec<Change>) -> Result<Batch> {
        let checkpoint = Checkpoint {
            source: self.setup.name.clone(),
            position: self.position(self.place),
            state: self.state.to_json()?,
        };
        Ok(Batch { changes, checkpoint: Some(checkpoint) })
    }

    pub(super) fn position(&self, (id, read): (u64, u64)) -> Position {
        Position::of(self.epoch, [id, read])
    }

    /// Sees to the triggers: the schema changed.
    fn keep_in_step(&mut self) -> Result<()> {
        // Triggers made anew in an older copy would hide what is missing.
        self.same_database()?;
        match in_step(&self.setup, &mut self.conn, self.place.0) {
            Ok(plan) => self.captured(plan),
            Err(error) if error.kind() == Kind::Unavailable => {
                tracing::warn!(source = self.setup.name, "a table was altered; looking again soon: {error}");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes over what is captured now.
    fn captured(&mut self, plan: Plan) -> Result<()> {
        let moved = self.state.schema != plan.schema;
        self.state.schema = plan.schema;
        let mut gaps = BTreeMap::new();
        for one in &plan.captured {
            gaps.insert(one.shape.name.clone(), definition::gap(&self.conn, &one.shape.name)?);
        }
        self.skip(&gaps);
        self.tables = Tables::new(plan.captured, gaps);
        if moved {
            self.begin_again_if_moved();
        }
        Ok(())
    }

    /// Begins what an operator asked for.
    fn follow(&mut self, request: Option<SnapshotRequest>) -> Result<()> {
        let Some(request) = request.filter(|request| self.state.request.as_ref() != Some(&request.id)) else {
            return Ok(());
        };
        let (source, id) = (self.setup.name.as_str(), request.id);
        let named = |name: &str, table: &str| bare(name).eq_ignore_ascii_case(table);
        for name in request.tables.iter().filter(|name| !self.tables.names().any(|table| named(name, table)))
        {
            tracing::warn!(source, "asked to read \"{name}\" anew, which is not captured: nothing to do");
        }
        let all = request.tables.is_empty();
        let asked = |table: &&String| all || request.tables.iter().any(|name| named(name, table));
        let asked: Vec<String> = self.tables.names().filter(asked).cloned().collect();
        self.state.request = Some(id);
        if asked.is_empty() {
            return Ok(());
        }
        tracing::info!(source, tables = ?asked, "reading tables anew as asked");
        self.state.asked.extend(asked);
        // A name of its own: reads of this snapshot are not those of the last one.
        self.state.snapshot = None;
        self.tables.drop_chunk();
        Ok(())
    }

    fn show_phase(&self) {
        if self.unfinished().is_some() {
            self.show_tables();
        } else {
            self.setup.say(|status| status.state = SourceState::Streaming);
        }
    }
}

impl Setup {
    /// Changes what the source says of itself.
    pub fn say(&self, change: impl FnOnce(&mut SourceStatus)) {
        change(&mut self.status.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    /// Takes the lease of its outbox, where there is one that has leases.
    fn held(&self, conn: &Connection) -> Result<Option<Held>> {
        let Some(outbox) = &self.config.outbox else { return Ok(None) };
        Held::take(conn, &self.name, &outbox.table, self.keep.lease)
    }

    /// What its triggers have to capture; changes up to `read` were read.
    pub fn wanted(&self, read: u64) -> Wanted<'_> {
        Wanted { tables: &self.config.tables, outbox: self.config.outbox.as_ref(), only: true, read }
    }
}

/// Brings the triggers in step, and says so.
fn in_step(setup: &Setup, conn: &mut Connection, read: u64) -> Result<Plan> {
    if !setup.config.install {
        let plan = super::plan::plan(conn, setup.wanted(read))?;
        let news = |note: &&Note| matches!(note, Note::Installed | Note::OutboxMade(_) | Note::New(_));
        if let Some(note) = plan.notes.iter().find(news) {
            let what = match note {
                Note::New(table) => format!("table \"{table}\" has no triggers that capture it"),
                _ => "the database is not set up for capture".into(),
            };
            return Err(Error::new(Kind::Refused, what).hint(how_to_install(&setup.config)));
        }
    }
    let plan = bring_in_step(conn, setup.wanted(read))?;
    for note in &plan.notes {
        match note {
            Note::Missed(_)
            | Note::Unnoticed(_)
            | Note::Changed(..)
            | Note::Dropped(_)
            | Note::Released(_) => {
                tracing::warn!(source = setup.name, "{note}");
            }
            _ => tracing::info!(source = setup.name, "{note}"),
        }
    }
    Ok(plan)
}

/// How what a config asks for gets installed where `install` is false.
pub fn how_to_install(config: &SqliteConfig) -> String {
    let mut command = format!("headwater init {}", shell(&format!("sqlite://{}", config.path.display())));
    let outbox = config.outbox.iter().map(|outbox| outbox.table.clone()).collect::<Vec<_>>();
    // By `--tables` it makes triggers, that of the outbox among them.
    let tables = if config.tables.is_empty() { &outbox } else { &config.tables };
    command += &format!(" --tables {}", shell(&tables.join(",")));
    match &config.outbox {
        Some(outbox) => command += &format!(" --outbox {}", shell(&outbox.table)),
        None => command += " --no-outbox",
    }
    format!("run: {command}; or set install = true")
}

/// A word for a POSIX shell, whatever it holds.
fn shell(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
