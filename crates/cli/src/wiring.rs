//! From a checked config to running parts: the one place that names every adapter.

use std::path::Path;
use std::sync::Arc;

use headwater_cli::config::{BusConfig, Config, SourceConfig};
use headwater_connect::embedded::EmbeddedBus;
use headwater_connect::parked::SqliteParkedStore;
use headwater_connect::sqlite::SqliteConnector;
use headwater_core::ports::{Bus, Connector, ParkedStore};
use headwater_core::{Error, Kind, Result};
use headwater_runtime::{Builder, OutboxRoute, Runtime};

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
    })
}

/// Opens the bus for reading beside a process that may be publishing.
pub async fn bus_reader(bus: &BusConfig, data_dir: &Path) -> Result<Arc<dyn Bus>> {
    Ok(match bus {
        BusConfig::Embedded(embedded) => {
            Arc::new(EmbeddedBus::open_reader(data_dir, embedded.clone()).await?)
        }
    })
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
        let outbox = config.sources.get(name).and_then(SourceConfig::outbox);
        let route = outbox.map(|outbox| -> Result<OutboxRoute> {
            let table = format!("{name}.{}", outbox.table);
            let wrong = |why| Error::new(Kind::Config, format!("source.{name}.outbox: {why}"));
            Ok(OutboxRoute {
                table: table.parse().map_err(wrong)?,
                columns: outbox.columns.clone(),
                stream: config.outbox.stream.clone(),
            })
        });
        builder = builder.source(name, Arc::clone(connector), route.transpose()?);
    }
    for (name, stream) in &config.streams {
        builder = builder.stream(name, stream.clone());
    }
    Ok(builder)
}
