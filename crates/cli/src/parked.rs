//! `headwater parked`: what is set aside, and why.

use headwater_cli::config;
use headwater_core::Result;
use headwater_core::ports::{HoldsBack, ParkedUsage};
use serde::Serialize;

use crate::args::ParkedArgs;
use crate::output::table::Table;
use crate::output::{self, human};
use crate::wiring;

/// One line: what is parked of a stream and holds back the same.
#[derive(Serialize)]
struct Line<'a> {
    source: &'a str,
    stream: &'a str,
    holds: &'static str,
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
            match (line.holds, &line.order_key) {
                (_, Some(key)) => key.as_str().into(),
                ("stream", _) => "(whole stream)".into(),
                _ => "(no key)".into(),
            },
            human::count(line.count).into(),
            human::bytes(line.bytes).into(),
            line.reason.into(),
        ]);
    }
    output::line(table.render(output::coloured()))?;
    Ok(0)
}

fn line(usage: &ParkedUsage) -> Line<'_> {
    let (holds, order_key) = match &usage.holds {
        HoldsBack::Stream => ("stream", None),
        HoldsBack::Key(key) => ("key", Some(String::from_utf8_lossy(key).into_owned())),
        HoldsBack::Nothing => ("nothing", None),
    };
    Line {
        source: &usage.source,
        stream: &usage.stream,
        holds,
        order_key,
        count: usage.count,
        bytes: usage.bytes,
        reason: &usage.reason,
    }
}
