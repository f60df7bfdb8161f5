//! `headwater parked`: what is set aside, and why; and what a person decides about it.

mod pipeline;
mod places;

use bytes::Bytes;
use headwater_core::ports::{Shelf, ShelfFilter, ShelfState, Shelved, ShelvedEvent};
use headwater_core::{Error, EventId, Kind, Result};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::args::{DecideArgs, ParkedArgs, ParkedCommand, WhichArgs};
use crate::output::table::{Cell, Table};
use crate::output::{self, Colour, human};
use places::Place;

/// Said where nothing was found.
const NOTHING: &str = "nothing that is parked fits";

/// Does what was asked for.
pub async fn parked(args: &ParkedArgs) -> Result<u8> {
    match &args.command {
        None => list(&args.list).await,
        Some(ParkedCommand::List(which)) => list(which).await,
        Some(ParkedCommand::Show(which)) => show(which).await,
        Some(ParkedCommand::Retry(which)) => decide(which, Decision::Retry).await,
        Some(ParkedCommand::Drop(which)) => decide(which, Decision::Drop).await,
    }
}

/// What a person decides.
#[derive(Clone, Copy)]
enum Decision {
    Retry,
    Drop,
}

/// One line of the list.
#[derive(Serialize)]
struct Line {
    place: &'static str,
    owner: String,
    stream: String,
    key: Option<String>,
    id: String,
    state: &'static str,
    attempts: u32,
    waiting: u64,
    since: String,
    error: Option<String>,
}

/// One event, whole.
#[derive(Serialize)]
struct Whole {
    place: &'static str,
    owner: String,
    stream: String,
    key: Option<String>,
    id: String,
    #[serde(rename = "type")]
    kind: String,
    state: &'static str,
    attempts: u32,
    since: String,
    error: Option<String>,
    headers: Vec<(String, Option<String>)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_text: Option<String>,
}

async fn list(which: &WhichArgs) -> Result<u8> {
    let filter = filter(which)?;
    let mut lines = Vec::new();
    for Place { kind, shelf } in places::of(which).await? {
        lines.extend(shelf.list(&filter).await?.into_iter().map(|shelved| line(kind, shelved)));
    }
    if which.json {
        output::json(&lines)?;
        return Ok(0);
    }
    if lines.is_empty() {
        output::line(if is_of_all(&filter) { "nothing is parked" } else { NOTHING })?;
        return Ok(0);
    }
    let headings = &["in", "of", "stream", "key", "state", ">tries", ">behind it", "since", "why"];
    let mut table = Table::new(headings);
    for line in &lines {
        let colour = if line.state == ShelfState::Parked.word() { Colour::Red } else { Colour::Yellow };
        table.row([
            line.place.into(),
            line.owner.as_str().into(),
            line.stream.as_str().into(),
            line.key.as_deref().unwrap_or("(no key)").into(),
            Cell::coloured(line.state, colour),
            line.attempts.to_string().into(),
            human::count(line.waiting).into(),
            line.since.as_str().into(),
            output::one_line(line.error.as_deref().unwrap_or_default()).into(),
        ]);
    }
    output::line(table.render(output::coloured()))?;
    Ok(0)
}

async fn show(which: &WhichArgs) -> Result<u8> {
    let filter = filter(which)?;
    let mut found = false;
    for Place { kind, shelf } in places::of(which).await? {
        for event in shelf.show(&filter).await? {
            found = true;
            let whole = whole(kind, event);
            if which.json {
                output::json(&whole)?;
            } else {
                print(&whole)?;
            }
        }
    }
    if !found && !which.json {
        output::line(NOTHING)?;
    }
    Ok(u8::from(!found))
}

/// Whether nothing says which of what is parked is meant.
fn is_of_all(filter: &ShelfFilter) -> bool {
    *filter == ShelfFilter { limit: filter.limit, ..ShelfFilter::default() }
}

async fn decide(args: &DecideArgs, decision: Decision) -> Result<u8> {
    let filter = filter(&args.which)?;
    if is_of_all(&filter) && !args.all {
        return Err(Error::new(Kind::Config, "nothing says which of what is parked is meant")
            .hint("name it by --of, --stream, --key or --id, or give --all; `headwater parked` lists it"));
    }
    let mut count = 0;
    for Place { shelf, .. } in places::of(&args.which).await? {
        count += match decision {
            Decision::Retry => shelf.retry(&filter).await?,
            Decision::Drop => Shelf::drop(&*shelf, &filter).await?,
        };
    }
    let (word, done) = match decision {
        Decision::Retry => ("retried", "to be tried again; what waits behind each follows in order"),
        Decision::Drop => ("dropped", "dropped; what waited behind each goes on"),
    };
    if args.which.json {
        output::json(&serde_json::json!({ word: count }))?;
    } else if count == 0 {
        output::line(NOTHING)?;
    } else {
        output::line(format!("{} {done}", human::plural(count, "event")))?;
    }
    Ok(u8::from(count == 0))
}

fn filter(which: &WhichArgs) -> Result<ShelfFilter> {
    let id = which.id.as_deref().map(|id| {
        id.parse::<EventId>().map_err(|()| {
            Error::new(Kind::Config, format!("\"{id}\" is not an event's id"))
                .hint("an id is a UUID, as `headwater parked --json` shows it")
        })
    });
    Ok(ShelfFilter {
        owner: which.of.clone(),
        stream: which.stream.clone(),
        key: which.key.as_ref().map(|key| Bytes::copy_from_slice(key.as_bytes())),
        id: id.transpose()?,
        limit: which.limit,
    })
}

fn line(place: &'static str, shelved: Shelved) -> Line {
    Line {
        place,
        owner: shelved.owner,
        stream: shelved.stream.to_string(),
        key: shelved.key.map(|key| text(&key)),
        id: shelved.id.to_string(),
        state: shelved.state.word(),
        attempts: shelved.attempts,
        waiting: shelved.waiting,
        since: human::instant(shelved.since).unwrap_or_default(),
        error: shelved.error,
    }
}

fn whole(place: &'static str, shelved: ShelvedEvent) -> Whole {
    let event = shelved.record.event;
    let payload = event.payload.as_deref().and_then(|payload| serde_json::from_slice(payload).ok());
    let payload_text = event.payload.as_deref().filter(|_| payload.is_none()).map(text);
    let headers = event.headers.iter().map(|header| {
        let value = header.value.as_deref().map(text);
        (header.name.to_string(), value)
    });
    Whole {
        place,
        owner: shelved.owner,
        stream: event.stream.to_string(),
        key: shelved.key.map(|key| text(&key)),
        id: event.id.to_string(),
        kind: event.kind.to_string(),
        state: shelved.state.word(),
        attempts: shelved.attempts,
        since: human::instant(shelved.since).unwrap_or_default(),
        error: shelved.error,
        headers: headers.collect(),
        payload,
        payload_text,
    }
}

fn print(whole: &Whole) -> Result<()> {
    let colour = output::coloured();
    let key = whole.key.as_deref().unwrap_or("(no key)");
    let title = format!("{} {key}  {}", whole.stream, whole.id);
    output::line(output::paint(&output::one_line(&title), Colour::Bold, colour))?;
    let tries = human::plural(u64::from(whole.attempts), "attempt");
    let fact = format!(
        "  {} {}, {}, {tries}, {} since {}",
        whole.place, whole.owner, whole.kind, whole.state, whole.since
    );
    output::line(output::one_line(&fact))?;
    if let Some(error) = &whole.error {
        output::line(output::paint(&output::one_line(&format!("  {error}")), Colour::Red, colour))?;
    }
    for (name, value) in &whole.headers {
        output::line(output::one_line(&format!("  {name}: {}", value.as_deref().unwrap_or_default())))?;
    }
    match (&whole.payload, &whole.payload_text) {
        (Some(json), _) => output::line(output::lines(&format!("  {}", json.get()))),
        (None, Some(text)) => output::line(output::lines(&format!("  {text}"))),
        (None, None) => Ok(()),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
