//! From a checked config to running parts: the one place that names every adapter.

use std::path::Path;
use std::sync::Arc;

use headwater_cli::config::{BusConfig, Config, SourceConfig};
use headwater_connect::embedded::EmbeddedBus;
use headwater_connect::kafka::KafkaBus;
use headwater_connect::parked::SqliteParkedStore;
use headwater_connect::postgres::{MESSAGES, PostgresConnector};
use headwater_connect::settings::Outbox;
use headwater_connect::sqlite::SqliteConnector;
use headwater_core::ports::{Bus, BusStatus, Connector, ParkedStore};
use headwater_core::{Kind, Result};
use headwater_runtime::{Builder, OutboxRoute, Runtime, TableRef};
use headwater_wire::format::OutboxColumns;

/// The sources of a config, by name, ready to be opened.
pub type Connectors = Vec<(String, Arc<dyn Connector>)>;

/// Makes every source's connector; nothing is opened yet.
pub fn connectors(config: &Config) -> Result<Connectors> {
    let made = |(name, source): (&String, &SourceConfig)| {
        connector(name, source, &config.data_dir).map(|connector| (name.clone(), connector))
    };
    config.sources.iter().map(made).collect()
}

fn connector(name: &str, source: &SourceConfig, data_dir: &Path) -> Result<Arc<dyn Connector>> {
    Ok(match source {
        SourceConfig::Postgres(config) => Arc::new(PostgresConnector::new(name, config.clone(), data_dir)?),
        SourceConfig::Sqlite(config) => {
            Arc::new(SqliteConnector::new(name, config.clone())?.requests(data_dir))
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

/// What the bus holds, asked beside a process that may be publishing.
pub async fn bus_status(config: &Config) -> Result<BusStatus> {
    let BusConfig::Kafka(kafka) = &config.bus else {
        return bus_reader(&config.bus, &config.data_dir).await?.status().await;
    };
    let bus = KafkaBus::open(kafka.clone()).await?;
    for stream in config.streams.keys() {
        match bus.know(&stream.as_str().into()).await {
            // One that was not made yet holds nothing.
            Err(error) if error.kind() == Kind::Refused => {}
            known => known?,
        }
    }
    bus.status().await
}

/// Opens the parked store.
pub async fn parked(config: &Config) -> Result<Arc<dyn ParkedStore>> {
    Ok(Arc::new(SqliteParkedStore::open(&config.data_dir, config.parked.budget).await?))
}

/// Everything of the runtime but its bus and its parked store.
pub fn builder(config: &Config, connectors: &Connectors) -> Result<Builder> {
    let mut builder =
        Runtime::builder().settings(config.runtime.clone()).outbox_streams(config.outbox.streams());
    for (name, connector) in connectors {
        let route = config.sources.get(name).and_then(|source| outbox_route(name, source, config));
        builder = builder.source(name, Arc::clone(connector), route);
    }
    for (name, stream) in &config.streams {
        builder = builder.stream(name, stream.clone());
    }
    Ok(builder)
}

/// Where the outbox rows of a source go; its logical messages are such rows too.
fn outbox_route(name: &str, source: &SourceConfig, config: &Config) -> Option<OutboxRoute> {
    let route = |schema: Option<&str>, table: &str, columns| OutboxRoute {
        table: TableRef {
            source: name.to_owned(),
            schema: schema.map(str::to_owned),
            table: table.to_owned(),
        },
        columns,
        stream: config.outbox.stream.clone(),
    };
    match source.outbox() {
        Some(Outbox { table, columns }) => Some(match table.split_once('.') {
            Some((schema, table)) => route(Some(schema), table, columns.clone()),
            None => route(None, table, columns.clone()),
        }),
        None if source.takes_messages() => {
            Some(route(Some(MESSAGES.0), MESSAGES.1, OutboxColumns::default()))
        }
        None => None,
    }
}
