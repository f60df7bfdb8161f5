//! `headwater snapshot`: ask a source to read tables anew.

use headwater_cli::config::{self, Config};
use headwater_connect::requests::{Requests, SnapshotRequest};
use headwater_core::{Error, Kind, Result};
use serde_json::json;

use crate::args::SnapshotArgs;
use crate::output;
use crate::run::DataDir;

/// Writes the request; the source follows it.
pub async fn snapshot(args: &SnapshotArgs) -> Result<u8> {
    let config = config::load(&args.config.config)?;
    check(args, &config)?;
    let request = SnapshotRequest::new(args.tables.clone());
    let (requests, written) = (Requests::new(&config.data_dir, &args.source), request.clone());
    let write = tokio::task::spawn_blocking(move || requests.write(&written)).await;
    write.map_err(|error| Error::new(Kind::Internal, "writing the request").because(error))??;
    let owner = DataDir::owner(&config.data_dir);
    if args.json {
        output::json(&json!({
            "source": args.source, "tables": request.tables, "id": request.id, "running": owner.is_some(),
        }))?;
        return Ok(0);
    }
    let tables = match args.tables.as_slice() {
        [] => "all its tables".to_owned(),
        tables => tables.join(", "),
    };
    let when = match owner {
        Some(process) => {
            format!("{process} begins with it within seconds; `headwater status` shows how far it is")
        }
        None => "nothing runs now: it begins with the next `headwater run`".to_owned(),
    };
    output::line(format!("source {} is asked to read {tables} anew\n{when}", args.source))?;
    Ok(0)
}

fn check(args: &SnapshotArgs, config: &Config) -> Result<()> {
    let wrong = |text: String, known: Vec<&str>| {
        Err(Error::new(Kind::Config, text).hint(format!("there are: {}", known.join(", "))))
    };
    let Some(source) = config.sources.get(&args.source) else {
        let known = config.sources.keys().map(String::as_str).collect();
        return wrong(format!("there is no source \"{}\"", args.source), known);
    };
    if !source.is_followed() {
        let text = format!("source {} captures no tables: it has only an outbox", args.source);
        return Err(Error::new(Kind::Config, text).hint("there is nothing to read anew"));
    }
    match args.tables.iter().find(|table| !source.reads(table)) {
        Some(table) => wrong(
            format!("source {} does not capture \"{table}\"", args.source),
            source.tables().iter().map(String::as_str).collect(),
        ),
        None => Ok(()),
    }
}
