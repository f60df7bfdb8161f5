//! Was every committed change delivered, once in effect, in order?
//!
//! The load writes down what it committed, per key, in the same transactions ([`crate::load`]). The
//! checker holds what arrived against that: per key, the first deliveries must be exactly the history.

use std::collections::HashMap;
use std::fmt::Write as _;

/// What happened to a key: the op's word, and the version that the row then had (deletes carry none).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// `create`, `update`, `delete`; a snapshot's `read` is no step, but must agree with the last one.
    pub op: String,
    /// The row's version after it.
    pub version: Option<i64>,
}

/// Watches deliveries.
#[derive(Debug, Default)]
pub struct Checker {
    keys: HashMap<i64, Key>,
    ids: HashMap<String, (i64, usize)>,
    problems: Vec<String>,
    seen: usize,
    repeated: usize,
}

#[derive(Debug, Default)]
struct Key {
    steps: Vec<Step>,
    last: Option<usize>,
}

impl Checker {
    /// One delivered event, in the order its partition gave it.
    pub fn see(&mut self, id: &str, key: i64, step: Step) {
        self.seen += 1;
        let state = self.keys.entry(key).or_default();
        if step.op == "read" {
            // A snapshot that was cut off is taken again: by then its key's changes have all arrived.
            let last = state.steps.last();
            if last.is_none_or(|last| last.op == "delete" || last.version != step.version) {
                self.problems.push(format!("key {key}: after {last:?} came {step:?}"));
            }
            return;
        }
        let at = match self.ids.get(id) {
            Some((known, at)) => {
                self.repeated += 1;
                if *known != key || state.steps.get(*at) != Some(&step) {
                    self.problems
                        .push(format!("id {id} came again with another content: key {key}, {step:?}"));
                    return;
                }
                *at
            }
            None => {
                state.steps.push(step);
                self.ids.insert(id.to_owned(), (key, state.steps.len() - 1));
                state.steps.len() - 1
            }
        };
        // A repeat may jump back, as after a restart; from there on it goes step by step.
        if state.last.is_some_and(|last| at > last + 1) {
            let last = state.last;
            self.problems
                .push(format!("key {key}: after step {last:?} came step {at}: a repeat out of order"));
        }
        state.last = Some(at);
    }

    /// How many different events arrived.
    pub fn distinct(&self) -> usize {
        self.ids.len()
    }

    /// How many deliveries were repeats.
    pub fn repeated(&self) -> usize {
        self.repeated
    }

    /// Compares with what was committed, per key in commit order; the error lists what differs.
    pub fn compare(&self, history: &HashMap<i64, Vec<Step>>) -> Result<(), String> {
        let mut problems = self.problems.clone();
        for (key, steps) in history {
            let arrived = self.keys.get(key).map_or(&[][..], |key| &key.steps);
            problems.extend(difference(*key, steps, arrived));
        }
        let unknown = self.keys.keys().filter(|key| !history.contains_key(key));
        problems.extend(unknown.map(|key| format!("key {key} arrived but was never committed")));
        if problems.is_empty() {
            return Ok(());
        }
        let mut text = format!("{} problems among {} deliveries:", problems.len(), self.seen);
        problems.iter().take(20).for_each(|problem| {
            let _ = write!(text, "\n  {problem}");
        });
        Err(text)
    }
}

fn difference(key: i64, committed: &[Step], arrived: &[Step]) -> Option<String> {
    let same = |(a, b): (&Step, &Step)| a.op == b.op && (b.version.is_none() || a.version == b.version);
    let at = committed.iter().zip(arrived).position(|pair| !same(pair));
    if at.is_none() && committed.len() == arrived.len() {
        return None;
    }
    let at = at.unwrap_or_else(|| committed.len().min(arrived.len()));
    Some(format!(
        "key {key}: {} committed, {} arrived; step {at} should be {:?} and is {:?}",
        committed.len(),
        arrived.len(),
        committed.get(at),
        arrived.get(at)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(op: &str, version: i64) -> Step {
        Step { op: op.into(), version: (op != "delete").then_some(version) }
    }

    fn history() -> HashMap<i64, Vec<Step>> {
        let steps = [("create", 1), ("update", 2), ("delete", 3), ("create", 4)];
        HashMap::from([(
            7,
            steps.map(|(op, version)| Step { op: op.into(), version: Some(version) }).to_vec(),
        )])
    }

    fn seeing(steps: &[(&str, &str, i64)]) -> Checker {
        let mut checker = Checker::default();
        steps.iter().for_each(|(id, op, version)| checker.see(id, 7, step(op, *version)));
        checker
    }

    const ALL: [(&str, &str, i64); 4] =
        [("a", "create", 1), ("b", "update", 2), ("c", "delete", 0), ("d", "create", 4)];

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
        ];
        for (name, steps) in cases {
            assert!(seeing(&steps).compare(&history()).is_err(), "{name}");
        }
    }

    #[test]
    fn a_read_must_agree_with_what_came_before() {
        let mut checker = seeing(&ALL);
        checker.see("r", 7, step("read", 4));
        assert_eq!(checker.compare(&history()), Ok(()));
        checker.see("s", 7, step("read", 2));
        assert!(checker.compare(&history()).is_err());
    }

    #[test]
    fn a_key_never_committed_fails() {
        let mut checker = seeing(&ALL);
        checker.see("z", 8, step("create", 1));
        assert!(checker.compare(&history()).is_err());
    }
}
