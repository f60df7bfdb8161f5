//! `headwater trace`: what became of one event.

use headwater_cli::config;
use headwater_connect::sqlite::inbox::{Delivery, delivery};
use headwater_core::{Error, EventId, Kind, Result};
use serde::Serialize;

use crate::args::TraceArgs;
use crate::output::table::{Cell, Table};
use crate::output::{self, Colour, human};
use crate::wiring::PUSHES;

/// What a push knows of it.
#[derive(Serialize)]
struct Line {
    push: String,
    /// `delivered`, `dropped`, `parked`, `retrying`, `waiting` or `unknown`.
    state: String,
    at: Option<String>,
    attempts: u32,
    error: Option<String>,
}

/// Says what each push of the config knows of an event; 1 where none knows it.
pub async fn trace(args: &TraceArgs) -> Result<u8> {
    let id = args.id.parse::<EventId>().map_err(|()| {
        Error::new(Kind::Config, format!("\"{}\" is not an event's id", args.id))
            .hint("an id is a UUID: in the header `webhook-id`, and in what `headwater tail --json` shows")
    })?;
    let config = config::load(&args.config.config)?;
    if config.pushes.is_empty() {
        return Err(Error::new(Kind::Config, "the config has no push, so there is nobody to ask")
            .hint("what became of an event at a consumer stands in the inbox of its service's database"));
    }
    let file = config.data_dir.join(PUSHES);
    let pushes: Vec<String> = config.pushes.into_keys().collect();
    let ask = move || {
        let known = |push: String| {
            // Without the file nothing was ever delivered, and a question should not make one.
            let found = if file.exists() { delivery(&file, &push, id)? } else { None };
            Ok(line(push, found))
        };
        pushes.into_iter().map(known).collect::<Result<Vec<_>>>()
    };
    let asked = tokio::task::spawn_blocking(ask).await;
    let lines = asked.map_err(|error| Error::new(Kind::Internal, "asking for an event").because(error))??;
    let known = lines.iter().any(|line| line.at.is_some());
    if args.json {
        output::json(&lines)?;
    } else {
        print(&lines)?;
    }
    Ok(u8::from(!known))
}

fn line(push: String, found: Option<Delivery>) -> Line {
    match found {
        Some(Delivery { state, attempts, at, error }) => {
            Line { push, state, at: Some(human::instant(at).unwrap_or_default()), attempts, error }
        }
        None => Line { push, state: "unknown".to_owned(), at: None, attempts: 0, error: None },
    }
}

fn print(lines: &[Line]) -> Result<()> {
    let mut table = Table::new(&["push", "state", "since", ">tries", "why"]);
    for line in lines {
        let colour = match line.state.as_str() {
            "delivered" => Colour::Green,
            "parked" | "dropped" => Colour::Red,
            _ => Colour::Yellow,
        };
        table.row([
            line.push.as_str().into(),
            Cell::coloured(&line.state, colour),
            line.at.as_deref().unwrap_or("-").into(),
            line.attempts.to_string().into(),
            line.error.as_deref().unwrap_or_default().into(),
        ]);
    }
    output::line(table.render(output::coloured()))
}
