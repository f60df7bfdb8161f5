//! Groups: which member reads which partition, and how far the group has come in it.
//!
//! All of it stands in `groups.db`, which every process may write. A member says at each heartbeat that
//! it is there, lets go what is more than its share, and takes what is free. Each change of hands raises
//! the partition's epoch, and a commit must bring the epoch of its lease.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use headwater_core::ports::Cursor;
use headwater_core::{Error, Kind, Micros, Result, murmur2};
use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use super::segment;
use crate::store::{self, Access, SqlExt};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS member (
    group_name TEXT NOT NULL,
    member INTEGER NOT NULL,
    streams TEXT NOT NULL, -- a JSON array
    seen INTEGER NOT NULL, -- its last heartbeat, microseconds since 1970
    PRIMARY KEY (group_name, member)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cursor (
    group_name TEXT NOT NULL,
    stream TEXT NOT NULL,
    partition INTEGER NOT NULL,
    offset INTEGER NOT NULL, -- the next event to read
    epoch INTEGER NOT NULL, -- rises with every change of hands
    owner INTEGER, -- the member that holds it
    PRIMARY KEY (group_name, stream, partition)
) STRICT, WITHOUT ROWID;";

const DOING: &str = "sharing a group's partitions";

/// A partition of a stream, by the stream's place in the member's list.
pub(super) type Seat = (usize, u32);

/// What a heartbeat changed for its member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Gained { seat: Seat, epoch: u64, offset: u64 },
    Lost { seat: Seat, epoch: u64 },
}

/// How far a group has come in one partition.
pub(super) struct GroupCursor {
    pub(super) group: String,
    pub(super) stream: String,
    pub(super) partition: u32,
    pub(super) offset: u64,
}

/// One member of a group.
pub(super) struct Member {
    connection: Connection,
    group: String,
    id: i64,
    lease: Micros,
    /// The streams it reads, with their partitions.
    streams: Vec<(Arc<str>, u32)>,
    held: BTreeMap<Seat, u64>,
    version: i64,
    /// Who was in the group at the last heartbeat.
    members: Vec<i64>,
}

/// Opens `groups.db`, making it where it is not there.
fn open(dir: &Path) -> Result<Connection> {
    let connection = store::open(&dir.join("groups.db"), Access::Create)?;
    let make = || -> rusqlite::Result<()> {
        store::write_ahead(&connection)?;
        // What a crash of the machine takes from the end of a cursor's way is read again: at least once, as
        // promised.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.execute_batch(SCHEMA)
    };
    make().sql("opening groups.db")?;
    Ok(connection)
}

/// Writes where a group begins, durably: one that began at the end and forgot it in a crash of the machine
/// would begin at a later end.
fn begin(connection: &Connection, group: &str, fresh: &[(&str, u32, u64)]) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", "FULL")?;
    let on = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    for (stream, partition, offset) in fresh {
        let sql = "INSERT OR IGNORE INTO cursor VALUES (?, ?, ?, ?, 0, NULL)";
        on.prepare_cached(sql)?.execute(params![group, stream, partition, offset])?;
    }
    on.commit()?;
    connection.pragma_update(None, "synchronous", "NORMAL")
}

/// The cursors of all groups.
pub(super) fn cursors(dir: &Path) -> Result<Vec<GroupCursor>> {
    let path = dir.join("groups.db");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let connection = store::open(&path, Access::Read)?;
    let read = || -> rusqlite::Result<Vec<GroupCursor>> {
        let sql = "SELECT group_name, stream, partition, offset FROM cursor ORDER BY 1, 2, 3";
        let mut statement = connection.prepare(sql)?;
        let cursor = |row: &rusqlite::Row<'_>| {
            let (group, stream) = (row.get(0)?, row.get(1)?);
            Ok(GroupCursor { group, stream, partition: row.get(2)?, offset: row.get(3)? })
        };
        statement.query_map([], cursor)?.collect()
    };
    read().sql("reading groups.db")
}

impl Member {
    /// A new member of `group`. `start` gives the offset for a partition that the group has no cursor
    /// for, which it has from then on: what is published next is not passed over, whoever reads it.
    pub(super) fn join(
        dir: &Path,
        group: &str,
        lease: Micros,
        streams: Vec<(Arc<str>, u32)>,
        mut start: impl FnMut(Seat) -> Result<u64>,
    ) -> Result<Self> {
        let connection = open(dir)?;
        let mut fresh = Vec::new();
        for (index, (stream, partitions)) in streams.iter().enumerate() {
            for partition in 0..*partitions {
                let sql = "SELECT 1 FROM cursor WHERE group_name = ? AND stream = ? AND partition = ?";
                let known = connection.prepare_cached(sql);
                let known = known.and_then(|mut known| known.exists(params![group, &**stream, partition]));
                if !known.sql(DOING)? {
                    fresh.push((&**stream, partition, start((index, partition))?));
                }
            }
        }
        if !fresh.is_empty() {
            begin(&connection, group, &fresh).sql(DOING)?;
            segment::sync_dir(dir)?;
        }
        let id = i64::from(rand::random::<u32>()) << 16 | i64::from(std::process::id() & 0xffff);
        let (group, held, members) = (group.to_owned(), BTreeMap::new(), Vec::new());
        Ok(Self { connection, group, id, lease, streams, held, version: -1, members })
    }

    /// Says that it is there, and gives and takes partitions.
    pub(super) fn beat(&mut self, now: Micros) -> Result<Vec<Change>> {
        let behavior = TransactionBehavior::Immediate;
        let transaction = Transaction::new_unchecked(&self.connection, behavior).sql(DOING)?;
        let mut held = self.held.clone();
        let members = self.say_here(&transaction, now).sql(DOING)?;
        let mut changes = Vec::new();
        for index in 0..self.streams.len() {
            self.share(&transaction, index, &members, &mut held, &mut changes).sql(DOING)?;
        }
        transaction.commit().sql(DOING)?;
        self.held = held;
        self.members = members.into_keys().collect();
        Ok(changes)
    }

    /// Writes its own heartbeat, forgets the dead, and returns who is there and what each reads.
    fn say_here(&self, on: &Transaction<'_>, now: Micros) -> rusqlite::Result<BTreeMap<i64, Vec<String>>> {
        let names: Vec<&str> = self.streams.iter().map(|(name, _)| &**name).collect();
        let sql = "INSERT OR REPLACE INTO member VALUES (?, ?, ?, ?)";
        let streams = serde_json::Value::from(names).to_string();
        on.prepare_cached(sql)?.execute(params![self.group, self.id, streams, now])?;
        let sql = "DELETE FROM member WHERE group_name = ? AND seen < ?";
        on.prepare_cached(sql)?.execute(params![self.group, now.saturating_sub(self.lease)])?;
        let sql = "UPDATE cursor SET owner = NULL WHERE group_name = ?1 AND owner IS NOT NULL
            AND owner NOT IN (SELECT member FROM member WHERE group_name = ?1)";
        on.prepare_cached(sql)?.execute([&self.group])?;
        let mut statement = on.prepare_cached("SELECT member, streams FROM member WHERE group_name = ?")?;
        let member = |row: &rusqlite::Row<'_>| {
            let streams = serde_json::from_str(row.get_ref(1)?.as_str()?).unwrap_or_default();
            Ok((row.get(0)?, streams))
        };
        statement.query_map([&self.group], member)?.collect()
    }

    /// Gives and takes partitions of one stream.
    fn share(
        &self,
        on: &Transaction<'_>,
        index: usize,
        members: &BTreeMap<i64, Vec<String>>,
        held: &mut BTreeMap<Seat, u64>,
        changes: &mut Vec<Change>,
    ) -> rusqlite::Result<()> {
        let Some((stream, partitions)) = self.streams.get(index) else { return Ok(()) };
        let sql = "SELECT partition, offset, epoch, owner FROM cursor WHERE group_name = ? AND stream = ?";
        let mut statement = on.prepare_cached(sql)?;
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
        let rows = statement.query_map(params![self.group, &**stream], row)?;
        let mut rows: Vec<(u32, u64, u64, Option<i64>)> = rows.collect::<rusqlite::Result<_>>()?;
        let set =
            "UPDATE cursor SET owner = ?, epoch = ? WHERE group_name = ? AND stream = ? AND partition = ?";
        let mut set = on.prepare_cached(set)?;
        for (partition, _, epoch, owner) in &mut rows {
            let seat = (index, *partition);
            if let Some(known) = held.get(&seat).copied()
                && (known != *epoch || *owner != Some(self.id))
            {
                held.remove(&seat);
                changes.push(Change::Lost { seat, epoch: known });
            }
            // Its own by the file, but it does not know: it forgot what it held when its lease ran out, or
            // never heard that a heartbeat was written. Nobody else could take it.
            if *owner == Some(self.id) && !held.contains_key(&seat) {
                set.execute(params![None::<i64>, *epoch, self.group, &**stream, *partition])?;
                *owner = None;
            }
        }
        let readers: Vec<i64> = members
            .iter()
            .filter(|(_, streams)| streams.iter().any(|name| **name == **stream))
            .map(|(member, _)| *member)
            .collect();
        let share = share_of(&readers, self.id, stream, *partitions);
        let mine: Vec<Seat> = held.range((index, 0)..(index + 1, 0)).map(|(seat, _)| *seat).collect();
        for seat in mine.iter().skip(share) {
            if let Some(epoch) = held.remove(seat) {
                set.execute(params![None::<i64>, epoch, self.group, &**stream, seat.1])?;
                changes.push(Change::Lost { seat: *seat, epoch });
            }
        }
        let free = rows.iter().filter(|(.., owner)| owner.is_none());
        for (partition, offset, epoch, _) in free.take(share.saturating_sub(mine.len())) {
            let (seat, epoch) = ((index, *partition), epoch + 1);
            set.execute(params![self.id, epoch, self.group, &**stream, partition])?;
            held.insert(seat, epoch);
            changes.push(Change::Gained { seat, epoch, offset: *offset });
        }
        Ok(())
    }

    /// Whether a heartbeat is called for before its time: somebody came or went, or a partition is free.
    pub(super) fn is_stirred(&mut self) -> Result<bool> {
        let version = self.connection.prepare_cached("PRAGMA data_version");
        let version: i64 = version.and_then(|mut ask| ask.query_row([], |row| row.get(0))).sql(DOING)?;
        if version == self.version {
            return Ok(false);
        }
        let changed = || -> rusqlite::Result<bool> {
            let sql = "SELECT member FROM member WHERE group_name = ? ORDER BY member";
            let mut statement = self.connection.prepare_cached(sql)?;
            let ids = statement.query_map([&self.group], |row| row.get(0))?;
            let ids: Vec<i64> = ids.collect::<rusqlite::Result<_>>()?;
            let sql = "SELECT 1 FROM cursor WHERE group_name = ? AND owner IS NULL LIMIT 1";
            Ok(ids != self.members || self.connection.prepare_cached(sql)?.exists([&self.group])?)
        };
        let changed = changed().sql(DOING)?;
        self.version = if changed { -1 } else { version };
        Ok(changed)
    }

    /// Remembers how far the group has come.
    pub(super) fn commit(&self, cursor: &Cursor) -> Result<()> {
        let sql = "UPDATE cursor SET offset = ?
            WHERE group_name = ? AND stream = ? AND partition = ? AND epoch = ? AND owner = ?";
        let stream = &*cursor.stream;
        let values = params![cursor.offset, self.group, stream, cursor.partition, cursor.epoch, self.id];
        let changed = self.connection.prepare_cached(sql).and_then(|mut update| update.execute(values));
        if changed.sql("committing a cursor")? == 1 {
            return Ok(());
        }
        let doing = format!(
            "group \"{}\" no longer holds partition {} of \"{}\" under epoch {}",
            self.group, cursor.partition, cursor.stream, cursor.epoch
        );
        Err(Error::new(Kind::Busy, doing).hint("another member has gone on with it"))
    }

    /// Lets go of everything at once.
    pub(super) fn leave(&mut self) -> Result<()> {
        let leave = || -> rusqlite::Result<()> {
            let on = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
            let values = params![self.group, self.id];
            on.execute("UPDATE cursor SET owner = NULL WHERE group_name = ? AND owner = ?", values)?;
            on.execute("DELETE FROM member WHERE group_name = ? AND member = ?", values)?;
            on.commit()
        };
        leave().sql("leaving a group")
    }

    /// Forgets what it held, without asking: its lease ran out.
    pub(super) fn forget(&mut self) -> Vec<Change> {
        let lost = |(seat, epoch)| Change::Lost { seat, epoch };
        std::mem::take(&mut self.held).into_iter().map(lost).collect()
    }
}

/// How many of a stream's partitions a member should hold. Who gets one more than others differs from
/// stream to stream, so that streams of one partition spread too.
fn share_of(readers: &[i64], member: i64, stream: &str, partitions: u32) -> usize {
    let count = readers.len().max(1);
    let Some(place) = readers.iter().position(|reader| *reader == member) else { return 0 };
    let turned = (place + murmur2(stream.as_bytes()) as usize) % count;
    let (each, more) = (partitions as usize / count, partitions as usize % count);
    each + usize::from(turned < more)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(dir: &Path, start: u64) -> Member {
        Member::join(dir, "g", 1_000, vec![("s".into(), 4)], |_| Ok(start)).unwrap()
    }

    fn held(member: &Member) -> Vec<u32> {
        member.held.keys().map(|seat| seat.1).collect()
    }

    #[test]
    fn members_share_evenly_and_epochs_rise() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = member(dir.path(), 7);
        let gained = first.beat(0).unwrap();
        assert_eq!(gained.len(), 4);
        assert_eq!(gained[0], Change::Gained { seat: (0, 0), epoch: 1, offset: 7 });
        let mut second = member(dir.path(), 99);
        assert_eq!(second.beat(0).unwrap(), [], "all are held");
        assert!(first.is_stirred().unwrap());
        assert_eq!(first.beat(0).unwrap().len(), 2);
        assert!(second.is_stirred().unwrap());
        let gained = second.beat(0).unwrap();
        assert_eq!(gained[0], Change::Gained { seat: (0, 2), epoch: 2, offset: 7 });
        assert_eq!((held(&first), held(&second)), (vec![0, 1], vec![2, 3]));
        assert!(!first.is_stirred().unwrap());
    }

    #[test]
    fn the_dead_lose_their_partitions_and_cannot_commit() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = member(dir.path(), 0);
        first.beat(0).unwrap();
        let mut second = member(dir.path(), 0);
        second.beat(1_000).unwrap();
        assert_eq!(held(&second), [] as [u32; 0], "alive at the very end of its lease");
        second.beat(1_001).unwrap();
        assert_eq!(held(&second), [0, 1, 2, 3]);
        let mut cursor = Cursor { stream: "s".into(), partition: 0, epoch: 1, offset: 5 };
        assert_eq!(first.commit(&cursor).unwrap_err().kind(), Kind::Busy);
        cursor.epoch = 2;
        assert_eq!(first.commit(&cursor).unwrap_err().kind(), Kind::Busy, "the epoch of another");
        second.commit(&cursor).unwrap();
        let lost = first.beat(1_002).unwrap();
        assert_eq!(lost.len(), 4);
        assert_eq!(lost[0], Change::Lost { seat: (0, 0), epoch: 1 });
    }

    #[test]
    fn what_was_forgotten_in_an_outage_is_shared_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = member(dir.path(), 7);
        first.beat(0).unwrap();
        assert_eq!(first.forget().len(), 4);
        let gained = first.beat(5_000).unwrap();
        assert_eq!(gained.len(), 4);
        assert_eq!(gained[0], Change::Gained { seat: (0, 0), epoch: 2, offset: 7 });
        first.forget();
        let mut second = member(dir.path(), 7);
        second.beat(5_000).unwrap();
        first.beat(5_000).unwrap();
        second.beat(5_000).unwrap();
        assert_eq!((held(&first), held(&second)), (vec![0, 1], vec![2, 3]), "nobody's are left");
    }

    #[test]
    fn one_more_goes_round() {
        let totals = |partitions| (1..=3).map(|id| share_of(&[1, 2, 3], id, "s", partitions)).sum::<usize>();
        for partitions in 0..20 {
            assert_eq!(totals(partitions), partitions as usize);
        }
        assert_eq!(share_of(&[1, 2], 3, "s", 4), 0);
    }
}
