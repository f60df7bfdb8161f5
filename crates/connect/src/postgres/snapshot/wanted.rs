//! Which tables are still to be read.

use crate::postgres::setup::{CapturedTable, Listing};
use crate::postgres::state::State;
use crate::requests::SnapshotRequest;
use crate::settings::SnapshotMode;

/// What stands in [`State::snapshots`] for a table whose snapshot was asked for and is to come.
const TO_COME: u32 = 0;

/// Brings the state up to date when a source is opened. What is no longer captured is forgotten: should
/// it come back, its changes in between are missing, and it is read again. `run` is this run of Headwater.
pub fn update(state: &mut State, tables: &[CapturedTable], mode: SnapshotMode, run: &str) {
    state.snapshots.retain(|name, _| tables.iter().any(|table| table.full_name() == *name));
    match mode {
        SnapshotMode::Initial => {}
        SnapshotMode::Never => {
            for table in tables {
                let oid = state.snapshots.entry(table.full_name()).or_insert(table.oid);
                if *oid != TO_COME {
                    *oid = table.oid;
                }
            }
        }
        SnapshotMode::Always => {
            if state.run.as_deref() != Some(run) {
                state.run = Some(run.to_owned());
                state.snapshots.clear();
            }
        }
    }
}

/// Takes in how the tables are published now. Those whose entries are others than they were, and all where more
/// operations are published than were, count as unread: what happened to them meanwhile was not published, or
/// not all of it. Returns their names.
pub fn published(state: &mut State, listing: &Listing, tables: &[CapturedTable]) -> Vec<String> {
    // A checkpoint that does not say how they were tells nothing.
    let told = !state.publications.is_empty();
    let wider = listing.is_wider_than(state);
    let missed = |name: &String| wider || state.entries.get(name) != listing.entries.get(name);
    // Another table of the name, and one whose snapshot is to come, is read anyway.
    let same = |table: &CapturedTable| state.snapshots.get(&table.full_name()) == Some(&table.oid);
    let names = tables.iter().filter(|table| told && same(table)).map(CapturedTable::full_name);
    let missed: Vec<String> = names.filter(missed).collect();
    for name in &missed {
        state.snapshots.remove(name);
    }
    state.publications.clone_from(&listing.publications);
    state.operations.clone_from(&listing.operations);
    state.entries.clone_from(&listing.entries);
    missed
}

/// This table is to be read.
pub fn again(state: &mut State, table: &str) {
    state.snapshots.insert(table.to_owned(), TO_COME);
}

/// Takes in a request; says whether it is a new one.
pub fn ask(state: &mut State, tables: &[CapturedTable], request: &SnapshotRequest) -> bool {
    if state.request.as_ref() == Some(&request.id) {
        return false;
    }
    state.request = Some(request.id.clone());
    for table in tables {
        let name = table.full_name();
        let named = |asked: &String| *asked == name || table.schema == "public" && *asked == table.name;
        if request.tables.is_empty() || request.tables.iter().any(named) {
            state.snapshots.insert(name, TO_COME);
        }
    }
    true
}

/// The tables that are to be read. One that was dropped and made anew is another table.
pub fn unread(state: &State, tables: &[CapturedTable]) -> Vec<CapturedTable> {
    let read = |table: &&CapturedTable| state.snapshots.get(&table.full_name()) == Some(&table.oid);
    tables.iter().filter(|table| !read(table)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, oid: u32) -> CapturedTable {
        CapturedTable {
            oid,
            schema: "public".into(),
            name: name.into(),
            partitioned: false,
            outbox: false,
            changes: true,
            inserts_only: None,
            owned: true,
        }
    }

    fn state(snapshots: &[(&str, u32)]) -> State {
        State {
            system_id: "1".into(),
            database: "d".into(),
            timeline: 1,
            slot: "s".into(),
            epoch: 1,
            confirmed: 0,
            snapshots: snapshots.iter().map(|(name, oid)| (format!("public.{name}"), *oid)).collect(),
            ..State::default()
        }
    }

    fn names(state: &State, tables: &[CapturedTable]) -> Vec<String> {
        unread(state, tables).into_iter().map(|table| table.name).collect()
    }

    #[test]
    fn initially_what_is_new_or_another_table_is_read() {
        let mut state = state(&[("a", 1), ("b", 2), ("gone", 3)]);
        let tables = [table("a", 1), table("b", 22), table("c", 4)];
        update(&mut state, &tables, SnapshotMode::Initial, "run");
        assert_eq!(names(&state, &tables), ["b", "c"]);
        assert!(!state.snapshots.contains_key("public.gone"));
    }

    #[test]
    fn never_reads_only_what_is_asked_for_and_remembers_that() {
        let mut state = state(&[]);
        let tables = [table("a", 1), table("b", 2)];
        update(&mut state, &tables, SnapshotMode::Never, "run");
        assert!(names(&state, &tables).is_empty());
        let request = SnapshotRequest::new(vec!["public.b".into()]);
        assert!(ask(&mut state, &tables, &request));
        assert!(!ask(&mut state, &tables, &request));
        update(&mut state, &tables, SnapshotMode::Never, "another run");
        assert_eq!(names(&state, &tables), ["b"]);
    }

    #[test]
    fn always_reads_all_once_a_run() {
        let mut state = state(&[("a", 1)]);
        let tables = [table("a", 1)];
        update(&mut state, &tables, SnapshotMode::Always, "run");
        assert_eq!(names(&state, &tables), ["a"]);
        state.snapshots.insert("public.a".into(), 1);
        update(&mut state, &tables, SnapshotMode::Always, "run");
        assert!(names(&state, &tables).is_empty());
        update(&mut state, &tables, SnapshotMode::Always, "next run");
        assert_eq!(names(&state, &tables), ["a"]);
    }
}
