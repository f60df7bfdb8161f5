//! How the captured tables are published, to be held against how they were: what no publication had for a
//! while is not in the stream.

use std::collections::BTreeMap;

use headwater_core::Result;

use super::{CapturedTable, slot};
use crate::postgres::client::{Connection, quote_literal};
use crate::postgres::config::Names;
use crate::postgres::state::State;

/// The publications as they are at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Their object identifiers.
    pub publications: BTreeMap<String, u32>,
    /// The entries of the captured tables, `schema.name`, with their object identifiers; of those that are
    /// listed one by one.
    pub entries: BTreeMap<String, u32>,
    /// What the publications publish of their tables.
    options: Vec<String>,
}

impl Listing {
    /// Asks the server.
    pub async fn read(
        connection: &mut Connection,
        publications: &[String],
        tables: &[CapturedTable],
    ) -> Result<Self> {
        let names: Vec<String> = publications.iter().map(|name| quote_literal(name)).collect();
        let ours = format!("p.pubname IN ({})", names.join(", "));
        let mut listing = Self::default();
        let sql = format!(
            "SELECT p.pubname, p.oid, to_jsonb(p)::text FROM pg_publication p WHERE {ours} ORDER BY 1"
        );
        for row in connection.query(&sql).await? {
            listing.publications.insert(row.text(0)?.to_owned(), row.number(1)?);
            listing.options.push(row.text(2)?.to_owned());
        }
        let sql = format!(
            "SELECT r.prrelid, r.oid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE {ours}"
        );
        for row in connection.query(&sql).await? {
            let (table, entry): (u32, u32) = (row.number(0)?, row.number(1)?);
            if let Some(table) = tables.iter().find(|one| one.oid == table) {
                listing.entries.insert(table.full_name(), entry);
            }
        }
        Ok(listing)
    }

    /// Whether these are the publications that `stored` was captured by: of another one it cannot be known
    /// what it published, and the log from before it cannot be read by it.
    pub(super) fn continues(&self, stored: &State, names: &Names) -> Result<()> {
        if stored.publications.is_empty() {
            return Ok(());
        }
        for (name, oid) in &self.publications {
            match stored.publications.get(name) {
                Some(known) if known == oid => {}
                Some(_) => {
                    let what = format!(
                        "publication \"{name}\" was dropped and made anew: the changes between are gone"
                    );
                    return Err(slot::hole(names, what, ""));
                }
                None => {
                    let known: Vec<&str> = stored.publications.keys().map(String::as_str).collect();
                    let what =
                        format!("the checkpoint is of publication {}, not of {name}", known.join(", "));
                    return Err(slot::hole(names, what, "set `publication` as it was; or"));
                }
            }
        }
        Ok(())
    }
}
