//! A config, running.

use std::net::SocketAddr;
use std::sync::Arc;

use headwater_cli::config::Config;
use headwater_connect::sqlite::inbox::DeferredInbox;
use headwater_core::ports::{Bus, Check};
use headwater_core::{Error, Kind, Result};
use headwater_runtime::Runtime;
use headwater_server::Server;
use headwater_server::push::Push;
use tokio_util::sync::CancellationToken;

use super::data_dir::DataDir;
use super::progress;
use crate::check::nobodys;
use crate::wiring::{self, Connectors};

/// Everything that a config names, opened.
pub struct Engine {
    runtime: Arc<Runtime>,
    connectors: Connectors,
    server: Option<Server>,
    bus: Arc<dyn Bus>,
    pushes: Vec<Push<DeferredInbox>>,
    /// There is no source whose end would be the end of it all.
    only_pushes: bool,
    _data_dir: DataDir,
}

/// Logs what was set aside by pushes that the config no longer names. That this cannot be read keeps nothing from
/// running: no push of the config needs it.
async fn warn_of_nameless(config: &Config) {
    match wiring::nameless(config).await {
        Ok(owners) => {
            for (push, bytes) in owners {
                let (message, hint) = nobodys(&push, bytes);
                tracing::warn!(push, "{message}: {hint}");
            }
        }
        Err(error) => {
            tracing::warn!(%error, "cannot tell what pushes have set aside that the config no longer names")
        }
    }
}

impl Engine {
    /// Takes the data_dir, opens the bus and the parked store, and listens for HTTP. Sources are opened by
    /// [`Engine::run`], which goes on trying while a server is away.
    pub async fn open(config: &Config) -> Result<Self> {
        let path = config.data_dir.clone();
        let data_dir = tokio::task::spawn_blocking(move || DataDir::take(&path)).await;
        let data_dir =
            data_dir.map_err(|error| Error::new(Kind::Internal, "taking the data_dir").because(error))??;
        let connectors = wiring::connectors(config)?;
        let bus = wiring::bus(config).await?;
        let pushes = wiring::pushes(config, &bus).await?;
        warn_of_nameless(config).await;
        let parked = wiring::parked(config).await?;
        wiring::nothing_left(config, &*parked).await?;
        let mut builder = wiring::builder(config, &connectors)?.bus(Arc::clone(&bus)).parked(parked);
        for push in &pushes {
            builder = builder.push(push.name(), push.watch(), push.shelf());
        }
        let runtime = Arc::new(builder.build()?);
        let server = match config.http {
            Some(address) => Some(Server::bind(address, Arc::clone(&runtime)).await?),
            None => None,
        };
        let only_pushes = config.sources.is_empty() && !pushes.is_empty();
        Ok(Self { runtime, connectors, server, bus, pushes, only_pushes, _data_dir: data_dir })
    }

    /// Where HTTP is served.
    pub fn address(&self) -> Option<SocketAddr> {
        self.server.as_ref().map(Server::addr)
    }

    /// The bus, for a consumer in this process.
    pub fn bus(&self) -> Arc<dyn Bus> {
        Arc::clone(&self.bus)
    }

    /// Logs what runs.
    pub fn announce(&self, config: &Config) {
        let sources: Vec<&str> = config.sources.keys().map(String::as_str).collect();
        let streams: Vec<&str> = config.streams.keys().map(String::as_str).collect();
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            data_dir = %config.data_dir.display(),
            sources = sources.join(","),
            streams = streams.join(","),
            "headwater runs"
        );
        if let Some(address) = self.address() {
            tracing::info!("status on http://{address}/status, metrics on http://{address}/metrics");
        }
    }

    /// Looks at the sources' tables beside the work, and logs which streams they cannot feed as they are now:
    /// their first change would stop them.
    pub fn look_at_tables(&self, config: &Config) -> Result<()> {
        let (builder, connectors) = (wiring::builder(config, &self.connectors)?, self.connectors.clone());
        tokio::spawn(async move {
            for (name, connector) in connectors {
                // What keeps a source from being looked at is said when it is opened.
                let Ok(Check { tables: Some(tables), .. }) = connector.check().await else { continue };
                for error in builder.verify_tables(&name, &tables).unwrap_or_default() {
                    tracing::error!(source = name, %error, "a stream cannot be fed");
                }
            }
        });
        Ok(())
    }

    /// Runs until `stop` (then: drains and confirms) or until every source has failed. `Ok` when all that was
    /// read is confirmed and no source failed.
    pub async fn run(self, stop: CancellationToken) -> Result<()> {
        let done = CancellationToken::new();
        let guard = done.clone().drop_guard();
        let server = self.server.map(|server| tokio::spawn(server.run(done.clone())));
        let progress = tokio::spawn(progress::show(self.connectors, done.clone()));
        let over = stop.child_token();
        let pushes = self.pushes.into_iter().map(|push| tokio::spawn(push.run(over.clone())));
        let pushes: Vec<_> = pushes.collect();
        let ended = self.runtime.run(stop.clone()).await;
        if self.only_pushes {
            stop.cancelled().await;
        }
        over.cancel();
        futures::future::join_all(pushes).await;
        drop(guard);
        if let Some(Ok(Err(error))) = match server {
            Some(server) => Some(server.await),
            None => None,
        } {
            tracing::warn!("{error}");
        }
        let _ = progress.await;
        ended
    }
}
