//! The command line, and the help texts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Gets every change that a service commits to every other service that needs it.
#[derive(Debug, Parser)]
#[command(name = "headwater", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Begin with:\n  headwater demo               see it work, nothing to install\n  \
    headwater check my.toml      is the config right, are the servers ready\n  \
    headwater run my.toml        run it\n\n\
    Exit codes: 0 done, 1 the answer is no, 2 wrong usage or config, 3 a server said no.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything that the config names
    Run(RunArgs),
    /// Say whether the config is right and the servers are ready, and what must be mended
    Check(CheckArgs),
    /// Prepare a service's database: the outbox table, and on SQLite the triggers that capture tables
    Init(InitArgs),
    /// Drop the outbox of a service's database
    Outbox(OutboxArgs),
    /// Follow a stream
    Tail(TailArgs),
    /// Show where sources, streams and groups stand
    Status(StatusArgs),
    /// Ask for a new snapshot of a source's tables
    Snapshot(SnapshotArgs),
    /// List what is parked and why, try it again, or drop it
    Parked(Box<ParkedArgs>),
    /// Say what became of an event: whether each push has delivered it, when, and after how many tries
    Trace(TraceArgs),
    /// Run a complete small shop on SQLite in this process and watch its events arrive
    Demo(DemoArgs),
}

/// Which config.
#[derive(Debug, Args)]
pub struct ConfigArg {
    /// The config file
    #[arg(default_value = "headwater.toml")]
    pub config: PathBuf,
}

/// `headwater run`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  headwater run\n  headwater run /etc/headwater.toml --json\n\n\
    SIGTERM or Ctrl-C: what was read is published and confirmed, then it ends with 0. A second signal \
    ends it at once (130).\nNothing is lost either way: it goes on where it was.")]
pub struct RunArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub config: ConfigArg,
    /// Log JSON, one object a line, whatever `[log]` says
    #[arg(long)]
    pub json: bool,
}

/// `headwater check`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  headwater check\n  headwater check my.toml --json\n\n\
    It changes nothing. Exit codes: 0 ready (there may be warnings), 2 the config is wrong, 3 a server is \
    not ready.")]
pub struct CheckArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub config: ConfigArg,
    /// Print one JSON object: ok, findings [{where, severity, message, hint}]
    #[arg(long)]
    pub json: bool,
}

/// `headwater init`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    headwater init sqlite:///srv/shop.db --tables orders,customers\n  \
    headwater init postgres://owner@db/shop --print\n  \
    headwater init sqlite:///srv/shop.db --remove\n  \
    headwater init postgres://owner@db/shop --no-outbox --inbox --inbox-schema app\n\n\
    On SQLite it makes triggers only with --tables: without, the outbox is for a relay.\n\
    On PostgreSQL the publication and the slot are made by `headwater run`; only the outbox is made here.")]
pub struct InitArgs {
    /// The database: sqlite://PATH, postgres://USER:PASSWORD@HOST/DATABASE or mysql://USER:PASSWORD@HOST/DATABASE
    pub url: String,
    /// Print the SQL and change nothing
    #[arg(long)]
    pub print: bool,
    /// Capture these tables (SQLite)
    #[arg(long, value_delimiter = ',', value_name = "TABLE")]
    pub tables: Vec<String>,
    /// The outbox table's name
    #[arg(long, default_value = "outbox", value_name = "TABLE")]
    pub outbox: String,
    /// Make no outbox table
    #[arg(long, conflicts_with = "outbox")]
    pub no_outbox: bool,
    /// Make the tables of an inbox as well, for a service that consumes
    #[arg(long, conflicts_with = "remove")]
    pub inbox: bool,
    /// The schema that the inbox's tables are made in, which has to be there (PostgreSQL)
    #[arg(long, requires = "inbox", default_value = "public", value_name = "SCHEMA")]
    pub inbox_schema: String,
    /// Take the triggers and what they recorded away again, or the triggers of --tables alone; the
    /// outbox stays (SQLite)
    #[arg(long)]
    pub remove: bool,
    /// Print what was done as JSON
    #[arg(long)]
    pub json: bool,
}

/// `headwater outbox`.
#[derive(Debug, Args)]
pub struct OutboxArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: OutboxCommand,
}

/// What can be done to an outbox.
#[derive(Debug, Subcommand)]
pub enum OutboxCommand {
    /// Take an outbox away, with its rows and all that belongs to it
    Drop(DropArgs),
}

/// `headwater outbox drop`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  headwater outbox drop postgres://owner@db/shop\n  \
    headwater outbox drop postgres://owner@db/shop --outbox billing.outbox --print\n\n\
    Stop what publishes and what relays first. It refuses while events in it are not published.")]
pub struct DropArgs {
    /// The database: sqlite://PATH, postgres://USER:PASSWORD@HOST/DATABASE or mysql://USER:PASSWORD@HOST/DATABASE
    pub url: String,
    /// The outbox table's name
    #[arg(long, default_value = "outbox", value_name = "TABLE")]
    pub outbox: String,
    /// Drop it with the events that are not published: they are lost
    #[arg(long)]
    pub force: bool,
    /// Print the SQL and change nothing
    #[arg(long)]
    pub print: bool,
    /// Print what was done as JSON
    #[arg(long)]
    pub json: bool,
}

/// `headwater tail`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  headwater tail orders\n  headwater tail orders --from beginning --json | jq .payload\n  \
    headwater tail orders --from '10m ago' --key 42\n  headwater tail orders --group billing --limit 100\n\n\
    A line shows: when it was committed, what happened, its key, the payload, and with events that \
    arrive while it waits, how long that took since the commit."
)]
pub struct TailArgs {
    /// The stream
    pub stream: String,
    /// The config file, to find the bus
    #[arg(short, long, default_value = "headwater.toml", value_name = "FILE")]
    pub config: PathBuf,
    /// The data_dir of an embedded bus, instead of a config
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub data_dir: Option<PathBuf>,
    /// Where to begin: beginning, end, a time (2024-05-17T10:00:00Z) or a span ('10m ago')
    #[arg(long, default_value = "end", value_name = "WHERE")]
    pub from: String,
    /// Show only events with this key
    #[arg(long)]
    pub key: Option<String>,
    /// Read as a member of this group and remember how far it came
    #[arg(long)]
    pub group: Option<String>,
    /// One JSON object a line: id, stream, partition, offset, type, key, headers, payload, time, latency_ms
    #[arg(long)]
    pub json: bool,
    /// Stop after this many events
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
}

/// `headwater status`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  headwater status\n  headwater status my.toml --watch\n  headwater status --json | jq .sources\n\n\
    It asks the running process over HTTP. When none runs it reads the bus and says so."
)]
pub struct StatusArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub config: ConfigArg,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Show it again every second
    #[arg(long)]
    pub watch: bool,
}

/// `headwater snapshot`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  headwater snapshot --source shop\n  \
    headwater snapshot my.toml --source shop --table public.orders --table public.customers\n\n\
    Each row arrives again as an event with op \"read\"; streaming goes on meanwhile.")]
pub struct SnapshotArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub config: ConfigArg,
    /// The source, as the config names it
    #[arg(long)]
    pub source: String,
    /// Only this table; may be given several times
    #[arg(long = "table", value_name = "TABLE")]
    pub tables: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `headwater parked`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:\n  headwater parked\n  headwater parked show --stream orders --key 42\n  \
    headwater parked retry --stream orders --key 42\n  headwater parked drop --id 018f85d0-c334-7123-8567-89abcdef0123\n  \
    headwater parked list --inbox postgres://app@db/features\n\n\
    Mend the reason (the contract, the table, the topic's limit, the handler), then retry. What waits behind \
    an event keeps its place.")]
pub struct ParkedArgs {
    /// What to do with it; lists it unless told otherwise
    #[command(subcommand)]
    pub command: Option<ParkedCommand>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub list: WhichArgs,
}

/// What can be done with what is parked.
#[derive(Debug, Subcommand)]
pub enum ParkedCommand {
    /// List it: a line for each key, with why its first event is there
    List(WhichArgs),
    /// Show the events whole
    Show(WhichArgs),
    /// Try the first of each key again; what waits behind it follows in order
    Retry(DecideArgs),
    /// Forget the first of each key for good; what waits behind it goes on. What is only tried again (retrying) is left,
    /// unless --key or --id names it
    Drop(DecideArgs),
}

/// Which of what is parked.
#[derive(Debug, Args)]
pub struct WhichArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub config: ConfigArg,
    /// In the inbox of a consumer whose database this is (postgres://, mysql://, sqlite://), instead of what the config
    /// names
    #[arg(long, value_name = "URL")]
    pub inbox: Option<String>,
    /// The schema that the inbox's tables are in (PostgreSQL)
    #[arg(long, requires = "inbox", default_value = "public", value_name = "SCHEMA")]
    pub inbox_schema: String,
    /// Only of this source, consumer or push
    #[arg(long, visible_aliases = ["source", "consumer", "push"], value_name = "NAME")]
    pub of: Option<String>,
    /// Only of this stream
    #[arg(long)]
    pub stream: Option<String>,
    /// Only with this key
    #[arg(long)]
    pub key: Option<String>,
    /// Only where the first event has this id
    #[arg(long)]
    pub id: Option<String>,
    /// At most so many; 0 for all
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub limit: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Which of what is parked to decide about.
#[derive(Debug, Args)]
pub struct DecideArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub which: WhichArgs,
    /// All of it
    #[arg(long)]
    pub all: bool,
}

/// `headwater trace`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  headwater trace 018f85d0-c334-7123-8567-89abcdef0123\n\n\
    States: delivered, dropped (by a person), parked, retrying, waiting (behind an earlier one of its key), unknown.\n\
    Unknown is what was not read yet, is tried for the first times, or was delivered longer ago than `retention`. \
    Exit code 1: no push knows it.")]
pub struct TraceArgs {
    /// The event's id: in the header `webhook-id`, and in `headwater tail --json`
    pub id: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub config: ConfigArg,
    /// Print JSON: an array of push, state, at, attempts, error
    #[arg(long)]
    pub json: bool,
}

/// `headwater demo`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  headwater demo\n  headwater demo --events 50\n  headwater demo --rate 100 --events 5000 --json\n\n\
    A second terminal may change the shop; it arrives too:\n  \
    sqlite3 -cmd '.timeout 5000' headwater-demo/shop.db \\\n      \"update customers set email = 'me@example.com' where id = 1\"\n\n\
    With --events it ends with a summary; exit code 1 when what arrived differs from the database."
)]
pub struct DemoArgs {
    /// End after this many events, compare all that arrived with the database, and print a summary
    #[arg(long, value_name = "N")]
    pub events: Option<u64>,
    /// Business transactions a second that the shop makes
    #[arg(long, default_value_t = 2.0, value_name = "R", value_parser = rate)]
    pub rate: f64,
    /// Where the shop and the bus are; an existing demo goes on
    #[arg(long, default_value = "headwater-demo", value_name = "DIR")]
    pub dir: PathBuf,
    /// Print events and the summary as JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.01..=10_000.0).contains(&rate) { Ok(rate) } else { Err("not between 0.01 and 10000".to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn rates_are_within_reason() {
        assert_eq!(rate("2.5"), Ok(2.5));
        assert!(["0", "-1", "NaN", "x", "1e9"].into_iter().all(|text| rate(text).is_err()));
    }
}
