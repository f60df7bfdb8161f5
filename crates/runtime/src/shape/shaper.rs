//! Shapes batches: a function of the changes and the config, with a memory of the tables it met.

use std::sync::Arc;

use headwater_core::ports::{HoldsBack, Parked};
use headwater_core::{Batch, Change, Event, EventId, Kind, Op, Table};

use super::outbox::OutboxPlan;
use super::output::Output;
use super::plan::Plan;
use super::routes::{Named, Routes, StreamRoute};
use super::rows::RowShaper;
use super::seen::retyped;
use super::{Shaped, Trouble};
use crate::park;

/// How many shapes of tables are remembered.
const TABLES: usize = 256;

/// Shapes the changes of one source.
pub struct Shaper {
    routes: Arc<Routes>,
    tables: Vec<Uses>,
    /// The table of the change before: most often also of the next.
    last: usize,
    named: Named,
    words: Words,
}

/// What is done with the rows of one shape of a table.
struct Uses {
    table: Arc<Table>,
    streams: Vec<(Arc<str>, Result<Plan, String>)>,
    outboxes: Vec<Result<OutboxPlan, (Arc<str>, String)>>,
}

/// The ops as event types, shared.
pub struct Words([Arc<str>; 5]);

impl Default for Words {
    fn default() -> Self {
        Self([Op::Read, Op::Create, Op::Update, Op::Delete, Op::Truncate].map(|op| op.as_str().into()))
    }
}

impl Words {
    /// The event type of an op.
    pub fn of(&self, op: Op) -> Arc<str> {
        let [read, create, update, delete, truncate] = &self.0;
        Arc::clone(match op {
            Op::Read => read,
            Op::Create => create,
            Op::Update => update,
            Op::Delete => delete,
            Op::Truncate => truncate,
        })
    }
}

impl Shaper {
    /// One that has met no table yet.
    pub fn new(routes: Arc<Routes>) -> Self {
        Self { routes, tables: Vec::new(), last: 0, named: Named::default(), words: Words::default() }
    }

    /// Whether a stream can still get changes of this source.
    pub fn knows(&self, stream: &str) -> bool {
        self.routes.streams.iter().any(|route| &*route.name == stream) || !self.routes.outboxes.is_empty()
    }

    /// Shapes a batch.
    pub fn shape(&mut self, batch: Batch) -> Shaped {
        let mut out = Output::default();
        out.shaped.events.reserve(batch.changes.len());
        out.shaped.origins.reserve(batch.changes.len());
        let captured_at = crate::clock::now();
        for (at, change) in batch.changes.iter().enumerate() {
            self.change(change, at as u32, captured_at, &mut out);
        }
        let mut shaped = out.finish();
        shaped.bytes = batch.changes.iter().map(Change::size).sum::<usize>();
        shaped.bytes += shaped.events.iter().map(Event::size).sum::<usize>();
        shaped.reads = 1;
        shaped.changes = batch.changes;
        shaped.checkpoint = batch.checkpoint;
        shaped
    }

    fn change(&mut self, change: &Change, at: u32, captured_at: i64, out: &mut Output) {
        let index = self.find(&change.table);
        let Some(uses) = self.tables.get_mut(index) else { return };
        for (stream, plan) in &mut uses.streams {
            match plan {
                Ok(plan) => RowShaper { plan, words: &self.words, change, at, captured_at, out }.shape(),
                Err(reason) => out.shaped.troubles.push(untaken(change, at, stream, reason)),
            }
        }
        if !matches!(change.op, Op::Create | Op::Read) {
            return;
        }
        for outbox in &mut uses.outboxes {
            match outbox {
                Ok(plan) => plan.shape(change, at, captured_at, &self.routes, &mut self.named, out),
                Err((stream, reason)) => out.shaped.troubles.push(untaken(change, at, stream, reason)),
            }
        }
    }

    /// The place of what is done with a table's rows; compiled when its shape is new.
    fn find(&mut self, table: &Arc<Table>) -> usize {
        if self.tables.get(self.last).is_some_and(|uses| Arc::ptr_eq(&uses.table, table)) {
            return self.last;
        }
        let same = |uses: &Uses| Arc::ptr_eq(&uses.table, table);
        let found = self.tables.iter().position(same).or_else(|| {
            // The same shape under another pointer: a connector read its catalog again.
            let at = self.tables.iter().position(|uses| uses.table == *table)?;
            self.tables.get_mut(at)?.table = Arc::clone(table);
            Some(at)
        });
        self.last = found.unwrap_or_else(|| {
            if self.tables.len() >= TABLES {
                self.tables.remove(0);
            }
            self.tables.push(compile(&self.routes, table));
            self.tables.len() - 1
        });
        self.last
    }

    /// Shapes a parked change again, for what it was parked for. An error says why it still cannot go.
    pub fn reshape(&mut self, record: &Parked) -> Result<Shaped, String> {
        let change = park::decode(&record.change).map_err(|error| error.to_string())?;
        let mut shaped = self.shape(Batch { changes: vec![change], checkpoint: None });
        shaped.keep(record);
        let stops = |trouble: &&Trouble| {
            let again = trouble.holds == HoldsBack::Stream && trouble.stream == record.stream;
            record.holds != HoldsBack::Stream || again
        };
        if let Some(trouble) = shaped.troubles.iter().find(stops) {
            return Err(trouble.reason.clone());
        }
        if shaped.events.is_empty()
            && shaped.troubles.is_empty()
            && let Some(change) = shaped.changes.first()
            && !self.left_out(record, change)
        {
            return Err(nothing_comes_of(record, change));
        }
        Ok(shaped)
    }

    /// Whether a parked change would be something of its stream but for the stream's `where`.
    fn left_out(&mut self, record: &Parked, change: &Change) -> bool {
        let index = self.find(&change.table);
        let Some(uses) = self.tables.get_mut(index) else { return false };
        let plan = uses.streams.iter_mut().find(|(stream, _)| *stream == record.stream);
        let Some((_, Ok(plan))) = plan else { return false };
        let Some(condition) = plan.condition.take() else { return false };
        let mut out = Output::default();
        RowShaper { plan, words: &self.words, change, at: 0, captured_at: 0, out: &mut out }.shape();
        plan.condition = Some(condition);
        let mut shaped = out.finish();
        shaped.keep(record);
        !shaped.events.is_empty() || !shaped.troubles.is_empty()
    }
}

/// Why a parked change cannot go when there is nothing that could: the config is another.
fn nothing_comes_of(record: &Parked, change: &Change) -> String {
    let table = change.table.full_name();
    let key = match record.holds {
        HoldsBack::Stream => "",
        HoldsBack::Key(_) | HoldsBack::Nothing => " with the key that it had",
    };
    format!(
        "by the config as it is now, nothing of stream {}{key} comes of this change of {table}: bring back what \
         it said when the change was parked (the stream, its `from`, `key`, `order_key` and `format`; of an \
         outbox row `outbox`), and start Headwater again",
        record.stream
    )
}

fn compile(routes: &Routes, table: &Arc<Table>) -> Uses {
    let feeds = |stream: &&Arc<StreamRoute>| stream.tables.iter().any(|named| named.matches(table));
    if let Some(before) = routes.seen.before(table) {
        routes.streams.iter().filter(feeds).for_each(|route| warn_of_types(route, &before, table));
    }
    let streams = routes.streams.iter().filter(feeds).map(|route| {
        let plan = Plan::new(route, table).map_err(|error| {
            if error.kind() != Kind::Contract {
                tracing::error!(stream = %route.name, table = table.full_name(), %error, "cannot shape");
            }
            error.to_string()
        });
        (Arc::clone(&route.name), plan)
    });
    let outboxes = routes.outboxes.iter().filter(|outbox| outbox.table.matches(table)).map(|outbox| {
        // Without the table's columns no row says which stream it is for: the outbox is held as one.
        OutboxPlan::new(outbox, table).map_err(|error| (outbox.held_as().into(), error.to_string()))
    });
    Uses { table: Arc::clone(table), streams: streams.collect(), outboxes: outboxes.collect() }
}

/// A changed type breaks no contract, but consumers see other values.
fn warn_of_types(route: &StreamRoute, before: &Table, table: &Table) {
    let contract = route.contract(table);
    for (old, new) in retyped(before, table) {
        if contract.columns.iter().any(|(column, _)| *column == new.name) {
            tracing::warn!(stream = %route.name, table = table.full_name(), column = new.name, old = ?old.ty,
                new = ?new.ty, "a column changed its type: its values are written as the new type's from now on");
        }
    }
}

/// A change of a table that its stream cannot take at all.
fn untaken(change: &Change, at: u32, stream: &Arc<str>, reason: &str) -> Trouble {
    Trouble {
        change: at,
        stream: Arc::clone(stream),
        id: trouble_id(change, stream, &HoldsBack::Stream),
        holds: HoldsBack::Stream,
        outbox: None,
        reason: reason.to_owned(),
    }
}

/// The id of what a change would be if its stream could take it.
pub fn trouble_id(change: &Change, stream: &str, holds: &HoldsBack) -> EventId {
    let (transaction, place) = (&change.transaction, change.position.bytes());
    let (time, system) = (transaction.committed_at, transaction.origin.system_id.as_bytes());
    let whole = EventId::derive(time, &[b"whole", system, stream.as_bytes(), place]);
    match holds {
        HoldsBack::Stream => whole,
        HoldsBack::Key(key) => EventId::derive(time, &[whole.as_bytes(), key]),
        HoldsBack::Nothing => EventId::derive(time, &[whole.as_bytes(), b""]),
    }
}
