//! `headwater check`: is the config right, are the servers ready, what must be mended.

use std::path::Path;
use std::time::Duration;

use headwater_cli::config::{self, Config};
use headwater_core::ports::{BusStatus, Check, Finding, Severity};
use headwater_core::{Error, Kind, Result};
use serde::Serialize;

use crate::args::CheckArgs;
use crate::output::table::{Cell, Table};
use crate::output::{self, Colour, human};
use crate::run::{DataDir, free_bytes};
use crate::wiring::Connectors;
use crate::{status, wiring};

/// How long one server may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Less free space than this is an error; less than ten times it, a warning.
const SPACE: u64 = 100 << 20;

/// What was found, and where.
#[derive(Serialize)]
struct Found {
    /// `config`, `data_dir`, `bus`, `http`, `streams`, `source.NAME`, or `push.NAME`.
    r#where: String,
    #[serde(flatten)]
    finding: Finding,
    /// Whether an error is one of the config, so that trying again cannot help.
    #[serde(skip)]
    of_config: bool,
}

impl Found {
    fn new(place: &str, finding: Finding) -> Self {
        Self { r#where: place.to_owned(), finding, of_config: false }
    }

    fn failed(place: &str, error: &Error) -> Self {
        Self { of_config: error.kind() == Kind::Config, ..Self::new(place, of_error(error)) }
    }
}

#[derive(Serialize)]
struct Report {
    /// Whether `headwater run` can work.
    ok: bool,
    findings: Vec<Found>,
}

/// Checks everything and changes nothing.
pub async fn check(args: &CheckArgs) -> Result<u8> {
    let config = match config::load(&args.config.config) {
        Ok(config) => config,
        Err(error) if args.json => {
            output::json(&Report { ok: false, findings: vec![Found::failed("config", &error)] })?;
            return Ok(2);
        }
        Err(error) => return Err(error),
    };
    let findings = findings(&config, &args.config.config).await;
    let ok = findings.iter().all(|found| found.finding.severity != Severity::Error);
    let code = if ok {
        0
    } else if findings.iter().any(|found| found.of_config) {
        2
    } else {
        3
    };
    let report = Report { ok, findings };
    if args.json {
        output::json(&report)?
    } else {
        print(&report)?
    }
    Ok(code)
}

async fn findings(config: &Config, path: &Path) -> Vec<Found> {
    let mut found = vec![Found::new("config", Finding::ok(format!("{} reads well", path.display())))];
    found.extend(config.warnings.iter().map(|problem| {
        let message = format!("{}: {}", problem.path, problem.message);
        Found::new("config", Finding::warning(message, problem.hint.clone().unwrap_or_default()))
    }));
    found.extend(data_dir(&config.data_dir).into_iter().map(|finding| Found::new("data_dir", finding)));
    found.extend(http(config).await);
    found.extend(bus(config).await);
    match wiring::connectors(config) {
        Ok(connectors) => {
            let checks = connectors.iter().map(async |(name, connector)| {
                let answer = tokio::time::timeout(PATIENCE, connector.check()).await;
                (name.as_str(), answer.unwrap_or_else(|_| Err(late())))
            });
            let checks = futures::future::join_all(checks).await;
            found.extend(streams(config, &connectors, &checks));
            for (name, check) in checks {
                let place = format!("source.{name}");
                match check {
                    Ok(check) => {
                        found.extend(check.findings.into_iter().map(|finding| Found::new(&place, finding)));
                    }
                    Err(error) => found.push(Found::failed(&place, &error)),
                }
            }
        }
        Err(error) => found.push(Found::failed("config", &error)),
    }
    found.extend(outboxes(config).await);
    found.extend(pushes(config).await);
    found
}

/// Whether the endpoints of pushes can be reached, and their streams are there or declared.
async fn pushes(config: &Config) -> Vec<Found> {
    let status = async {
        if wiring::never_ran(config) { Ok(Default::default()) } else { wiring::bus_status(config).await }
    };
    let looks = config.pushes.values().map(headwater_server::push::look);
    let looks = futures::future::join_all(looks);
    let (status, looks) = futures::future::join(tokio::time::timeout(PATIENCE, status), looks).await;
    let mut found = nameless(config).await;
    for ((name, push), findings) in config.pushes.iter().zip(looks) {
        let place = format!("push.{name}");
        found.extend(findings.into_iter().map(|finding| Found::new(&place, finding)));
        // What keeps the bus from answering is said of the bus.
        if let Ok(Ok((held, refused))) = &status {
            let lacking = push.streams.iter().filter(|stream| !config.streams.contains_key(*stream));
            found.extend(lacking.filter_map(|stream| lack(&place, stream, held, refused)));
        }
    }
    found
}

/// What is wrong with a stream that no source of the config feeds by a section.
fn lack(place: &str, stream: &str, held: &BusStatus, refused: &[(String, Error)]) -> Option<Found> {
    if let Some((_, error)) = refused.iter().find(|(refused, _)| refused == stream) {
        return Some(Found::failed(place, error));
    }
    let known = held.streams.iter().any(|held| *held.stream == *stream);
    let warning = Finding::warning(
        format!("there is no stream \"{stream}\" yet"),
        format!("it is there with its first outbox row; one of tables needs a section [stream.{stream}]"),
    );
    (!known).then(|| Found::new(place, warning))
}

/// What was set aside by pushes of another name.
async fn nameless(config: &Config) -> Vec<Found> {
    match wiring::nameless(config).await {
        Ok(owners) => {
            let found = owners.into_iter().map(|(owner, bytes)| {
                let (message, hint) = nobodys(&owner, bytes);
                Found::new(&format!("push.{owner}"), Finding::warning(message, hint))
            });
            found.collect()
        }
        Err(error) => vec![Found::failed("data_dir", &error)],
    }
}

/// What is said of events that no push of the config delivers.
pub fn nobodys(owner: &str, bytes: u64) -> (String, String) {
    let bytes = human::bytes(bytes);
    let hint = format!("name it again, or see `headwater parked list --of {owner}`, and drop them");
    (format!("{bytes} of events are set aside, and the config no longer names this push"), hint)
}

/// What relays are to empty.
async fn outboxes(config: &Config) -> Vec<Found> {
    let checks = wiring::outboxes(config).into_iter().map(async |(name, store)| {
        let answer = tokio::time::timeout(PATIENCE, store.check()).await;
        let place = format!("source.{name}");
        match answer.unwrap_or_else(|_| Err(late())) {
            Ok(findings) => {
                findings.into_iter().map(|finding| Found::new(&place, finding)).collect::<Vec<_>>()
            }
            Err(error) => vec![Found::failed(&place, &error)],
        }
    });
    futures::future::join_all(checks).await.into_iter().flatten().collect()
}

fn late() -> Error {
    Error::new(Kind::Unavailable, "no answer within 20 s")
}

/// An error, with its hint where a finding has it.
fn of_error(error: &Error) -> Finding {
    let text = error.to_string();
    match (text.rsplit_once("\n  hint: "), error.hint_text()) {
        (Some((message, _)), Some(hint)) => Finding::error(message, hint),
        _ => Finding { severity: Severity::Error, message: text, hint: None },
    }
}

fn data_dir(path: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(owner) = DataDir::owner(path) {
        findings.push(Finding::ok(format!("{} is in use: {owner} runs on it", path.display())));
    } else if let Some(there) = path.ancestors().find(|ancestor| ancestor.exists()) {
        use rustix::fs::{Access, access};
        findings.push(match access(there, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) if there.is_dir() => Finding::ok(format!("{} can be written to", path.display())),
            _ => Finding::error(
                format!("{} cannot be written to", there.display()),
                "data_dir must be a folder that this user may write to",
            ),
        });
    }
    if let Some(free) = free_bytes(path) {
        let text = format!("{} are free", human::bytes(free));
        let hint = "the embedded bus, parked changes and large transactions are written there";
        findings.push(match free {
            free if free < SPACE => Finding::error(text, hint),
            free if free < 10 * SPACE => Finding::warning(text, hint),
            _ => Finding::ok(text),
        });
    }
    findings
}

async fn http(config: &Config) -> Option<Found> {
    let address = config.http?;
    if DataDir::owner(&config.data_dir).is_some() {
        return Some(match status::running(address, config).await {
            Ok(status) => {
                Found::new("http", Finding::ok(format!("headwater {} answers on {address}", status.version)))
            }
            Err(error) => Found::failed("http", &error),
        });
    }
    Some(match headwater_server::listen(address).await {
        Ok(_) => Found::new("http", Finding::ok(format!("{address} is free"))),
        Err(error) => Found::failed("http", &error),
    })
}

async fn bus(config: &Config) -> Vec<Found> {
    if wiring::never_ran(config) {
        return vec![Found::new("bus", Finding::ok("the embedded bus is made by the first `headwater run`"))];
    }
    let both = async { futures::future::join(wiring::bus_status(config), wiring::bus_check(config)).await };
    let (status, checked) =
        tokio::time::timeout(PATIENCE, both).await.unwrap_or_else(|_| (Err(late()), Ok(Vec::new())));
    let mut found = match status {
        Ok((status, _)) => {
            let streams = human::plural(status.streams.len() as u64, "stream");
            let text = format!("the {} bus answers, it holds {streams}", status.kind);
            vec![Found::new("bus", Finding::ok(text))]
        }
        Err(error) => return vec![Found::failed("bus", &error)],
    };
    match checked {
        Ok(findings) => found.extend(findings.into_iter().map(|finding| Found::new("bus", finding))),
        Err(error) => found.push(Found::failed("bus", &error)),
    }
    found
}

/// Whether every stream's declaration makes sense: its names, its condition, and its columns where the
/// tables could be looked at.
fn streams(config: &Config, connectors: &Connectors, checks: &[(&str, Result<Check>)]) -> Vec<Found> {
    let verify = || {
        let builder = wiring::builder(config, connectors)?;
        builder.verify()?;
        let known =
            checks.iter().filter_map(|(name, check)| Some((name, check.as_ref().ok()?.tables.as_deref()?)));
        let misfits = known.map(|(name, tables)| builder.verify_tables(name, tables));
        let misfits = misfits.collect::<Result<Vec<_>>>()?;
        Ok::<_, Error>(misfits.into_iter().flatten().collect::<Vec<_>>())
    };
    // Whatever is wrong with a declaration stays wrong.
    let wrong = |error: &Error| Found { of_config: true, ..Found::failed("streams", error) };
    match verify() {
        Ok(misfits) if misfits.is_empty() => {
            let declared = human::plural(config.streams.len() as u64, "stream");
            vec![Found::new("streams", Finding::ok(format!("{declared} declared")))]
        }
        Ok(misfits) => misfits.iter().map(wrong).collect(),
        Err(error) => vec![wrong(&error)],
    }
}

fn print(report: &Report) -> Result<()> {
    let colour = output::coloured();
    let mut table = Table::new(&["", "where", "finding"]);
    for Found { r#where, finding, .. } in &report.findings {
        let mark = match finding.severity {
            Severity::Ok => Cell::coloured("ok", Colour::Green),
            Severity::Warning => Cell::coloured("warning", Colour::Yellow),
            Severity::Error => Cell::coloured("error", Colour::Red),
        };
        let mut lines = finding.message.lines();
        table.row([mark, r#where.as_str().into(), lines.next().unwrap_or_default().into()]);
        for line in lines {
            table.row(["".into(), "".into(), line.into()]);
        }
        for (at, line) in finding.hint.iter().flat_map(|hint| hint.lines()).enumerate() {
            let arrow = if at == 0 { "→ " } else { "  " };
            table.row(["".into(), "".into(), Cell::coloured(format!("{arrow}{line}"), Colour::Cyan)]);
        }
    }
    output::line(table.render(colour))?;
    let count =
        |severity| report.findings.iter().filter(|found| found.finding.severity == severity).count() as u64;
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    output::line(match (errors, warnings) {
        (0, 0) => "\nready".to_owned(),
        (0, n) => format!("\nready, with {}", human::plural(n, "warning")),
        (n, _) => format!("\nnot ready: {}", human::plural(n, "error")),
    })
}
