//! `cargo xtask bench NAME`: each bench starts the servers it needs, runs the thing and its baseline in
//! one run, alternating, and prints a table.

mod child;
mod inbox;
mod latency;
mod messaging;
mod outbox;
mod process;
mod relay;
mod report;
mod rows;
mod throughput;

use std::process::{Command, ExitCode};

use clap::{Args, Subcommand, ValueEnum};

/// A bench and how much of it.
#[derive(Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// PostgreSQL's log to a null bus with full JSON, against `pg_recvlogical` to /dev/null
    Wal(Throughput),
    /// PostgreSQL's log to Kafka, against the same to a null bus
    Kafka(Throughput),
    /// PostgreSQL's log to the embedded bus, against the same to a null bus
    Embedded(Throughput),
    /// The initial snapshot to a null bus, against `COPY ... TO STDOUT`
    Snapshot(Throughput),
    /// Commit to consumer, over Kafka and over the embedded bus
    Latency(Latency),
    /// A consumer whose handler writes one row to PostgreSQL, against the rows alone
    Inbox(Handling),
    /// CPU while nothing happens, and the time from start to the first event
    Idle(Latency),
    /// Business transactions with `publish` in them, against the same without
    Outbox(outbox::Outbox),
    /// An outbox with a backlog into Kafka, also with many done rows and beside an open transaction
    Relay(relay::Relay),
    /// One service's transaction to another's handler, by query and over Kafka, at a steady pace
    Messaging(messaging::Messaging),
    /// What the benches start as the measured process
    #[command(hide = true)]
    Child { job: String },
    /// The same, of a relay
    #[command(hide = true)]
    RelayChild { job: String },
}

/// How a throughput bench runs.
#[derive(Args, Clone)]
pub struct Throughput {
    /// Rows to load and read
    #[arg(long, alias = "events", default_value_t = 2_000_000)]
    rows: u64,
    /// Rows of a transaction; all three of the issue when left out
    #[arg(long)]
    transaction: Vec<u64>,
    /// How PostgreSQL is reached; both when left out
    #[arg(long)]
    transport: Vec<Transport>,
    /// How often the thing and its baseline take turns
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// End with one line of JSON
    #[arg(long)]
    json: bool,
}

/// How a latency bench runs.
#[derive(Args, Clone)]
pub struct Latency {
    /// How long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Commits a second
    #[arg(long, alias = "events", default_value_t = 500)]
    rate: u64,
    /// End with one line of JSON
    #[arg(long)]
    json: bool,
}

/// How the bench of handled events runs.
#[derive(Args, Clone)]
pub struct Handling {
    /// Events to handle; a tenth of them where each has a transaction of its own
    #[arg(long, default_value_t = 100_000)]
    events: u64,
    /// How often the thing and its baseline take turns
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// End with one line of JSON
    #[arg(long)]
    json: bool,
}

/// How PostgreSQL is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// TCP on the loopback interface
    Tcp,
    /// The Unix socket
    Unix,
}

/// Runs one bench. A debug build hands over to a release build: its figures would mean nothing.
pub fn run(args: BenchArgs) -> ExitCode {
    if cfg!(debug_assertions) {
        let arguments = std::env::args().skip(1);
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["run", "--release", "--quiet", "--package", "xtask", "--"]).args(arguments);
        let status = cargo.current_dir(crate::root()).status().expect("cargo starts");
        return if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let runtime = tokio::runtime::Runtime::new().expect("tokio starts");
    let json = args.bench.json();
    let cases = runtime.block_on(async {
        match args.bench {
            Bench::Wal(how) => throughput::wal(&how).await,
            Bench::Kafka(how) => throughput::kafka(&how).await,
            Bench::Embedded(how) => throughput::embedded(&how).await,
            Bench::Snapshot(how) => throughput::snapshot(&how).await,
            Bench::Latency(how) => latency::latency(&how).await,
            Bench::Idle(how) => latency::idle(&how).await,
            Bench::Inbox(how) => inbox::inbox(&how).await,
            Bench::Outbox(how) => outbox::outbox(&how).await,
            Bench::Relay(how) => relay::relay(&how).await,
            Bench::Messaging(how) => messaging::messaging(&how).await,
            Bench::RelayChild { job } => {
                relay::child(&job).await;
                Vec::new()
            }
            Bench::Child { job } => {
                child::run(&job).await;
                Vec::new()
            }
        }
    });
    if !cases.is_empty() {
        report::print(&cases, json);
    }
    ExitCode::SUCCESS
}

impl Bench {
    fn json(&self) -> bool {
        match self {
            Self::Wal(how) | Self::Kafka(how) | Self::Embedded(how) | Self::Snapshot(how) => how.json,
            Self::Inbox(how) => how.json,
            Self::Latency(how) | Self::Idle(how) => how.json,
            Self::Outbox(how) => how.json,
            Self::Relay(how) => how.json,
            Self::Messaging(how) => how.json,
            Self::Child { .. } | Self::RelayChild { .. } => false,
        }
    }
}
