//! What the tests share: a table of orders, its changes, and a runtime on ports in memory.

use std::sync::Arc;
use std::time::Duration;

use headwater_core::{
    CellKind, Change, Column, ColumnType, Event, Identity, Op, Origin, Position, Result, Row, RowBuilder,
    Table, Transaction,
};
use headwater_runtime::{Builder, Runtime, Settings, StreamConfig};
use headwater_testkit::faults::{Faults, FaultyBus, FaultyConnector, FaultyParkedStore};
use headwater_testkit::memory::{MemoryBus, MemoryParkedStore, MemorySource};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// `public.orders (id bigint key, customer bigint, state text, note text)`.
pub fn orders(identity: Identity) -> Arc<Table> {
    table("orders", &["id", "customer", "state", "note"], identity)
}

/// A table of these columns, the first of them its key and the first two numbers.
pub fn table(name: &str, columns: &[&str], identity: Identity) -> Arc<Table> {
    let column = |(at, name): (usize, &&str)| Column {
        name: (*name).to_owned(),
        ty: if at < 2 { ColumnType::Int64 } else { ColumnType::Text },
        key: at == 0,
    };
    let columns = columns.iter().enumerate().map(column).collect();
    Arc::new(Table { schema: "public".into(), name: name.into(), columns, identity })
}

/// A row of texts: `~` is unchanged, `?` absent, `NULL` null, `!` not UTF-8.
pub fn row(values: &[&str]) -> Row {
    let mut row = RowBuilder::default();
    for value in values {
        match *value {
            "~" => row.push(CellKind::Unchanged, b""),
            "?" => row.push(CellKind::Absent, b""),
            "NULL" => row.push(CellKind::Null, b""),
            "!" => row.push(CellKind::Text, b"\xff"),
            text => row.push(CellKind::Text, text.as_bytes()),
        }
    }
    row.build()
}

/// A change at place `at` of the source.
pub fn change(
    at: u64,
    op: Op,
    table: &Arc<Table>,
    before: Option<&[&str]>,
    after: Option<&[&str]>,
) -> Change {
    let origin = Origin {
        source: "shop".into(),
        connector: "memory".into(),
        database: "shop".into(),
        system_id: "7".into(),
    };
    let transaction = Transaction {
        origin: Arc::new(origin),
        id: at.to_string(),
        committed_at: 1_700_000_000_000_000 + at as i64,
        log_position: at.to_string(),
    };
    Change {
        op,
        table: Arc::clone(table),
        before: before.map(row),
        after: after.map(row),
        position: Position::of(1, [at]),
        transaction: Arc::new(transaction),
    }
}

/// An insert into orders at place `at`.
pub fn insert(at: u64, id: u64, note: &str) -> Change {
    let (table, id) = (orders(Identity::Key), id.to_string());
    change(at, Op::Create, &table, None, Some(&[&id, "1", "open", note]))
}

/// A stream's config, from TOML.
pub fn stream(toml: &str) -> StreamConfig {
    toml::from_str(toml).unwrap()
}

/// The stream of all orders.
pub fn all_orders() -> StreamConfig {
    stream("from = 'shop.public.orders'\ncolumns = '*'\npartitions = 4")
}

/// Ports in memory that outlive the runtimes run on them.
#[derive(Clone)]
pub struct World {
    pub source: MemorySource,
    pub bus: Arc<MemoryBus>,
    pub parked: Arc<MemoryParkedStore>,
    pub faults: Faults,
    pub settings: Settings,
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self {
            source: MemorySource::new("shop", seed, 10),
            bus: Arc::default(),
            parked: Arc::default(),
            faults: Faults::default(),
            settings: Settings::default(),
        }
    }

    pub fn builder(&self) -> Builder {
        let faults = || self.faults.clone();
        let source = FaultyConnector { inner: Arc::new(self.source.clone()), faults: faults() };
        let bus = FaultyBus { inner: self.bus.clone(), faults: faults() };
        let parked = FaultyParkedStore { inner: self.parked.clone(), faults: faults() };
        Runtime::builder()
            .source("shop", Arc::new(source), None)
            .bus(Arc::new(bus))
            .parked(Arc::new(parked))
            .settings(self.settings.clone())
    }

    /// Runs the stream `orders`.
    pub fn run(&self, config: StreamConfig) -> Running {
        Running::start(self.builder().stream("orders", config))
    }

    pub fn count(&self) -> usize {
        self.bus.len()
    }
}

/// A runtime that runs.
pub struct Running {
    pub runtime: Arc<Runtime>,
    pub stop: CancellationToken,
    pub task: JoinHandle<Result<()>>,
}

impl Running {
    pub fn start(builder: Builder) -> Self {
        let (runtime, stop) = (Arc::new(builder.build().unwrap()), CancellationToken::new());
        let (running, stopping) = (Arc::clone(&runtime), stop.clone());
        Self { runtime, stop, task: tokio::spawn(async move { running.run(stopping).await }) }
    }

    /// Stops it gracefully.
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Ends it as `kill -9` does.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// Waits until a condition holds; panics after half a minute.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Key and op (`t` for a tombstone) of each event: `7 create`.
pub fn story(events: &[Event]) -> Vec<String> {
    let one = |event: &Event| {
        let key = event.key.as_ref().map_or("-", |key| std::str::from_utf8(key).unwrap());
        let op = if event.payload.is_some() { &*event.kind } else { "tombstone" };
        format!("{key} {op}")
    };
    events.iter().map(one).collect()
}
