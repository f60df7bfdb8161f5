//! Was every committed change delivered, once in effect, in order?
//!
//! The load writes down what it committed, per stream and key, in the same transactions ([`crate::load`]).
//! The checker holds what arrived against that: per key, the first deliveries must be exactly the history.

use std::collections::HashMap;
use std::fmt::Write as _;

/// What happened to a key: the op's word, and the version that the row then had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// `create`, `update`, `delete`, `truncate`; `event` of an outbox. A snapshot's `read` is a step only in
    /// a history, of a row that stood there before the load; delivered, it must agree with the last step.
    pub op: String,
    /// The row's version after it; delivered deletes carry none.
    pub version: Option<i64>,
}

/// What was committed: the steps of each stream's keys, in order.
pub type History = HashMap<(String, i64), Vec<Step>>;

/// A delivered event.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its stream.
    pub stream: &'a str,
    /// Its partition.
    pub partition: u32,
}

/// Watches deliveries.
#[derive(Debug, Default)]
pub struct Checker {
    streams: HashMap<String, HashMap<i64, Key>>,
    ids: HashMap<String, (i64, usize)>,
    /// The keys that a truncation of a partition emptied, by its id.
    truncated: HashMap<(String, u32), Vec<i64>>,
    problems: Vec<String>,
    seen: usize,
    reads: usize,
    repeated: usize,
}

#[derive(Debug, Default)]
struct Key {
    partition: Option<u32>,
    /// The version that a snapshot read before the first step came.
    found: Option<i64>,
    steps: Vec<Step>,
    last: Option<usize>,
}

impl Key {
    /// The version of its row, as far as is known: a snapshot that was cut off is taken again, and by then
    /// the changes of its keys have all arrived.
    fn version(&self) -> Option<i64> {
        self.steps.last().map_or(self.found, |last| last.version)
    }

    /// Whether its row is there.
    fn stands(&self) -> bool {
        self.steps.last().map_or(self.found.is_some(), |last| !matches!(&*last.op, "delete" | "truncate"))
    }
}

impl Checker {
    /// One delivered event of a key, in the order its partition gave it.
    pub fn see(&mut self, seen: Seen<'_>, key: i64, step: Step) {
        self.seen += 1;
        let stream = self.streams.entry(seen.stream.to_owned()).or_default();
        let state = stream.entry(key).or_default();
        let last = state.partition.replace(seen.partition);
        if let Some(last) = last.filter(|last| *last != seen.partition) {
            let moved = format!("came in partition {}, and before in {last}", seen.partition);
            self.problems.push(format!("{} {key}: {moved}", seen.stream));
        }
        if step.op == "read" {
            self.reads += 1;
            if state.steps.is_empty() && state.found.is_none() {
                state.found = step.version;
            } else if !state.stands() || state.version() != step.version {
                let last = state.steps.last();
                self.problems.push(format!("{} {key}: after {last:?} came {step:?}", seen.stream));
            }
            return;
        }
        let at = match self.ids.get(seen.id) {
            Some((known, at)) => {
                self.repeated += 1;
                if *known != key || state.steps.get(*at) != Some(&step) {
                    let again = format!("id {} came again with another content", seen.id);
                    self.problems.push(format!("{again}: {} {key}, {step:?}", seen.stream));
                    return;
                }
                *at
            }
            None => {
                state.steps.push(step);
                self.ids.insert(seen.id.to_owned(), (key, state.steps.len() - 1));
                state.steps.len() - 1
            }
        };
        // A repeat may jump back, as after a restart; from there on it goes step by step.
        if let Some(last) = state.last.filter(|last| at > last + 1) {
            let gap = format!("after step {last} came step {at}: a repeat out of order");
            self.problems.push(format!("{} {key}: {gap}", seen.stream));
        }
        state.last = Some(at);
    }

    /// A delivered truncation of a partition: a step of each key that stands in it.
    pub fn truncate(&mut self, seen: Seen<'_>) {
        let id = (seen.id.to_owned(), seen.partition);
        let keys = self.truncated.get(&id).cloned().unwrap_or_else(|| {
            let keys = self.streams.get(seen.stream).into_iter().flatten();
            let there = keys.filter(|(_, key)| key.partition == Some(seen.partition) && key.stands());
            there.map(|(key, _)| *key).collect()
        });
        self.truncated.insert(id, keys.clone());
        for key in keys {
            let id = format!("{} of {key}", seen.id);
            self.see(Seen { id: &id, ..seen }, key, Step { op: "truncate".into(), version: None });
        }
    }

    /// How many different events arrived; a truncation counts for each key.
    pub fn distinct(&self) -> usize {
        self.ids.len()
    }

    /// How many deliveries there were, repeats and rows of snapshots among them.
    pub fn seen(&self) -> usize {
        self.seen
    }

    /// How many rows of snapshots arrived.
    pub fn reads(&self) -> usize {
        self.reads
    }

    /// How many deliveries were repeats.
    pub fn repeated(&self) -> usize {
        self.repeated
    }

    /// Whether as much arrived as was committed.
    pub fn has_all(&self, history: &History) -> bool {
        history.iter().all(|(key, committed)| {
            let (found, committed) = split(committed);
            let arrived = self.key(key);
            let steps = arrived.map_or(0, |key| key.steps.len());
            steps >= committed.len() && (steps > 0 || found.is_none() || arrived.is_some())
        })
    }

    /// Compares with what was committed, per key in commit order; the error lists what differs.
    pub fn compare(&self, history: &History) -> Result<(), String> {
        let mut problems = self.problems.clone();
        for (key, steps) in history {
            let nothing = Key::default();
            let difference = difference(steps, self.key(key).unwrap_or(&nothing));
            problems.extend(difference.map(|text| format!("{} {}: {text}", key.0, key.1)));
        }
        for (stream, keys) in &self.streams {
            let unknown = keys.keys().filter(|key| !history.contains_key(&(stream.clone(), **key)));
            problems.extend(unknown.map(|key| format!("{stream} {key} arrived but was never committed")));
        }
        if problems.is_empty() {
            return Ok(());
        }
        let mut text = format!("{} problems among {} deliveries:", problems.len(), self.seen);
        problems.iter().take(20).for_each(|problem| {
            let _ = write!(text, "\n  {problem}");
        });
        Err(text)
    }

    fn key(&self, (stream, key): &(String, i64)) -> Option<&Key> {
        self.streams.get(stream)?.get(key)
    }
}

/// What stood there before the load, which only snapshots bring, and the changes since.
fn split(committed: &[Step]) -> (Option<i64>, &[Step]) {
    match committed.split_first() {
        Some((first, changes)) if first.op == "read" => (first.version, changes),
        _ => (None, committed),
    }
}

fn difference(committed: &[Step], arrived: &Key) -> Option<String> {
    let (found, committed) = split(committed);
    let steps = &arrived.steps;
    // Where changes came first, the snapshot that read the row came later: it agreed with them.
    let unread = steps.is_empty() && found != arrived.found;
    if unread || arrived.found.is_some_and(|version| found != Some(version)) {
        return Some(format!("stood there as {found:?}, arrived as {:?}", arrived.found));
    }
    let gone = |step: &Step| step.version.is_none() && matches!(&*step.op, "delete" | "truncate");
    let same = |(a, b): (&Step, &Step)| a.op == b.op && (gone(b) || a.version == b.version);
    let at = committed.iter().zip(steps).position(|pair| !same(pair));
    if at.is_none() && committed.len() == steps.len() {
        return None;
    }
    let at = at.unwrap_or_else(|| committed.len().min(steps.len()));
    Some(format!(
        "{} committed, {} arrived; step {at} should be {:?} and is {:?}",
        committed.len(),
        steps.len(),
        committed.get(at),
        steps.get(at)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(op: &str, version: i64) -> Step {
        Step { op: op.into(), version: (op != "delete").then_some(version) }
    }

    fn history() -> History {
        let steps = [("create", 1), ("update", 2), ("delete", 3), ("create", 4)];
        let steps = steps.map(|(op, version)| Step { op: op.into(), version: Some(version) });
        History::from([(("s".to_owned(), 7), steps.to_vec())])
    }

    /// The same, of a row that was there.
    fn found() -> History {
        let mut history = history();
        history.values_mut().for_each(|steps| steps[0].op = "read".into());
        history
    }

    fn seen(id: &str) -> Seen<'_> {
        Seen { id, stream: "s", partition: 0 }
    }

    fn seeing(steps: &[(&str, &str, i64)]) -> Checker {
        let mut checker = Checker::default();
        steps.iter().for_each(|(id, op, version)| checker.see(seen(id), 7, step(op, *version)));
        checker
    }

    const ALL: [(&str, &str, i64); 4] =
        [("a", "create", 1), ("b", "update", 2), ("c", "delete", 0), ("d", "create", 4)];

    const READ: (&str, &str, i64) = ("r", "read", 1);

    #[test]
    fn the_history_and_a_repeated_suffix_pass() {
        assert_eq!(seeing(&ALL).compare(&history()), Ok(()));
        let repeated = [ALL[0], ALL[1], ALL[0], ALL[1], ALL[2], ALL[3]];
        assert_eq!(seeing(&repeated).compare(&history()), Ok(()));
    }

    #[test]
    fn what_is_lost_extra_swapped_or_changed_fails() {
        let cases = [
            ("lost at the end", vec![ALL[0], ALL[1], ALL[2]]),
            ("lost in the middle", vec![ALL[0], ALL[2], ALL[3]]),
            ("swapped", vec![ALL[1], ALL[0], ALL[2], ALL[3]]),
            ("extra", vec![ALL[0], ALL[1], ALL[2], ALL[3], ("e", "update", 5)]),
            ("repeated under another id", vec![ALL[0], ("x", "create", 1), ALL[1], ALL[2], ALL[3]]),
            ("same id, other content", vec![ALL[0], ("a", "update", 2), ALL[1], ALL[2], ALL[3]]),
            ("a repeat with a gap", vec![ALL[0], ALL[1], ALL[2], ALL[0], ALL[2], ALL[3]]),
            ("a row that was not there", vec![READ, ALL[0], ALL[1], ALL[2], ALL[3]]),
        ];
        for (name, steps) in cases {
            assert!(seeing(&steps).compare(&history()).is_err(), "{name}");
        }
    }

    #[test]
    fn a_change_without_its_version_or_a_key_that_moves_fails() {
        let mut checker = seeing(&ALL[..1]);
        checker.see(seen("b"), 7, Step { op: "update".into(), version: None });
        ALL[2..].iter().for_each(|(id, op, version)| checker.see(seen(id), 7, step(op, *version)));
        assert!(checker.compare(&history()).is_err(), "an update without its row");
        let mut checker = seeing(&ALL[..3]);
        checker.see(Seen { partition: 1, ..seen("d") }, 7, step("create", 4));
        assert!(checker.compare(&history()).is_err(), "another partition");
    }

    #[test]
    fn a_row_that_was_there_is_read_or_its_changes_came() {
        let changes = &ALL[1..];
        for (name, steps) in [
            ("read", [&[READ], changes].concat()),
            ("read again", [&[READ, READ], changes].concat()),
            ("read after its first change", [changes, &[("s", "read", 4)]].concat()),
            ("never read", changes.to_vec()),
        ] {
            let checker = seeing(&steps);
            assert_eq!(checker.compare(&found()), Ok(()), "{name}");
            assert!(checker.has_all(&found()), "{name}");
        }
        let unchanged =
            History::from([(("s".to_owned(), 7), found().into_values().flatten().take(1).collect())]);
        assert_eq!(seeing(&[READ]).compare(&unchanged), Ok(()));
        assert!(!seeing(&[]).has_all(&unchanged));
        assert!(seeing(&[]).compare(&unchanged).is_err(), "never arrived");
        assert!(
            seeing(&[("r", "read", 2), ALL[2], ALL[3]]).compare(&found()).is_err(),
            "a change is missing"
        );
        assert!(seeing(&[READ, ("r", "read", 2)]).compare(&unchanged).is_err(), "another version");
    }

    #[test]
    fn a_read_must_agree_with_what_came_before() {
        let mut checker = seeing(&ALL);
        checker.see(seen("r"), 7, step("read", 4));
        assert_eq!(checker.compare(&history()), Ok(()));
        checker.see(seen("s"), 7, step("read", 2));
        assert!(checker.compare(&history()).is_err());
        let mut checker = seeing(&ALL[..3]);
        checker.see(seen("r"), 7, step("read", 3));
        assert!(checker.compare(&history()).is_err(), "read after its delete");
    }

    #[test]
    fn a_truncation_is_a_step_of_what_stands_in_its_partition() {
        let line = |op: &str, version| Step { op: op.into(), version: Some(version) };
        let steps = vec![line("create", 1), line("truncate", 2), line("create", 3)];
        let history = History::from([
            (("s".to_owned(), 7), steps),
            (("s".to_owned(), 8), vec![line("create", 1)]),
            (("s".to_owned(), 9), vec![line("create", 1), line("delete", 2)]),
        ]);
        let watch = |truncations: usize| {
            let mut checker = seeing(&[("a", "create", 1)]);
            checker.see(Seen { partition: 1, ..seen("b") }, 8, step("create", 1));
            checker.see(seen("c"), 9, step("create", 1));
            checker.see(seen("d"), 9, step("delete", 2));
            (0..truncations).for_each(|_| checker.truncate(seen("t")));
            checker.see(seen("e"), 7, step("create", 3));
            checker
        };
        assert_eq!(watch(1).compare(&history), Ok(()));
        assert!(watch(0).compare(&history).is_err());
        // What came after it is not touched when it comes again.
        let mut again = watch(2);
        assert_eq!(again.compare(&history), Ok(()));
        again.truncate(seen("t"));
        again.see(seen("e"), 7, step("create", 3));
        assert_eq!(again.compare(&history), Ok(()));
        again.truncate(seen("u"));
        assert!(again.compare(&history).is_err());
    }

    #[test]
    fn a_key_never_committed_fails() {
        let mut checker = seeing(&ALL);
        checker.see(seen("z"), 8, step("create", 1));
        assert!(checker.compare(&history()).is_err());
    }
}
