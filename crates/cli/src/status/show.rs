//! The status for people.

use headwater_core::Result;
use headwater_core::ports::{BusStatus, ShelfCount, StreamStatus};
use headwater_runtime::{Phase, PushReport, RelayReport, RuntimeStatus, SourceReport, StreamReport};

use super::Answer;
use crate::output::table::{Cell, Table};
use crate::output::{self, Colour, human, lines, paint};

/// Prints an answer.
pub fn print(answer: &Answer) -> Result<()> {
    let colour = output::coloured();
    if let Some(status) = &answer.status {
        return running(status, colour);
    }
    let state = match (answer.running, &answer.note) {
        (true, Some(note)) => format!("It runs, but it could not be asked: {note}"),
        (false, Some(note)) => format!("Not running; {note}"),
        (_, None) => "Not running. This is what the bus holds:".to_owned(),
    };
    output::line(paint(&state, Colour::Yellow, colour))?;
    match &answer.stored {
        Some(bus) => stored(bus, colour),
        None => Ok(()),
    }
}

fn running(status: &RuntimeStatus, colour: bool) -> Result<()> {
    let now = human::now();
    let memory =
        status.memory_bytes.map(|bytes| format!(", memory {}", human::bytes(bytes))).unwrap_or_default();
    let bus = status.bus.as_ref().map(|bus| format!(", bus {}", bus.kind)).unwrap_or_default();
    let since = human::micros(now - status.started_at);
    let title = format!("headwater {}, running for {since}{memory}{bus}", status.version);
    output::line(paint(&title, Colour::Bold, colour))?;
    if let Some(error) = &status.bus_error {
        output::line(paint(&lines(&format!("bus: {error}")), Colour::Red, colour))?;
    }
    if let Some(since) = status.bus.as_ref().and_then(|bus| bus.waiting_since) {
        let text = format!("bus: it has taken nothing for {}; nothing is lost", human::micros(now - since));
        output::line(paint(&text, Colour::Yellow, colour))?;
    }
    section(&sources(&status.sources), colour)?;
    for source in &status.sources {
        let attempts = (source.retrying_since, source.attempts);
        troubles(&source.name, source.phase, source.error.as_deref(), attempts, now, colour)?;
        snapshot(source, colour)?;
    }
    section(&relays(&status.relays), colour)?;
    for relay in &status.relays {
        let attempts = (relay.retrying_since, relay.attempts);
        troubles(&relay.name, relay.phase, relay.error.as_deref(), attempts, now, colour)?;
    }
    section(&pushes(&status.pushes), colour)?;
    for push in &status.pushes {
        let attempts = (push.retrying_since, push.attempts);
        troubles(&push.name, push.phase, push.error.as_deref(), attempts, now, colour)?;
    }
    let held = status.bus.as_ref().map_or(&[][..], |bus| &bus.streams);
    section(&streams(&status.streams, held, now), colour)?;
    for stream in &status.streams {
        if let Some(reason) = &stream.stopped {
            let text = format!("  {} is stopped: {reason}", stream.name);
            output::line(paint(&lines(&text), Colour::Red, colour))?;
        }
    }
    section(&groups(held), colour)
}

fn stored(bus: &BusStatus, colour: bool) -> Result<()> {
    section(&streams(&[], &bus.streams, human::now()), colour)?;
    section(&groups(&bus.streams), colour)?;
    let mut table = Table::new(&["source", "checkpoint"]);
    for checkpoint in &bus.checkpoints {
        table.row([checkpoint.source.as_str().into(), checkpoint.position.to_string().into()]);
    }
    section(&table, colour)
}

/// A table, with an empty line above it; nothing when it is empty.
fn section(table: &Table, colour: bool) -> Result<()> {
    if table.is_empty() {
        return Ok(());
    }
    output::line("")?;
    output::line(table.render(colour))
}

fn sources(sources: &[SourceReport]) -> Table {
    let headings =
        &["source", "state", "position", ">behind", ">unread log", ">events", ">events/s", ">parked"];
    let mut table = Table::new(headings);
    for source in sources {
        table.row([
            source.name.as_str().into(),
            Cell::coloured(source.phase.as_str(), phase_colour(source.phase)),
            source.position.as_deref().unwrap_or("-").into(),
            source.lag_seconds.map_or("-".into(), behind),
            source.lag_bytes.map_or("-".into(), |bytes| human::bytes(bytes).into()),
            human::count(source.events).into(),
            format!("{:.1}", source.events_per_second).into(),
            parked(source.parked),
        ]);
    }
    table
}

fn behind(seconds: f64) -> Cell {
    if seconds <= 0.0 { "0".into() } else { human::seconds(seconds).into() }
}

fn parked(count: Option<u64>) -> Cell {
    match count {
        None => "-".into(),
        Some(0) => "0".into(),
        Some(count) => Cell::coloured(human::count(count), Colour::Red),
    }
}

fn phase_colour(phase: Phase) -> Colour {
    match phase {
        Phase::Streaming => Colour::Green,
        Phase::Snapshot => Colour::Cyan,
        Phase::Starting | Phase::Connecting | Phase::Retrying => Colour::Yellow,
        Phase::Failed => Colour::Red,
        Phase::Stopped => Colour::Dim,
    }
}

fn relays(relays: &[RelayReport]) -> Table {
    let mut table = Table::new(&[
        "relay of",
        "state",
        ">lanes",
        ">behind",
        ">events",
        ">events/s",
        ">retrying",
        ">parked",
        ">waiting",
    ]);
    for relay in relays {
        table.row([
            relay.name.as_str().into(),
            Cell::coloured(relay.phase.as_str(), phase_colour(relay.phase)),
            relay.lanes.to_string().into(),
            relay.lag_seconds.map_or("-".into(), behind),
            human::count(relay.events).into(),
            format!("{:.1}", relay.events_per_second).into(),
            retrying(relay.aside),
            parked(relay.aside.map(|aside| aside.parked)),
            waiting(relay.aside),
        ]);
    }
    table
}

fn pushes(pushes: &[PushReport]) -> Table {
    let headings = &["push", "state", ">events", ">events/s", ">retrying", ">parked", ">waiting"];
    let mut table = Table::new(headings);
    for push in pushes {
        table.row([
            push.name.as_str().into(),
            Cell::coloured(push.phase.as_str(), phase_colour(push.phase)),
            human::count(push.events).into(),
            format!("{:.1}", push.events_per_second).into(),
            retrying(push.aside),
            parked(push.aside.map(|aside| aside.parked)),
            waiting(push.aside),
        ]);
    }
    table
}

fn retrying(aside: Option<ShelfCount>) -> Cell {
    aside.map_or("-".into(), |aside| human::count(aside.retrying).into())
}

fn waiting(aside: Option<ShelfCount>) -> Cell {
    aside.map_or("-".into(), |aside| human::count(aside.waiting).into())
}

fn troubles(
    name: &str,
    phase: Phase,
    error: Option<&str>,
    (since, attempts): (Option<i64>, u32),
    now: i64,
    colour: bool,
) -> Result<()> {
    let Some(error) = error else { return Ok(()) };
    let since = since.map(|since| {
        let attempts = human::plural(u64::from(attempts), "attempt");
        format!(" (for {}, {attempts})", human::micros(now - since))
    });
    let paint_as = if phase == Phase::Failed { Colour::Red } else { Colour::Yellow };
    let text = format!("  {name}{}: {error}", since.unwrap_or_default());
    output::line(paint(&lines(&text), paint_as, colour))
}

fn snapshot(source: &SourceReport, colour: bool) -> Result<()> {
    if source.phase != Phase::Snapshot {
        return Ok(());
    }
    let mut table = Table::new(&["snapshot of", ">rows", ">of about", "done"]);
    for progress in &source.snapshot {
        table.row([
            progress.table.as_str().into(),
            human::count(progress.rows).into(),
            progress.estimate.map_or("-".into(), |rows| human::count(rows).into()),
            if progress.done { "yes" } else { "" }.into(),
        ]);
    }
    section(&table, colour)
}

/// Every stream that Headwater reports or the bus holds.
fn streams(reports: &[StreamReport], held: &[StreamStatus], now: i64) -> Table {
    let mut table =
        Table::new(&["stream", ">partitions", ">events", ">size", ">newest", ">since start", ">parked"]);
    let mut add =
        |name: &str, partitions: u32, held: Option<&StreamStatus>, report: Option<&StreamReport>| {
            table.row([
                name.into(),
                partitions.to_string().into(),
                held.map_or("-".into(), |held| human::count(held.events).into()),
                held.and_then(|held| held.bytes).map_or("-".into(), |bytes| human::bytes(bytes).into()),
                held.and_then(|held| held.newest).map_or("-".into(), |newest| human::ago(newest, now).into()),
                report.map_or("-".into(), |report| human::count(report.events).into()),
                report.map_or("-".into(), |report| parked(report.parked)),
            ]);
        };
    for report in reports {
        let held = held.iter().find(|held| *held.stream == *report.name);
        add(&report.name, held.map_or(report.partitions, |held| held.partitions), held, Some(report));
    }
    for held in held.iter().filter(|held| reports.iter().all(|report| *report.name != *held.stream)) {
        add(&held.stream, held.partitions, Some(held), None);
    }
    table
}

fn groups(held: &[StreamStatus]) -> Table {
    let mut table = Table::new(&["group", "stream", ">behind", ">oldest"]);
    for stream in held {
        for group in &stream.groups {
            table.row([
                group.group.as_str().into(),
                (&*stream.stream).into(),
                human::plural(group.lag_events, "event").into(),
                group.lag_seconds.map_or("-".into(), behind),
            ]);
        }
    }
    table
}
