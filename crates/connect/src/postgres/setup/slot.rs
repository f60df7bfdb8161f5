//! The replication slot: what it must be, and when it no longer continues what we have.

use std::time::Duration;

use headwater_core::{Error, Kind, Result};

use super::Server;
use crate::postgres::client::{Connection, PgError, quote_ident, quote_literal};
use crate::postgres::config::Names;
use crate::postgres::lsn;
use crate::postgres::state::State;

/// The output plugin.
const PLUGIN: &str = "pgoutput";

/// How long the making of a slot may take before the operator is told what it waits for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A replication slot as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slot {
    /// Its output plugin; `None` for a physical slot.
    pub plugin: Option<String>,
    /// Its database; `None` for a physical slot.
    pub database: Option<String>,
    /// The process that uses it now.
    pub active_pid: Option<u32>,
    /// Where the log begins that the server keeps for it.
    pub restart: Option<u64>,
    /// Everything before this was confirmed; it will not be sent again.
    pub confirmed: u64,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Why it can no longer be used, as the server says it.
    pub invalidation: Option<String>,
    /// Whether a standby has it from its primary (17), to be used once it is promoted. Means nothing on a
    /// primary.
    pub synced: bool,
    /// Bytes of log that the server keeps for it.
    pub kept: Option<u64>,
    /// Bytes that may still be written before it may be lost; `None` without a limit.
    pub left: Option<i64>,
}

/// What `CREATE_REPLICATION_SLOT` returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedSlot {
    /// The stream begins with the first transaction that commits after this.
    pub consistent_point: u64,
    /// The exported snapshot: what was committed before. It is valid until the connection that made the
    /// slot runs another command or closes.
    pub snapshot: Option<String>,
}

impl Slot {
    /// Looks the slot up.
    pub async fn find(connection: &mut Connection, name: &str) -> Result<Option<Self>> {
        // As JSON, because the columns differ between versions: conflicting (16), invalidation_reason and synced (17).
        // Version 16 says `conflicting` of every lost slot, but only a standby has conflicts.
        let sql = format!(
            "SELECT plugin, database, CASE WHEN active_pid <> pg_backend_pid() THEN active_pid END, \
             restart_lsn, confirmed_flush_lsn, wal_status, \
             coalesce(to_jsonb(s)->>'invalidation_reason', \
                      CASE WHEN to_jsonb(s)->>'conflicting' = 'true' AND pg_is_in_recovery() \
                           THEN 'it conflicted with recovery' END), \
             pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
                             ELSE pg_current_wal_lsn() END, restart_lsn), \
             safe_wal_size, to_jsonb(s)->>'synced' = 'true' FROM pg_replication_slots s WHERE slot_name = {}",
            quote_literal(name)
        );
        let rows = connection.query(&sql).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let text = |at: usize| row.get(at).map(str::to_owned);
        Ok(Some(Self {
            plugin: text(0),
            database: text(1),
            active_pid: row.get(2).and_then(|pid| pid.parse().ok()),
            restart: row.get(3).map(lsn::parse).transpose()?,
            // A physical slot has none; one that is just being made has none yet.
            confirmed: row.get(4).map(lsn::parse).transpose()?.unwrap_or(0),
            wal_status: text(5),
            invalidation: text(6),
            kept: row.get(7).and_then(|bytes| bytes.parse().ok()),
            left: row.get(8).and_then(|bytes| bytes.parse().ok()),
            synced: row.is_true(9),
        }))
    }

    /// Whether it is ours to use, and free.
    pub fn usable(&self, server: &Server, names: &Names) -> Result<()> {
        let name = &names.slot;
        let other = |what: String| {
            Err(Error::new(Kind::Refused, what).hint(format!(
                "set `slot` to another name, or drop it if nothing needs it: SELECT pg_drop_replication_slot({});",
                quote_literal(name)
            )))
        };
        match &self.plugin {
            Some(plugin) if plugin == PLUGIN => {}
            Some(plugin) => return other(format!("slot \"{name}\" uses the plugin {plugin}, not {PLUGIN}")),
            None => return other(format!("slot \"{name}\" is a physical one")),
        }
        if let Some(database) = self.database.as_deref().filter(|name| *name != server.database) {
            return other(format!(
                "slot \"{name}\" belongs to database \"{database}\", not to \"{}\"",
                server.database
            ));
        }
        self.free(name)
    }

    /// Whether nobody uses it.
    pub fn free(&self, name: &str) -> Result<()> {
        if let Some(pid) = self.active_pid {
            return Err(Error::new(Kind::Busy, format!("slot \"{name}\" is used by another, process {pid} of the server"))
                .hint(format!("see who: SELECT * FROM pg_stat_activity WHERE pid = {pid}; if another Headwater runs with this slot, stop it or set `slot` to another name; if it is what a lost connection left behind, it ends by itself (wal_sender_timeout) or by: SELECT pg_terminate_backend({pid});")));
        }
        Ok(())
    }

    /// Whether the log that it needs is there.
    pub(super) fn intact(&self, names: &Names) -> Result<()> {
        match self.lost() {
            Some(why) => Err(hole(names, format!("slot \"{}\" is lost: {why}", names.slot), "")),
            None => Ok(()),
        }
    }

    /// Why the log that it needs is gone, if it is.
    pub fn lost(&self) -> Option<String> {
        match (self.invalidation.as_deref(), self.wal_status.as_deref()) {
            (Some("wal_removed"), _) | (None, Some("lost")) => {
                Some("the server removed log that it needed (max_slot_wal_keep_size)".to_owned())
            }
            (Some(reason), _) => Some(format!("the server invalidated it: {reason}")),
            _ => None,
        }
    }
}

/// What is waited for on a standby that is not, or not yet, what `stored` was captured from: that it is
/// promoted, or has replayed what it received before it was restarted.
pub fn awaits(slot: Option<&Slot>, stored: Option<&State>, server: &Server) -> Result<()> {
    // A standby of another cluster never becomes what it was captured from.
    if !server.standby || stored.is_some_and(|stored| stored.system_id != server.system_id) {
        return Ok(());
    }
    // It was captured from a primary: during a failover this one is about to be that.
    if slot.is_none() && stored.is_some() || slot.is_some_and(|slot| slot.synced) {
        return Err(Error::new(Kind::Unavailable, "this server is a standby: waiting for it to be promoted")
            .hint("if it stays one, let the url name the primary"));
    }
    match stored {
        Some(stored) if server.end < stored.confirmed => Err(Error::new(
            Kind::Unavailable,
            format!(
                "this standby has come to {}, but what is stored ends at {}: waiting for it to catch up",
                lsn::text(server.end),
                lsn::text(stored.confirmed)
            ),
        )
        .hint("see that it receives the primary's log: SELECT * FROM pg_stat_wal_receiver;")),
        _ => Ok(()),
    }
}

/// Whether the stream from `slot` goes on where the checkpoint `stored` ends. If not, changes between
/// them are gone: an error of kind `Hole`, never skipped.
pub fn continues(slot: Option<&Slot>, stored: &State, server: &Server, names: &Names) -> Result<()> {
    let name = &names.slot;
    if stored.system_id != server.system_id {
        return Err(hole(
            names,
            format!(
                "the checkpoint is of another server: its system identifier is {}, this one's is {}",
                stored.system_id, server.system_id
            ),
            "let the url name the server that was captured; or, if this one replaces it",
        ));
    }
    if stored.database != server.database {
        return Err(hole(
            names,
            format!("the checkpoint is of database \"{}\", not of \"{}\"", stored.database, server.database),
            "let the url name the database that was captured; or, if this one replaces it",
        ));
    }
    if stored.slot != *name {
        return Err(hole(
            names,
            format!("the checkpoint is of slot \"{}\", not of \"{name}\"", stored.slot),
            &format!("set slot = \"{}\" again; or", stored.slot),
        ));
    }
    let Some(slot) = slot else {
        return Err(hole(
            names,
            format!("slot \"{name}\" is gone, and with it the changes since {}", lsn::text(stored.confirmed)),
            "",
        ));
    };
    slot.intact(names)?;
    if server.end < stored.confirmed {
        let (end, stored) = (lsn::text(server.end), lsn::text(stored.confirmed));
        return Err(hole(
            names,
            format!(
                "the server's log ends at {end}, but what is stored ends at {stored}: the server was restored from an older copy, or a standby took over that had not received all"
            ),
            "",
        ));
    }
    if slot.confirmed > stored.confirmed {
        return Err(hole(
            names,
            format!(
                "slot \"{name}\" begins at {}, but what is stored ends at {}: the changes between are gone",
                lsn::text(slot.confirmed),
                lsn::text(stored.confirmed)
            ),
            "",
        ));
    }
    Ok(())
}

pub(super) fn hole(names: &Names, what: String, before: &str) -> Error {
    let before = if before.is_empty() { String::new() } else { format!("{before}, ") };
    Error::new(Kind::Hole, what).hint(format!(
        "{before}read the tables anew and go on from there: headwater snapshot --source {}",
        names.source
    ))
}

/// Makes a logical slot, on a connection made by [`connect`](super::connect). A temporary slot goes with
/// its connection. With `export`, the snapshot as of the slot's beginning can be used by others.
pub async fn create_slot(
    connection: &mut Connection,
    name: &str,
    temporary: bool,
    export: bool,
) -> Result<CreatedSlot> {
    // The notation of version 14, which all later ones understand.
    let sql = format!(
        "CREATE_REPLICATION_SLOT {}{} LOGICAL {PLUGIN} {}",
        quote_ident(name),
        if temporary { " TEMPORARY" } else { "" },
        if export { "EXPORT_SNAPSHOT" } else { "NOEXPORT_SNAPSHOT" }
    );
    let mut making = std::pin::pin!(connection.query(&sql));
    let made = match tokio::time::timeout(PATIENCE, &mut making).await {
        Ok(made) => made,
        Err(_) => {
            tracing::warn!(
                slot = name,
                "the server makes the slot once all transactions that run now have ended; \
                 see who is late: SELECT * FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY xact_start; \
                 and SELECT * FROM pg_prepared_xacts;"
            );
            making.await
        }
    };
    let rows = made.map_err(|error| with_hint(error, name))?;
    let row =
        rows.first().ok_or_else(|| Error::new(Kind::Decode, "the server did not describe the new slot"))?;
    Ok(CreatedSlot { consistent_point: lsn::parse(row.text(1)?)?, snapshot: row.get(2).map(str::to_owned) })
}

/// Drops the slot, where it is there and not in use.
pub async fn drop_slot(connection: &mut Connection, name: &str) -> Result<()> {
    let sql = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {}",
        quote_literal(name)
    );
    connection.query(&sql).await.map(|_| ()).map_err(|error| with_hint(error, name))
}

fn with_hint(error: Error, name: &str) -> Error {
    let hint = match PgError::code_of(&error) {
        Some("53400") => "drop a slot that nothing needs (SELECT slot_name, active, restart_lsn FROM pg_replication_slots; SELECT pg_drop_replication_slot('NAME');), or raise max_replication_slots in postgresql.conf and restart PostgreSQL".to_owned(),
        Some("42501") => "run as a superuser: ALTER ROLE ... REPLICATION; for the user of the url".to_owned(),
        Some("55000") => "set wal_level = logical in postgresql.conf and restart PostgreSQL".to_owned(),
        Some("55006") => format!("slot \"{name}\" is in use: stop whoever uses it, see pg_replication_slots.active_pid"),
        _ => return error,
    };
    error.hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(confirmed: u64) -> State {
        State {
            system_id: "1".into(),
            database: "d".into(),
            timeline: 1,
            slot: "s".into(),
            epoch: 1,
            confirmed,
            ..State::default()
        }
    }

    #[test]
    fn a_standby_is_waited_for_until_it_is_promoted_or_has_caught_up() {
        let server = |standby| Server {
            version: 170_000,
            system_id: "1".into(),
            timeline: 1,
            end: 100,
            database: "d".into(),
            user: "u".into(),
            encoding: "UTF8".into(),
            wal_level: "logical".into(),
            standby,
        };
        let slot = |synced| Slot { synced, ..Slot::default() };
        for (slot, stored, part) in [
            (None, Some(stored(50)), "waiting for it to be promoted"),
            (Some(slot(true)), Some(stored(50)), "waiting for it to be promoted"),
            (Some(slot(true)), None, "waiting for it to be promoted"),
            (Some(slot(false)), Some(stored(101)), "waiting for it to catch up"),
        ] {
            let error = awaits(slot.as_ref(), stored.as_ref(), &server(true)).unwrap_err();
            assert!(error.kind() == Kind::Unavailable && error.hint_text().is_some(), "{error}");
            assert!(error.to_string().contains(part), "{error}");
            // A primary is what it is: a slot that was synced to it is its own.
            awaits(slot.as_ref(), stored.as_ref(), &server(false)).unwrap();
        }
        awaits(Some(&slot(false)), Some(&stored(100)), &server(true)).unwrap();
        awaits(None, None, &server(true)).unwrap();
        let other = State { system_id: "2".into(), ..stored(101) };
        awaits(None, Some(&other), &server(true)).unwrap();
    }
}
