//! Where a source goes on, and whether the database is still the one it was reading.

use headwater_core::{Checkpoint, Error, Kind, Result};
use rusqlite::Connection;

use super::capture::Setup;
use super::layout;
use super::reader::still_has;
use super::state::State;
use crate::requests::SnapshotRequest;

/// Where a source goes on.
pub struct Resumed {
    /// The epoch of its positions.
    pub epoch: u64,
    /// The place of the last thing handed out: a change's id, and the number of reads behind it.
    pub place: (u64, u64),
    /// What it remembers.
    pub state: State,
}

/// Finds the place behind `from`. A database that is not the one it tells of is a hole, unless an
/// operator asked for the snapshot that repairs it.
pub fn resume(
    setup: &Setup,
    conn: &Connection,
    from: Option<&Checkpoint>,
    request: Option<&SnapshotRequest>,
) -> Result<Resumed> {
    let fresh = |epoch| {
        let state = State { system_id: layout::system_id(conn)?, ..State::default() };
        Ok(Resumed { epoch, place: (0, 0), state })
    };
    let Some(from) = from else {
        return fresh(1);
    };
    let state = State::of(from)?;
    let [id, read, _] = from.position.numbers();
    let Some(problem) = replaced(conn, &state, id)? else {
        return Ok(Resumed { epoch: from.position.epoch(), place: (id, read), state });
    };
    // A snapshot of all tables that was asked for and not yet followed repairs it: each may have a hole.
    let repairs =
        |request: &SnapshotRequest| request.tables.is_empty() && state.request.as_ref() != Some(&request.id);
    if request.is_some_and(repairs) {
        tracing::warn!(source = setup.name, "starting anew, by a snapshot: {problem}");
        return fresh(from.position.epoch() + 1);
    }
    let what = format!("{} was replaced by another copy: {problem}", setup.config.path.display());
    Err(Error::new(Kind::Hole, what).hint(format!(
        "put the right file back; or repair: `headwater snapshot --source {}`, without --table, reads every \
         table anew",
        setup.name
    )))
}

/// Why the database is not the one that `state` tells of, read up to change `id`; `None` when it is.
pub fn replaced(conn: &Connection, state: &State, id: u64) -> Result<Option<String>> {
    let system_id = match layout::system_id(conn) {
        Err(_) if !layout::installed(conn)? => return Ok(Some("it has no change table".to_owned())),
        found => found?,
    };
    if state.system_id != system_id {
        let what = "it is another database than the one this source was reading, or it was set up anew";
        return Ok(Some(what.to_owned()));
    }
    let newest = layout::newest(conn)?;
    if newest < id {
        return Ok(Some(format!("its newest change is {newest}, but {id} was read already")));
    }
    match state.anchor {
        Some(anchor) if !still_has(conn, anchor)? => {
            Ok(Some(format!("change {}, the last one read, is missing or another one", anchor.id)))
        }
        _ => Ok(None),
    }
}
