//! Replication slots: what the server says of ours, and making one.

use headwater_core::{Error, Kind, Result};

use super::client::{Connection, PgError, quote_literal};
use super::lsn;

/// Who the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// Its system identifier.
    pub id: String,
    /// Its timeline.
    pub timeline: u32,
}

/// Asks a replication connection who the server is.
pub async fn identify(connection: &mut Connection) -> Result<System> {
    let rows = connection.query("IDENTIFY_SYSTEM").await?;
    let row = rows.first().ok_or_else(|| Error::new(Kind::Decode, "IDENTIFY_SYSTEM gave no row"))?;
    Ok(System { id: row.text(0)?.to_owned(), timeline: row.number(1)? })
}

/// A slot as the server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Everything before this was confirmed.
    pub confirmed: u64,
}

/// The slot of this name, if there is one that we can use.
pub async fn find(connection: &mut Connection, name: &str) -> Result<Option<Slot>> {
    let sql = format!(
        "select plugin, slot_type, database = current_database(), active_pid, wal_status, confirmed_flush_lsn, database
         from pg_replication_slots where slot_name = {}",
        quote_literal(name)
    );
    let rows = connection.query(&sql).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let refused = |what: String, hint: String| {
        Err(Error::new(Kind::Refused, format!("slot \"{name}\" {what}")).hint(hint))
    };
    let drop = format!("drop it (SELECT pg_drop_replication_slot('{name}');) or set `slot` to another name");
    if row.get(0) != Some("pgoutput") || row.get(1) != Some("logical") {
        return refused("is not a logical slot of the plugin pgoutput".to_owned(), drop);
    }
    if !row.is_true(2) {
        return refused(format!("belongs to the database \"{}\"", row.get(6).unwrap_or_default()), drop);
    }
    if let Some(pid) = row.get(3) {
        return Err(Error::new(
            Kind::Busy,
            format!("slot \"{name}\" is in use by process {pid} of the server"),
        )
        .hint("another headwater may run with the same slot: stop it, or set `slot` to another name"));
    }
    if row.get(4) == Some("lost") {
        return Err(Error::new(Kind::Hole, format!("slot \"{name}\" is lost: the server removed log that it still needed"))
            .hint("headwater snapshot --source NAME reads all tables anew under a new slot; raise max_slot_wal_keep_size so that it does not happen again"));
    }
    Ok(Some(Slot { confirmed: lsn::parse(row.text(5)?)? }))
}

/// A slot just made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// Transactions that commit at or after this place are sent.
    pub consistent_point: u64,
    /// The snapshot of that place, good as long as the connection does nothing else.
    pub snapshot: String,
}

/// Makes a slot on a replication connection and exports its snapshot.
pub async fn create(connection: &mut Connection, name: &str, temporary: bool) -> Result<Created> {
    let temporary = if temporary { " TEMPORARY" } else { "" };
    // This form is understood by 14 to 18; the name has only letters, digits and underscores.
    let sql = format!("CREATE_REPLICATION_SLOT \"{name}\"{temporary} LOGICAL pgoutput EXPORT_SNAPSHOT");
    let rows = match connection.query(&sql).await {
        Err(error) if PgError::code_of(&error) == Some("53400") => {
            return Err(error.hint("raise max_replication_slots, or drop slots that nobody uses"));
        }
        other => other?,
    };
    let row = rows.first().ok_or_else(|| Error::new(Kind::Decode, "CREATE_REPLICATION_SLOT gave no row"))?;
    Ok(Created { consistent_point: lsn::parse(row.text(1)?)?, snapshot: row.text(2)?.to_owned() })
}
