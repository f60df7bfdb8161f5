//! Getting a database ready: what must be there before a source can start, made where we may make it, and
//! otherwise an error that says what the owner has to run.

mod listing;
mod publication;
mod server;
mod slot;
mod tables;

pub use listing::Listing;
pub use publication::{Narrow, Plan};
pub use server::{Server, connect};
pub use slot::{CreatedSlot, Slot, continues, create_slot, drop_slot};
pub use tables::{CapturedTable, InsertsOnly};

use headwater_core::{Error, Kind, Result};

use super::client::{Connection, quote_literal};
use super::config::{Names, PostgresConfig};
use super::state::State;

pub(super) use publication::plan;
pub(super) use tables::{another, resolve};

/// A database that is ready.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The server.
    pub server: Server,
    /// The tables to capture, the outbox among them, sorted by name. A publication may hold others: what
    /// comes of them is not ours.
    pub tables: Vec<CapturedTable>,
    /// The publications to ask for.
    pub publications: Vec<String>,
    /// What these are now.
    pub listing: Listing,
    /// The slot; when `None`, it has to be made before anything is read.
    pub slot: Option<Slot>,
}

/// Looks whether all is there and makes the publications where they are missing or no longer fit the
/// config; the slot is left to the caller, who may need its snapshot. `stored` is where the source's
/// checkpoint stands. `connection` is one made by [`connect`].
///
/// Errors: `Refused` with what to run; `Busy` while another uses the slot; `Hole` when the slot does not
/// continue what is stored.
pub async fn prepare(
    connection: &mut Connection,
    names: &Names,
    config: &PostgresConfig,
    stored: Option<&State>,
) -> Result<Prepared> {
    let server = Server::read(connection).await?;
    let slot = Slot::find(connection, &names.slot).await?;
    slot::awaits(slot.as_ref(), stored, &server)?;
    server.ready()?;
    if let Some(slot) = &slot {
        slot.usable(&server, names)?;
    }
    match (stored, &slot) {
        (Some(stored), slot) => continues(slot.as_ref(), stored, &server, names)?,
        (None, Some(slot)) => slot.intact(names)?,
        (None, None) => {}
    }
    let known = stored.map(|stored| stored.snapshots.clone()).unwrap_or_default();
    let (tables, wrong) = resolve(connection, config, &known).await?;
    all_of(wrong)?;
    tables::warn_of_others(connection, &known, &tables).await?;
    let plan = plan(connection, names, config.publication.is_none(), &server, &tables).await?;
    if let (Some(missing), Some(_)) = (plan.missing.first(), &slot) {
        return Err(older_slot(names, missing, stored.is_some()));
    }
    plan.apply(connection, &server.user).await?;
    let listing = Listing::read(connection, server.version, &plan.publications, &tables).await?;
    listing.holds(&plan.publications)?;
    if let Some(stored) = stored {
        listing.continues(stored, names)?;
    }
    for table in tables.iter().filter(|table| table.changes) {
        if let Some(InsertsOnly { why, mend }) = &table.inserts_only {
            let theirs = plan.theirs;
            tracing::warn!(table = table.full_name(), why, mend, theirs, "updates cannot be captured");
        }
    }
    for Narrow { what, mend } in &plan.narrow {
        tracing::warn!(mend, "{what}");
    }
    Ok(Prepared { server, tables, publications: plan.publications, listing, slot })
}

/// Several errors as one.
fn all_of(mut wrong: Vec<Error>) -> Result<()> {
    if wrong.len() < 2 {
        return wrong.pop().map_or(Ok(()), Err);
    }
    let lines: Vec<String> = wrong.iter().map(|error| format!("\n- {error}")).collect();
    Err(Error::new(Kind::Refused, format!("{} tables cannot be captured:{}", wrong.len(), lines.concat())))
}

/// What happened between the slot's beginning and a publication that is made now was published by none.
fn older_slot(names: &Names, publication: &str, captured: bool) -> Error {
    let name = &names.slot;
    if captured {
        let what = format!("publication \"{publication}\" is gone, and with it the changes since");
        return slot::hole(names, what, "");
    }
    Error::new(
        Kind::Refused,
        format!("slot \"{name}\" is older than publication \"{publication}\", which is missing"),
    )
    .hint(format!(
        "drop the slot, which nothing was read from: SELECT pg_drop_replication_slot({}); both are then made",
        quote_literal(name)
    ))
}
