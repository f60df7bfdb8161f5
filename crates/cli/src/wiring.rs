//! From a checked config to running parts: the one place that names every adapter.

use std::path::Path;
use std::sync::Arc;

use headwater_cli::config::{BusConfig, Config, SourceConfig};
use headwater_connect::embedded::EmbeddedBus;
use headwater_connect::kafka::KafkaBus;
use headwater_connect::mysql::outbox::MySqlOutboxStore;
use headwater_connect::parked::SqliteParkedStore;
use headwater_connect::postgres::outbox::{Keep, PostgresOutboxStore};
use headwater_connect::postgres::{MESSAGES, PostgresConnector};
use headwater_connect::settings::Outbox;
use headwater_connect::sqlite::SqliteConnector;
use headwater_connect::sqlite::inbox::{DeferredInbox, owners};
use headwater_connect::sqlite::outbox::SqliteOutboxStore;
use headwater_core::ports::{Bus, BusStatus, Connector, Finding, OutboxStore, ParkedStore, Shelf};
use headwater_core::{Error, Kind, Origin, Result};
use headwater_runtime::{Builder, OutboxRoute, Runtime, TableRef};
use headwater_server::push::{Push, PushConfig};
use headwater_wire::format::OutboxColumns;

/// The file in data_dir where pushes remember.
pub const PUSHES: &str = "push.db";

/// The sources of a config, by name, ready to be opened.
pub type Connectors = Vec<(String, Arc<dyn Connector>)>;

/// Makes every source's connector; nothing is opened yet.
pub fn connectors(config: &Config) -> Result<Connectors> {
    let made = |(name, source): (&String, &SourceConfig)| {
        connector(name, source, config).map(|connector| (name.clone(), connector))
    };
    config.sources.iter().filter(|(_, source)| source.is_followed()).map(made).collect()
}

fn connector(name: &str, source: &SourceConfig, whole: &Config) -> Result<Arc<dyn Connector>> {
    let data_dir = &whole.data_dir;
    let keep = Keep { lease: whole.relay.lease, retention: whole.relay.retention };
    Ok(match source {
        SourceConfig::Postgres(config) => {
            let mut config = config.clone();
            config.outbox = config.outbox.filter(|_| !source.is_relayed());
            Arc::new(PostgresConnector::new(name, config, data_dir)?.keep(keep))
        }
        SourceConfig::Sqlite(config) => {
            let mut config = config.clone();
            config.outbox = config.outbox.filter(|_| !source.is_relayed());
            let connector = SqliteConnector::new(name, config)?.keep(keep);
            Arc::new(connector.requests(data_dir))
        }
        SourceConfig::MySql(_) => {
            return Err(Error::new(
                Kind::Config,
                format!("source {name}: tables of MySQL are not captured yet"),
            ));
        }
    })
}

/// Opens the bus for publishing.
pub async fn bus(config: &Config) -> Result<Arc<dyn Bus>> {
    Ok(match &config.bus {
        BusConfig::Embedded(embedded) => {
            Arc::new(EmbeddedBus::open(&config.data_dir, embedded.clone()).await?)
        }
        BusConfig::Kafka(kafka) => Arc::new(KafkaBus::open(kafka.clone()).await?),
    })
}

/// Whether the bus is one that the first `headwater run` has yet to make.
pub fn never_ran(config: &Config) -> bool {
    matches!(config.bus, BusConfig::Embedded(_)) && !config.data_dir.join("bus").exists()
}

/// Opens the bus for reading beside a process that may be publishing.
pub async fn bus_reader(bus: &BusConfig, data_dir: &Path) -> Result<Arc<dyn Bus>> {
    Ok(match bus {
        BusConfig::Embedded(embedded) => {
            Arc::new(EmbeddedBus::open_reader(data_dir, embedded.clone()).await?)
        }
        BusConfig::Kafka(kafka) => Arc::new(KafkaBus::open(kafka.clone()).await?),
    })
}

/// What the bus holds, asked beside a process that may be publishing; and of which streams it refuses to say so.
pub async fn bus_status(config: &Config) -> Result<(BusStatus, Vec<(String, Error)>)> {
    let BusConfig::Kafka(kafka) = &config.bus else {
        let status = bus_reader(&config.bus, &config.data_dir).await?.status().await?;
        return Ok((status, Vec::new()));
    };
    let bus = KafkaBus::open(kafka.clone()).await?;
    let pushed = config.pushes.values().flat_map(|push| &push.streams);
    let mut refused = Vec::new();
    for stream in config.streams.keys().chain(pushed) {
        match bus.know(&stream.as_str().into()).await {
            Err(error) if error.kind() == Kind::Refused => refused.push((stream.clone(), error)),
            // One that was not made yet holds nothing.
            known => _ = known?,
        }
    }
    Ok((bus.status().await?, refused))
}

/// What is missing on the bus for it to keep how far sources have come.
pub async fn bus_check(config: &Config) -> Result<Vec<Finding>> {
    match &config.bus {
        BusConfig::Kafka(kafka) => KafkaBus::open(kafka.clone()).await?.check().await,
        BusConfig::Embedded(_) => Ok(Vec::new()),
    }
}

/// Opens the parked store.
pub async fn parked(config: &Config) -> Result<Arc<dyn ParkedStore>> {
    Ok(Arc::new(SqliteParkedStore::open(&config.data_dir, config.parked.budget).await?))
}

/// An error while changes of a source are parked from when its log was read, and its outbox is to be relayed: nobody
/// would publish them, and relays would overtake them.
pub async fn nothing_left(config: &Config, parked: &dyn ParkedStore) -> Result<()> {
    for count in parked.counts().await? {
        let source = config.sources.get(&*count.source);
        if source.is_some_and(|source| source.is_relayed() && !source.is_followed()) {
            let what = format!("changes of source {} are parked from when its log was read", count.source);
            return Err(Error::new(Kind::Refused, what).hint(
                "leave out `relay` once more, and decide what becomes of them: `headwater parked retry` or `headwater \
                 parked drop`",
            ));
        }
    }
    Ok(())
}

/// The pushes that have set events aside, and that the config no longer names; how many bytes of each.
pub async fn nameless(config: &Config) -> Result<Vec<(String, u64)>> {
    let file = config.data_dir.join(PUSHES);
    if !file.exists() {
        return Ok(Vec::new());
    }
    let owners = tokio::task::spawn_blocking(move || owners(&file)).await;
    let owners =
        owners.map_err(|error| Error::new(Kind::Internal, "looking into push.db").because(error))??;
    Ok(owners.into_iter().filter(|(owner, _)| !config.pushes.contains_key(owner)).collect())
}

/// Opens the pushes; the file of their inbox is only made where there are some.
pub async fn pushes(config: &Config, bus: &Arc<dyn Bus>) -> Result<Vec<Push<DeferredInbox>>> {
    if config.pushes.is_empty() {
        return Ok(Vec::new());
    }
    let inbox = DeferredInbox::open(&config.data_dir.join(PUSHES)).await?;
    let shelf: Arc<dyn Shelf> = Arc::new(inbox.clone());
    let made = |(name, push): (&String, &PushConfig)| {
        let inbox = inbox.clone().budget(push.max_set_aside);
        Push::new(name, push.clone(), Arc::clone(bus), inbox, Arc::clone(&shelf))
    };
    config.pushes.iter().map(made).collect()
}

/// Everything of the runtime but its bus and its parked store.
pub fn builder(config: &Config, connectors: &Connectors) -> Result<Builder> {
    let mut builder =
        Runtime::builder().settings(config.runtime.clone()).outbox_streams(config.outbox.streams());
    builder = builder.relay_settings(config.relay.clone()).only_reads(!config.pushes.is_empty());
    for (name, connector) in connectors {
        let route = config.sources.get(name).and_then(|source| log_route(name, source, config));
        builder = builder.source(name, Arc::clone(connector), route);
    }
    for (name, source) in &config.sources {
        if let Some(Relay { store, shelf, route, origin }) = relay(name, source, config) {
            builder = builder.relay(name, store, shelf, route, origin);
        }
    }
    for (name, stream) in &config.streams {
        builder = builder.stream(name, stream.clone());
    }
    Ok(builder)
}

/// The outboxes that relays are to empty, by the name of the source.
pub fn outboxes(config: &Config) -> Vec<(String, Arc<dyn OutboxStore>)> {
    let store = |(name, source): (&String, &SourceConfig)| {
        relay(name, source, config).map(|relay| (name.clone(), relay.store))
    };
    config.sources.iter().filter_map(store).collect()
}

/// Where the outbox rows that a source reads from its log go; its logical messages are such rows too.
fn log_route(name: &str, source: &SourceConfig, config: &Config) -> Option<OutboxRoute> {
    match source.outbox().filter(|_| !source.is_relayed()) {
        Some(outbox) => Some(outbox_route(name, outbox, config)),
        None if source.takes_messages() => {
            let (schema, table) = MESSAGES;
            let table = TableRef {
                source: name.to_owned(),
                schema: Some(schema.to_owned()),
                table: table.to_owned(),
            };
            let stream = config.outbox.stream.clone();
            Some(OutboxRoute { table, columns: OutboxColumns::default(), stream })
        }
        None => None,
    }
}

/// What a relay needs.
struct Relay {
    store: Arc<dyn OutboxStore>,
    shelf: Arc<dyn Shelf>,
    route: OutboxRoute,
    origin: Origin,
}

/// The outbox of a source that is emptied by query: how, where its rows go, and what it is.
fn relay(name: &str, source: &SourceConfig, config: &Config) -> Option<Relay> {
    let outbox = source.outbox().filter(|_| source.is_relayed())?;
    let (store, shelf, connector, database): (Arc<dyn OutboxStore>, Arc<dyn Shelf>, _, _) = match source {
        SourceConfig::Postgres(config) => {
            let store = PostgresOutboxStore::new(&config.url, &outbox.table);
            let shelf = Arc::new(store.shelf(name));
            (Arc::new(store), shelf, "postgres", config.url.database.clone())
        }
        SourceConfig::MySql(config) => {
            let store = MySqlOutboxStore::new(&config.url, &outbox.table);
            let shelf = Arc::new(store.shelf(name));
            (Arc::new(store), shelf, "mysql", config.url.database().to_owned())
        }
        SourceConfig::Sqlite(config) => {
            let store = SqliteOutboxStore::new(&config.path, &outbox.table);
            let shelf = Arc::new(store.shelf(name));
            (Arc::new(store), shelf, "sqlite", "main".to_owned())
        }
    };
    let mut route = outbox_route(name, outbox, config);
    if let SourceConfig::MySql(_) = source {
        // A database has no other schema than itself.
        route.table.schema.get_or_insert_with(|| database.clone());
    }
    let origin = Origin {
        source: name.to_owned(),
        connector: connector.to_owned(),
        database,
        // Each row brings its own id.
        system_id: String::new(),
    };
    Some(Relay { store, shelf, route, origin })
}

fn outbox_route(name: &str, outbox: &Outbox, config: &Config) -> OutboxRoute {
    let (schema, table) = match outbox.table.split_once('.') {
        Some((schema, table)) => (Some(schema.to_owned()), table),
        None => (None, outbox.table.as_str()),
    };
    OutboxRoute {
        table: TableRef { source: name.to_owned(), schema, table: table.to_owned() },
        columns: outbox.columns.clone(),
        stream: config.outbox.stream.clone(),
    }
}
