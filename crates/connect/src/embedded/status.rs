//! What the bus holds and how far its groups have come, from the files alone.

use std::path::Path;
use std::sync::Arc;

use headwater_core::Result;
use headwater_core::ports::{BusStatus, GroupStatus, StreamStatus};

use super::catalog::Catalog;
use super::groups::{self, GroupCursor};
use super::segment::{self, StreamRow};
use crate::store::now;

/// Looks at everything in `dir`; `known` keeps what the last look saw of closed segments.
pub(super) fn status(dir: &Path, known: &mut Option<Catalog>) -> Result<BusStatus> {
    let catalog = match known {
        Some(catalog) => {
            catalog.refresh()?;
            catalog
        }
        none => none.insert(Catalog::open(dir)?),
    };
    let cursors = groups::cursors(dir)?;
    let mut streams = Vec::new();
    for stream in catalog.streams()? {
        streams.push(stream_status(catalog, &stream, &cursors)?);
    }
    streams.sort_by(|a, b| a.stream.cmp(&b.stream));
    let checkpoints = catalog.newest(segment::checkpoints)?;
    Ok(BusStatus { kind: "embedded".into(), streams, checkpoints, ..BusStatus::default() })
}

fn stream_status(catalog: &mut Catalog, stream: &StreamRow, cursors: &[GroupCursor]) -> Result<StreamStatus> {
    let (mut events, mut bytes, mut newest) = (0, 0, None);
    for number in stream.numbers() {
        for (_, row) in catalog.rows(number) {
            events += row.next - row.first;
            bytes += row.bytes;
            newest = newest.max(row.newest);
        }
    }
    let (moved_events, moved_bytes) = catalog.moved(stream)?;
    let mut groups: Vec<GroupStatus> = Vec::new();
    for cursor in cursors.iter().filter(|cursor| *cursor.stream == *stream.name) {
        let (lag_events, lag_seconds) = lag(catalog, stream, cursor)?;
        match groups.last_mut().filter(|known| known.group == cursor.group) {
            Some(known) => {
                known.lag_events += lag_events;
                let newer = known.lag_seconds.zip(lag_seconds).map(|(a, b)| a.max(b));
                known.lag_seconds = newer.or(known.lag_seconds).or(lag_seconds);
            }
            None => groups.push(GroupStatus { group: cursor.group.clone(), lag_events, lag_seconds }),
        }
    }
    Ok(StreamStatus {
        stream: Arc::clone(&stream.name),
        partitions: stream.partitions,
        events: events + moved_events,
        bytes: Some(bytes + moved_bytes),
        newest,
        groups,
    })
}

/// How many events a group has yet to read in a partition, and how old the first of them is.
fn lag(catalog: &mut Catalog, stream: &StreamRow, cursor: &GroupCursor) -> Result<(u64, Option<f64>)> {
    let number = stream.base + cursor.partition;
    let from = cursor.offset.max(catalog.beginning(number)?);
    let lag = catalog.end(number).saturating_sub(from);
    if lag == 0 {
        return Ok((0, Some(0.0)));
    }
    let age = |time: i64| now().saturating_sub(time).max(0) as f64 / 1e6;
    Ok((lag, catalog.time_of(number, from)?.map(age)))
}
