//! `headwater status`: where sources, streams and groups stand.

pub mod http;
mod show;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::time::Duration;

use headwater_cli::config::{self, Config};
use headwater_core::ports::BusStatus;
use headwater_core::{Error, Kind, Result};
use headwater_runtime::RuntimeStatus;
use serde::Serialize;

use crate::args::StatusArgs;
use crate::output;
use crate::run::DataDir;
use crate::wiring;

/// How long the bus may take to say what it holds.
const PATIENCE: Duration = Duration::from_secs(20);

/// What `--json` prints.
#[derive(Serialize)]
struct Answer {
    /// Whether a `headwater run` answered.
    running: bool,
    #[serde(flatten)]
    status: Option<RuntimeStatus>,
    /// Of a config that does not run: what the bus holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<BusStatus>,
    /// Why it could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

/// Shows it once, or again and again.
pub async fn status(args: &StatusArgs) -> Result<u8> {
    let config = config::load(&args.config.config)?;
    loop {
        let answer = ask(&config).await?;
        if args.watch && !args.json && std::io::stdout().is_terminal() {
            // Home, and clear to the end of the screen.
            output::line("\x1b[H\x1b[2J")?;
        }
        if args.json {
            output::json(&answer)?
        } else {
            show::print(&answer)?
        }
        if !args.watch {
            return Ok(0);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Asks the process that runs; when there is none, the bus.
async fn ask(config: &Config) -> Result<Answer> {
    let owner = DataDir::owner(&config.data_dir);
    let note = match (config.http, &owner) {
        (Some(address), Some(_)) => match running(address, config).await {
            Ok(status) => {
                return Ok(Answer { running: true, status: Some(status), stored: None, note: None });
            }
            Err(error) => Some(error.to_string()),
        },
        (None, Some(_)) => {
            Some("[http] listen is \"off\", so the running process cannot be asked".to_owned())
        }
        (_, None) => None,
    };
    if wiring::never_ran(config) {
        let note = Some("it never ran: there is no bus in data_dir yet".to_owned());
        return Ok(Answer { running: false, status: None, stored: None, note });
    }
    let (stored, _) =
        tokio::time::timeout(PATIENCE, wiring::bus_status(config)).await.unwrap_or_else(|_| {
            Err(Error::new(Kind::Unavailable, "asking the bus for its status")
                .hint("it did not answer within 20 s"))
        })?;
    Ok(Answer { running: owner.is_some(), status: None, stored: Some(stored), note })
}

/// The status of the process that runs this config.
pub async fn running(address: SocketAddr, config: &Config) -> Result<RuntimeStatus> {
    let body = http::get(address, "/status").await?;
    let status: RuntimeStatus = serde_json::from_slice(&body).map_err(|error| {
        Error::new(Kind::Decode, format!("what answers on {address} is no headwater of this version"))
            .because(error)
    })?;
    let sources = status.sources.iter().map(|source| source.name.as_str());
    let mut names: Vec<&str> = sources.chain(status.relays.iter().map(|relay| relay.name.as_str())).collect();
    names.sort_unstable();
    names.dedup();
    if !names.iter().copied().eq(config.sources.keys().map(String::as_str)) {
        let sources = names.join(", ");
        return Err(Error::new(
            Kind::Refused,
            format!("what answers on {address} runs other sources ({sources})"),
        )
        .hint("give each config its own [http] listen"));
    }
    Ok(status)
}
