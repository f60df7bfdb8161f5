//! How far the snapshot is: a bar for each table on a terminal, log lines otherwise.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use headwater_core::ports::{SourceState, TableProgress};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio_util::sync::CancellationToken;

use crate::output::human;
use crate::wiring::Connectors;

/// The bars at the bottom of the terminal; hidden where stderr is none.
pub fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    BARS.get_or_init(|| {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        MultiProgress::with_draw_target(target)
    })
}

/// How often a running snapshot is looked at, and how often anything else.
const BUSY: Duration = Duration::from_millis(250);
const IDLE: Duration = Duration::from_secs(1);
/// How often a running snapshot is logged.
const LOG: Duration = Duration::from_secs(10);

/// Shows the snapshots of all sources until `done`.
pub async fn show(connectors: Connectors, done: CancellationToken) {
    let mut shown = Shown { bars: HashMap::new(), logged: Instant::now(), running: HashMap::new() };
    let terminal = std::io::stderr().is_terminal();
    loop {
        let mut busy = false;
        for (name, connector) in &connectors {
            let status = connector.status();
            let snapshot = status.state == SourceState::Snapshot;
            busy |= snapshot;
            if terminal {
                shown.draw(name, snapshot, &status.snapshot);
            } else {
                shown.log(name, snapshot, &status.snapshot);
            }
        }
        let wait = if busy { BUSY } else { IDLE };
        if tokio::time::timeout(wait, done.cancelled()).await.is_ok() {
            return shown.clear();
        }
    }
}

struct Shown {
    bars: HashMap<(String, String), ProgressBar>,
    running: HashMap<String, Instant>,
    logged: Instant,
}

impl Shown {
    fn draw(&mut self, source: &str, snapshot: bool, tables: &[TableProgress]) {
        if !snapshot {
            self.bars.retain(|(of, _), bar| {
                let other = of != source;
                if !other {
                    bar.finish_and_clear();
                }
                other
            });
            return;
        }
        for table in tables {
            let key = (source.to_owned(), table.table.clone());
            let bar = self.bars.entry(key).or_insert_with(|| bars().add(bar(source, &table.table)));
            bar.set_length(table.estimate.unwrap_or(0).max(table.rows));
            bar.set_position(table.rows);
            if table.done && !bar.is_finished() {
                bar.finish();
            }
        }
    }

    fn log(&mut self, source: &str, snapshot: bool, tables: &[TableProgress]) {
        let since = self.running.get(source).copied();
        match (since, snapshot) {
            (None, true) => {
                tracing::info!(source, "reading the tables as they are");
                self.running.insert(source.to_owned(), Instant::now());
                self.logged = Instant::now();
            }
            (Some(since), false) => {
                tracing::info!(
                    source,
                    "every table was read, in {}",
                    human::seconds(since.elapsed().as_secs_f64())
                );
                self.running.remove(source);
            }
            (Some(_), true) if self.logged.elapsed() >= LOG => {
                self.logged = Instant::now();
                let rows: u64 = tables.iter().map(|table| table.rows).sum();
                let done = tables.iter().filter(|table| table.done).count();
                tracing::info!(
                    source,
                    "read {} so far, {done} of {} tables done",
                    human::plural(rows, "row"),
                    tables.len()
                );
            }
            _ => {}
        }
    }

    fn clear(self) {
        self.bars.values().for_each(ProgressBar::finish_and_clear);
    }
}

fn bar(source: &str, table: &str) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{prefix} {bar:30} {human_pos}/{human_len} rows {per_sec} eta {eta}");
    let bar = ProgressBar::no_length().with_prefix(format!("{source}: {table}"));
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
