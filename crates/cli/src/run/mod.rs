//! `headwater run`: everything that a config names, until it is told to stop.

mod data_dir;
mod engine;
pub mod logging;
mod progress;
pub mod signals;

use headwater_cli::config::{self, LogFormat};
use headwater_core::Result;

use crate::args::RunArgs;
pub use data_dir::{DataDir, free_bytes};
pub use engine::Engine;

/// Runs until a signal; 0 when everything that was read is published and confirmed, and no source failed.
pub async fn run(args: &RunArgs) -> Result<u8> {
    let mut config = config::load(&args.config.config)?;
    if args.json {
        config.log.format = LogFormat::Json;
    }
    logging::init(&config.log);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let stop = signals::stop_on_signals()?;
    let engine = Engine::open(&config).await?;
    engine.announce(&config);
    engine.look_at_tables(&config)?;
    engine.run(stop).await?;
    tracing::info!("stopped");
    Ok(0)
}
