//! How the rows of one shape of a table become events of one stream: compiled once, used for each.

use std::sync::Arc;

use headwater_core::{
    CellKind, Change, Error, Header, Identity, Kind, Op, Result, Row, RowBuilder, Table, Value,
};
use headwater_wire::format::{Encoder, KeyWriter};
use smallvec::SmallVec;

use super::condition::{Bound, Decision};
use super::routes::{StreamRoute, version_header};

/// The plan of one stream for one shape of a table.
pub struct Plan {
    /// The stream.
    pub stream: Arc<str>,
    /// How many partitions it has.
    pub partitions: u32,
    /// Whether a tombstone follows a delete.
    pub tombstones: bool,
    /// Writes its events.
    pub encoder: Box<dyn Encoder>,
    /// The version of its contract.
    pub version: Header,
    /// Writes its order keys, where those are not its keys.
    pub order_key: Option<KeyWriter>,
    /// The columns that decide key and order, by place.
    identity: Vec<usize>,
    /// The columns of the table's own key, by place; the stream's key may be another.
    own_key: Vec<usize>,
    /// Whether events have a key.
    keyed: bool,
    /// Which changes are events.
    pub condition: Option<Bound>,
}

impl Plan {
    /// Compiles it. An error of kind `Contract` when the table does not fit the stream.
    pub fn new(route: &StreamRoute, table: &Arc<Table>) -> Result<Self> {
        let contract = route.contract(table);
        let order_columns = route.config.order_key.as_deref();
        let exposed = contract.columns.iter().map(|(column, _)| column);
        let named = exposed.chain(&contract.key).chain(order_columns.into_iter().flatten());
        named.into_iter().try_for_each(|column| check_column(route, table, column))?;
        let encoder = route.config.format.encoder(&contract, table)?;
        let order_key = order_columns.map(|columns| KeyWriter::new(&contract, columns, table)).transpose()?;
        let names = contract.key.iter().chain(order_columns.into_iter().flatten());
        let mut identity: Vec<usize> = names.filter_map(|name| table.column(name)).collect();
        identity.sort_unstable();
        identity.dedup();
        check_identity(route, table, &identity)?;
        Ok(Self {
            stream: Arc::clone(&route.name),
            partitions: route.config.partitions,
            tombstones: route.tombstones(),
            encoder,
            version: version_header(route.config.version),
            order_key,
            keyed: !identity.is_empty(),
            own_key: table.key_columns().collect(),
            identity,
            condition: route.condition.as_ref().map(|condition| condition.bind(table)).transpose()?,
        })
    }

    /// What the stream makes of a change of a row.
    pub fn decide(&self, change: &Change) -> Decision {
        match &self.condition {
            Some(condition) => condition.decide(change),
            None => Decision::Pass(change.op),
        }
    }

    /// Whether an update changed the key, or the order key.
    pub fn moves(&self, before: &Row, after: &Row) -> bool {
        let known = |value| !matches!(value, Value::Absent | Value::Unchanged);
        self.identity.iter().any(|at| {
            let (old, new) = (before.value(*at), after.value(*at));
            old != new && known(old) && known(new)
        })
    }

    /// Appends what tells a row from all others of its table: its own key's values. False when there is
    /// no such thing: the table has no key, or (in SQLite) a NULL in it.
    pub fn own_key<'a>(&self, row: &'a Row, parts: &mut SmallVec<[&'a [u8]; 16]>) -> bool {
        for at in &self.own_key {
            let Value::Bytes(kind, bytes) = row.value(*at) else { return false };
            // Values of a dynamic column differ by their type as well.
            let kind: &[u8] = match kind {
                CellKind::Integer => b"integer",
                CellKind::Real => b"real",
                CellKind::String => b"string",
                CellKind::Blob => b"blob",
                _ => b"",
            };
            parts.extend([kind, bytes]);
        }
        !self.own_key.is_empty()
    }

    /// Why a change cannot be told from others of its table, when it cannot.
    pub fn unidentified(&self, change: &Change) -> Option<String> {
        let needs_key = matches!(change.op, Op::Update | Op::Delete);
        (needs_key && !self.keyed).then(|| {
            let table = change.table.full_name();
            format!(
                "table {table} has no key, so its {} cannot be told from others: give it a primary key (or \
                 ALTER TABLE {table} REPLICA IDENTITY FULL), or name `key` columns for the stream",
                change.op.as_str()
            )
        })
    }
}

/// A column that a stream names must be there.
fn check_column(route: &StreamRoute, table: &Table, column: &str) -> Result<()> {
    if table.column(column).is_some() {
        return Ok(());
    }
    let (stream, name) = (&route.name, table.full_name());
    let near = crate::names::nearest(column, table.columns.iter().map(|column| column.name.as_str()));
    let near = near.map(|near| format!("did you mean \"{near}\"? otherwise ")).unwrap_or_default();
    let doing = format!("stream {stream}: table {name} has no column \"{column}\"");
    Err(Error::new(Kind::Contract, doing).hint(format!(
        "{near}bring the column back, or change the contract of [stream.{stream}] and raise its version"
    )))
}

/// Key and order key must be known of a row that is updated or deleted.
fn check_identity(route: &StreamRoute, table: &Table, identity: &[usize]) -> Result<()> {
    if table.identity != Identity::Key {
        return Ok(());
    }
    let unsent = |at: &&usize| table.columns.get(**at).is_some_and(|column| !column.key);
    let Some(column) = identity.iter().find(unsent).and_then(|at| table.columns.get(*at)) else {
        return Ok(());
    };
    let (stream, name, column) = (&route.name, table.full_name(), &column.name);
    let doing = format!("stream {stream}: deletes in table {name} do not say which {column} the row had");
    Err(Error::new(Kind::Contract, doing).hint(format!(
        "run ALTER TABLE {name} REPLICA IDENTITY FULL, or take {column} out of the stream's key and order_key"
    )))
}

/// The row with the values that an update did not touch, where the row before has them.
pub fn complete(before: &Row, after: &Row) -> Option<Row> {
    if after.values().all(|value| value != Value::Unchanged) {
        return None;
    }
    let mut filled = false;
    let mut row = RowBuilder::with_capacity(after.len());
    for (at, value) in after.values().enumerate() {
        let value = match (value, before.value(at)) {
            (Value::Unchanged, old @ (Value::Null | Value::Bytes(..))) => {
                filled = true;
                old
            }
            (value, _) => value,
        };
        match value {
            Value::Null => row.push(CellKind::Null, &[]),
            Value::Absent => row.push(CellKind::Absent, &[]),
            Value::Unchanged => row.push(CellKind::Unchanged, &[]),
            Value::Bytes(kind, bytes) => row.push(kind, bytes),
        }
    }
    filled.then(|| row.build())
}
