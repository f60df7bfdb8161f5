//! How far the snapshot is: a bar for each table on a terminal, log lines otherwise.

use std::collections::HashMap;
use std::fmt;
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use headwater_core::ports::{SourceState, TableProgress};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
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
    let mut shown = Shown::new();
    let terminal = std::io::stderr().is_terminal();
    loop {
        let mut busy = false;
        for (name, connector) in &connectors {
            let status = connector.status();
            let snapshot = status.state == SourceState::Snapshot;
            busy |= snapshot;
            if terminal {
                shown.draw(name, snapshot, &status.snapshot);
            } else if let Some(text) = shown.news(name, status.state, &status.snapshot) {
                tracing::info!(source = name, "{text}");
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
    fn new() -> Self {
        Self { bars: HashMap::new(), running: HashMap::new(), logged: Instant::now() }
    }

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
            let new = !self.bars.contains_key(&key);
            let bar = self.bars.entry(key).or_insert_with(|| bars().add(bar(source, &table.table)));
            bar.set_length(table.estimate.unwrap_or(0).max(table.rows));
            bar.set_position(table.rows);
            if new {
                // What was read before it was looked at says nothing of how fast it goes.
                bar.reset_eta();
            }
            if table.done && !bar.is_finished() {
                bar.finish();
            }
        }
    }

    /// What the log has to say of a source now.
    fn news(&mut self, source: &str, state: SourceState, tables: &[TableProgress]) -> Option<String> {
        let since = self.running.get(source).copied();
        match (since, state) {
            (None, SourceState::Snapshot) => {
                self.running.insert(source.to_owned(), Instant::now());
                self.logged = Instant::now();
                Some("reading the tables as they are".to_owned())
            }
            // Only then: one that failed in the middle goes on with them once it is open again.
            (Some(since), SourceState::Streaming) => {
                self.running.remove(source);
                Some(format!("every table was read, in {}", human::seconds(since.elapsed().as_secs_f64())))
            }
            (Some(_), SourceState::Snapshot) if self.logged.elapsed() >= LOG => {
                self.logged = Instant::now();
                let rows: u64 = tables.iter().map(|table| table.rows).sum();
                let done = tables.iter().filter(|table| table.done).count();
                let rows = human::plural(rows, "row");
                Some(format!("read {rows} so far, {done} of {} tables done", tables.len()))
            }
            _ => None,
        }
    }

    fn clear(self) {
        self.bars.values().for_each(ProgressBar::finish_and_clear);
    }
}

fn bar(source: &str, table: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {bar:30} {human_pos}/{human_len} rows{speed}");
    let bar = ProgressBar::no_length().with_prefix(format!("{source}: {table}"));
    match style {
        Ok(style) => bar.with_style(style.with_key("speed", speed)),
        Err(_) => bar,
    }
}

/// How fast it goes and how long it takes yet, once that can be told.
fn speed(state: &ProgressState, out: &mut dyn fmt::Write) {
    let rate = state.per_sec();
    if rate >= 1.0 && state.elapsed() >= Duration::from_secs(1) && !state.is_finished() {
        let left = human::seconds(state.eta().as_secs_f64());
        // A bar that cannot be written is not there.
        let _ = write!(out, ", {} a second, {left} to go", human::count(rate as u64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(table: &str, rows: u64, estimate: Option<u64>, done: bool) -> TableProgress {
        TableProgress { table: table.into(), rows, estimate, done }
    }

    #[test]
    fn each_table_has_a_bar_while_it_is_read() {
        let mut shown = Shown::new();
        let at = |shown: &Shown, source: &str, table: &str| {
            let bar = &shown.bars[&(source.to_owned(), table.to_owned())];
            (bar.position(), bar.length(), bar.is_finished())
        };
        shown.draw("shop", true, &[table("a", 5, Some(100), false), table("b", 7, None, false)]);
        shown.draw("crm", true, &[table("a", 1, Some(10), false)]);
        assert_eq!(at(&shown, "shop", "a"), (5, Some(100), false));
        assert_eq!(at(&shown, "shop", "b"), (7, Some(7), false), "nobody knows how many there are");
        let speed = shown.bars[&("shop".to_owned(), "a".to_owned())].per_sec();
        assert!(speed < 1.0, "{speed}: what was read before it was looked at does not count");
        shown.draw("shop", true, &[table("a", 120, Some(100), true), table("b", 9, None, false)]);
        assert_eq!(at(&shown, "shop", "a"), (120, Some(120), true), "more than was estimated");
        shown.draw("shop", false, &[]);
        assert_eq!(shown.bars.len(), 1);
        assert_eq!(at(&shown, "crm", "a"), (1, Some(10), false));
    }

    #[test]
    fn the_log_says_when_it_begins_and_when_all_is_read() {
        let mut shown = Shown::new();
        let tables = [table("a", 1200, Some(2000), true), table("b", 34, None, false)];
        let news = |shown: &mut Shown, state| shown.news("shop", state, &tables);
        assert_eq!(news(&mut shown, SourceState::Connecting), None);
        let began = news(&mut shown, SourceState::Snapshot);
        assert_eq!(began.as_deref(), Some("reading the tables as they are"));
        assert_eq!(news(&mut shown, SourceState::Snapshot), None);
        shown.logged = Instant::now().checked_sub(LOG).unwrap();
        let so_far = news(&mut shown, SourceState::Snapshot);
        assert_eq!(so_far.as_deref(), Some("read 1,234 rows so far, 1 of 2 tables done"));
        // A failure in between.
        for state in [SourceState::Closed, SourceState::Connecting, SourceState::Snapshot] {
            assert_eq!(news(&mut shown, state), None, "{state:?}");
        }
        let ended = news(&mut shown, SourceState::Streaming).unwrap();
        assert!(ended.starts_with("every table was read, in "), "{ended}");
        assert_eq!(news(&mut shown, SourceState::Streaming), None);
    }
}
