//! Which streams a source's changes go to.

use std::collections::HashMap;
use std::sync::Arc;

use headwater_core::{Error, Header, Kind, Result, StreamSpec, Table, check_stream_name};
use headwater_wire::format::{Contract, OutboxColumns};

use super::condition::Condition;
use super::outbox::OutboxPlan;
use super::plan::Plan;
use super::seen::Seen;
use crate::config::{Columns, StreamConfig, TableRef};

/// Where the changes of one source go.
#[derive(Default)]
pub struct Routes {
    /// The declared streams that its tables feed, and those that its outbox may.
    pub streams: Vec<Arc<StreamRoute>>,
    /// Its outbox tables.
    pub outboxes: Vec<OutboxTable>,
    /// What a stream is like that an outbox row names and the config does not.
    pub undeclared: Arc<StreamConfig>,
    /// What its tables looked like.
    pub seen: Seen,
}

/// A declared stream.
pub struct StreamRoute {
    /// Its name.
    pub name: Arc<str>,
    /// What the config says.
    pub config: StreamConfig,
    /// Its condition.
    pub condition: Option<Arc<Condition>>,
    /// The tables of this source that feed it.
    pub tables: Vec<TableRef>,
}

/// A table whose rows are events.
pub struct OutboxTable {
    /// The table.
    pub table: TableRef,
    /// Its columns.
    pub columns: OutboxColumns,
    /// The stream's name, with `{aggregatetype}` in it.
    pub stream: String,
}

impl Routes {
    /// Why streams cannot be fed by the tables that they name, when these are all the tables of the source.
    pub fn misfits(&self, source: &str, tables: &[Arc<Table>]) -> Vec<Error> {
        let mut errors = Vec::new();
        for stream in &self.streams {
            for named in &stream.tables {
                let mut found = tables.iter().filter(|table| named.matches(table)).peekable();
                if found.peek().is_none() {
                    errors.push(no_table(stream, named, source, tables));
                }
                errors.extend(found.filter_map(|table| Plan::new(stream, table).err()));
            }
        }
        for outbox in &self.outboxes {
            let found = tables.iter().filter(|table| outbox.table.matches(table));
            errors.extend(found.filter_map(|table| OutboxPlan::new(outbox, table).err()));
        }
        errors
    }
}

fn no_table(stream: &StreamRoute, named: &TableRef, source: &str, tables: &[Arc<Table>]) -> Error {
    let known: Vec<String> = tables.iter().map(|table| format!("{source}.{}", table.full_name())).collect();
    let what = format!("stream {} is fed by {named}, which source {source} does not capture", stream.name);
    let schema = if tables.iter().any(|table| table.schema == "main") { "main" } else { "public" };
    let meant = TableRef { schema: Some(named.schema.clone().unwrap_or(schema.into())), ..named.clone() };
    Error::new(Kind::Contract, what)
        .hint(crate::names::hint(&meant.to_string(), known.iter().map(String::as_str)))
}

impl StreamRoute {
    /// A stream as one source sees it. Errors are of kind `Config`.
    pub fn new(name: &str, config: &StreamConfig, source: &str) -> Result<Self> {
        let condition = config.condition.as_deref().map(Condition::parse).transpose()?.map(Arc::new);
        let tables = config.from.iter().filter(|table| table.source == source).cloned().collect();
        Ok(Self { name: name.into(), config: config.clone(), condition, tables })
    }

    /// What the stream exposes of a table.
    pub fn contract(&self, table: &Table) -> Contract {
        let columns = match &self.config.columns {
            Some(Columns::Named(named)) => {
                let mut columns: Vec<_> = named.iter().map(|(to, from)| (from.clone(), to.clone())).collect();
                columns.sort_by_key(|(from, _)| table.column(from));
                columns
            }
            _ => table.columns.iter().map(|column| (column.name.clone(), column.name.clone())).collect(),
        };
        let key = self.config.key.clone().unwrap_or_else(|| default_key(table));
        let key_prefix = (self.config.from.len() > 1).then(|| table.name.clone());
        Contract { stream: Arc::clone(&self.name), version: self.config.version, columns, key, key_prefix }
    }

    /// Whether a tombstone follows a delete.
    pub fn tombstones(&self) -> bool {
        tombstones(&self.config)
    }
}

/// The table's key; of a table without one the whole row, if the source sends the whole row before.
fn default_key(table: &Table) -> Vec<String> {
    let named = |at: usize| table.columns.get(at).map(|column| column.name.clone());
    let key: Vec<String> = table.key_columns().filter_map(named).collect();
    match (key.is_empty(), table.identity) {
        (true, headwater_core::Identity::Full) => {
            table.columns.iter().map(|column| column.name.clone()).collect()
        }
        _ => key,
    }
}

/// The header that says under which version of its contract an event was made, whatever its format.
pub fn version_header(version: u32) -> Header {
    Header { name: "contract-version".into(), value: Some(version.to_string().into()) }
}

fn tombstones(config: &StreamConfig) -> bool {
    config.tombstones.unwrap_or(config.retention.compact || config.format.tombstones_on_delete())
}

/// The streams that outbox rows named.
#[derive(Default)]
pub struct Named {
    streams: HashMap<String, (Arc<str>, Arc<StreamConfig>)>,
}

impl Named {
    /// How many streams rows may make: more of them are a mistake in what is written to the outbox.
    const MOST: usize = 1000;

    /// The stream of a name: declared, or made with the defaults, in which case `new` gets its spec.
    /// An error says why there can be no such stream.
    pub fn get(
        &mut self,
        name: &str,
        routes: &Routes,
        new: &mut Vec<StreamSpec>,
    ) -> Result<(Arc<str>, Arc<StreamConfig>), String> {
        if let Some(known) = self.streams.get(name) {
            return Ok(known.clone());
        }
        let declared = routes.streams.iter().find(|stream| &*stream.name == name);
        let entry = match declared {
            Some(stream) => (Arc::clone(&stream.name), Arc::new(stream.config.clone())),
            None if self.streams.len() >= Self::MOST => {
                return Err(format!("the outbox has named {} streams already; no more are made", Self::MOST));
            }
            None => {
                check_stream_name(name).map_err(|error| error.to_string())?;
                new.push(routes.undeclared.spec(name));
                (name.into(), Arc::clone(&routes.undeclared))
            }
        };
        self.streams.insert(name.to_owned(), entry.clone());
        Ok(entry)
    }
}
