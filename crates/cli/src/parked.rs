//! `headwater parked`: what is set aside, and why.

use headwater_cli::config;
use headwater_core::Result;
use headwater_core::ports::ParkedUsage;
use serde::Serialize;

use crate::args::ParkedArgs;
use crate::output::table::Table;
use crate::output::{self, human};
use crate::wiring;

/// One line: an order key of a stream, or a stream that is held whole.
#[derive(Serialize)]
struct Line<'a> {
    source: &'a str,
    stream: &'a str,
    order_key: Option<String>,
    count: u64,
    bytes: u64,
    reason: &'a str,
}

/// Lists it, oldest first.
pub async fn parked(args: &ParkedArgs) -> Result<u8> {
    let config = config::load(&args.config.config)?;
    // Without the file nothing was ever parked, and a question should not make one.
    let usage = match config.data_dir.join("parked.db").exists() {
        true => wiring::parked(&config).await?.usage().await?,
        false => Vec::new(),
    };
    let lines: Vec<Line<'_>> = usage.iter().map(line).collect();
    if args.json {
        output::json(&lines)?;
        return Ok(0);
    }
    if lines.is_empty() {
        output::line("nothing is parked")?;
        return Ok(0);
    }
    let mut table =
        Table::new(&["source", "stream", "order key", ">changes", ">size", "reason of the first"]);
    for line in &lines {
        table.row([
            line.source.into(),
            line.stream.into(),
            line.order_key.as_deref().unwrap_or("(whole stream)").into(),
            human::count(line.count).into(),
            human::bytes(line.bytes).into(),
            line.reason.into(),
        ]);
    }
    output::line(table.render(output::coloured()))?;
    Ok(0)
}

fn line(usage: &ParkedUsage) -> Line<'_> {
    Line {
        source: &usage.source,
        stream: &usage.stream,
        order_key: usage.order_key.as_deref().map(|key| String::from_utf8_lossy(key).into_owned()),
        count: usage.count,
        bytes: usage.bytes,
        reason: &usage.reason,
    }
}
