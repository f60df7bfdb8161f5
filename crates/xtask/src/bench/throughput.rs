//! Rows a second: the log, the snapshot, and the way into each bus.

use std::process::Stdio;
use std::time::Instant;

use headwater_testkit::servers::Kafka;
use tokio::process::Command;

use super::child::{Job, Outcome, Target};
use super::report::{Case, median};
use super::rows::{Loaded, PUBLICATION};
use super::{Throughput, Transport, process};

/// One run: how long it took and what it used.
#[derive(Debug, Clone, Copy)]
struct Run {
    seconds: f64,
    cpu: f64,
    rss: Option<f64>,
}

/// The log to a null bus, against `pg_recvlogical`.
pub async fn wal(how: &Throughput) -> Vec<Case> {
    let mut loaded = Loaded::start().await;
    let mut cases = Vec::new();
    for transaction in transactions(how) {
        loaded.clear().await;
        loaded.insert(how.rows, transaction).await;
        for transport in transports(how) {
            let goal = match (transaction, transport) {
                (1, _) => 0.9,
                (_, Transport::Tcp) => 1.0,
                (_, Transport::Unix) => 1.2,
            };
            let cpu = if transport == Transport::Tcp { ", cpu <= half" } else { "" };
            let mut turns = Turns::default();
            for _ in 0..how.rounds {
                turns.baseline.push(recvlogical(&mut loaded, transport).await);
                turns.thing.push(stream(&mut loaded, how.rows, transport, Target::Null).await);
            }
            let name = format!("wal {transport:?} {transaction}").to_lowercase();
            cases.push(turns.case(name, "pg_recvlogical", how.rows, format!("ratio >= {goal}{cpu}")));
        }
    }
    cases
}

/// The log to Kafka, against the null bus.
pub async fn kafka(how: &Throughput) -> Vec<Case> {
    let kafka = Kafka::start().await.expect("Kafka starts");
    let brokers = kafka.brokers();
    into_bus(how, "kafka", "ratio >= 0.5, rss <= 150", |run| Target::Kafka {
        brokers: brokers.clone(),
        stream: format!("bench-{run}"),
    })
    .await
}

/// The log to the embedded bus, against the null bus.
pub async fn embedded(how: &Throughput) -> Vec<Case> {
    into_bus(how, "embedded", "ratio >= 0.7", |_| Target::Embedded).await
}

async fn into_bus(how: &Throughput, name: &str, goal: &str, target: impl Fn(usize) -> Target) -> Vec<Case> {
    let mut loaded = Loaded::start().await;
    let mut cases = Vec::new();
    let mut run = 0;
    for transaction in transactions(how) {
        loaded.clear().await;
        loaded.insert(how.rows, transaction).await;
        let mut turns = Turns::default();
        for _ in 0..how.rounds {
            run += 1;
            turns.baseline.push(stream(&mut loaded, how.rows, Transport::Tcp, Target::Null).await);
            turns.thing.push(stream(&mut loaded, how.rows, Transport::Tcp, target(run)).await);
        }
        let name = format!("{name} {transaction}");
        cases.push(turns.case(name, "null bus", how.rows, goal.to_owned()));
    }
    cases
}

/// The initial snapshot, against `COPY`.
pub async fn snapshot(how: &Throughput) -> Vec<Case> {
    let mut loaded = Loaded::start().await;
    loaded.insert(how.rows, 100_000).await;
    loaded.database.execute("vacuum analyze bench").await.expect("vacuum");
    let mut cases = Vec::new();
    for transport in transports(how) {
        let mut turns = Turns::default();
        for _ in 0..how.rounds {
            turns.baseline.push(copy(&loaded, transport).await);
            turns.thing.push(read(&mut loaded, how.rows, transport).await);
        }
        let name = format!("snapshot {transport:?}").to_lowercase();
        cases.push(turns.case(name, "COPY TO STDOUT", how.rows, "ratio >= 0.5".to_owned()));
    }
    cases
}

fn transactions(how: &Throughput) -> Vec<u64> {
    if how.transaction.is_empty() { vec![100, 100_000, 1] } else { how.transaction.clone() }
}

fn transports(how: &Throughput) -> Vec<Transport> {
    if how.transport.is_empty() { vec![Transport::Tcp, Transport::Unix] } else { how.transport.clone() }
}

/// The runs of a thing and of its baseline, in turns.
#[derive(Default)]
struct Turns {
    thing: Vec<Run>,
    baseline: Vec<Run>,
}

impl Turns {
    fn case(&self, name: String, baseline: &str, rows: u64, goal: String) -> Case {
        let of = |runs: &[Run], figure: fn(&Run) -> f64| median(runs.iter().map(figure).collect());
        let ratios = self.thing.iter().zip(&self.baseline).map(|(thing, base)| base.seconds / thing.seconds);
        let mut case = Case::new(name, "rows/s", goal);
        case.rate = rows as f64 / of(&self.thing, |run| run.seconds);
        case.baseline = Some(baseline.to_owned());
        case.baseline_rate = Some(rows as f64 / of(&self.baseline, |run| run.seconds));
        case.ratio = Some(median(ratios.collect()));
        case.cpu_s = Some(of(&self.thing, |run| run.cpu));
        case.baseline_cpu_s = Some(of(&self.baseline, |run| run.cpu));
        case.rss_mib = self.thing.iter().filter_map(|run| run.rss).reduce(f64::max);
        case
    }
}

impl From<Outcome> for Run {
    fn from(outcome: Outcome) -> Self {
        Self { seconds: outcome.seconds, cpu: outcome.cpu, rss: outcome.rss_mib }
    }
}

/// Headwater's whole pipeline in a child process, from a copy of the slot to `target`.
async fn stream(loaded: &mut Loaded, rows: u64, transport: Transport, target: Target) -> Run {
    let slot = loaded.slot().await;
    let url = loaded.url(transport).to_owned();
    let outcome = Job::new(url, slot.clone(), target, rows).run().await;
    loaded.drop_slot(&slot).await;
    outcome.into()
}

/// Headwater's snapshot in a child process, to a null bus.
async fn read(loaded: &mut Loaded, rows: u64, transport: Transport) -> Run {
    let slot = "bench_snapshot".to_owned();
    let mut job = Job::new(loaded.url(transport).to_owned(), slot.clone(), Target::Null, rows);
    job.snapshot = true;
    let outcome = job.run().await;
    loaded.drop_slot(&slot).await;
    outcome.into()
}

async fn recvlogical(loaded: &mut Loaded, transport: Transport) -> Run {
    let slot = loaded.slot().await;
    let end = loaded.end().await;
    let mut command = Command::new(loaded.server.bin().join("pg_recvlogical"));
    command.args([
        "--start",
        "--no-loop",
        "-f",
        "/dev/null",
        "-P",
        "pgoutput",
        "-S",
        &slot,
        "--endpos",
        &end,
    ]);
    command.args(["-o", "proto_version=1", "-o", &format!("publication_names={PUBLICATION}")]);
    let run = timed(command.args(["-d", loaded.url(transport)])).await;
    loaded.drop_slot(&slot).await;
    run
}

async fn copy(loaded: &Loaded, transport: Transport) -> Run {
    let mut command = Command::new(loaded.server.bin().join("psql"));
    timed(command.args([loaded.url(transport), "-qc", "copy bench to stdout"])).await
}

async fn timed(command: &mut Command) -> Run {
    let (start, cpu) = (Instant::now(), process::cpu_of_children());
    let status =
        command.stdin(Stdio::null()).stdout(Stdio::null()).status().await.expect("the baseline starts");
    assert!(status.success(), "the baseline ended with {status}");
    Run { seconds: start.elapsed().as_secs_f64(), cpu: process::cpu_of_children() - cpu, rss: None }
}
