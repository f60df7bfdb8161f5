//! How the captured tables are published, to be held against how they were: what no publication had for a
//! while is not in the stream.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use headwater_core::{Error, Kind, Result};

use super::{CapturedTable, slot};
use crate::postgres::client::{Connection, quote_literal};
use crate::postgres::config::Names;
use crate::postgres::state::State;

/// The publications as they are at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Their object identifiers.
    pub publications: BTreeMap<String, u32>,
    /// The operations that each publishes.
    pub operations: BTreeMap<String, BTreeSet<String>>,
    /// What puts each captured table, `schema.name`, into them: the object identifier of the entry of the table
    /// itself, of the partitioned table above it, or of its schema. None where they publish all tables.
    pub entries: BTreeMap<String, u32>,
    /// The rest of what is said of them.
    options: Vec<String>,
}

impl Listing {
    /// Asks a server of this version. What is not there is left out.
    pub async fn read(
        connection: &mut Connection,
        version: u32,
        publications: &[String],
        tables: &[CapturedTable],
    ) -> Result<Self> {
        let names: Vec<String> = publications.iter().map(|name| quote_literal(name)).collect();
        let ours = format!("p.pubname IN ({})", names.join(", "));
        let mut listing = Self::default();
        for row in connection.query(&publications_sql(&ours)).await? {
            let name = row.text(0)?.to_owned();
            let operations = row.text(2)?.split(' ').map(str::to_owned).collect();
            listing.publications.insert(name.clone(), row.number(1)?);
            listing.operations.insert(name, operations);
            listing.options.push(row.text(3)?.to_owned());
        }
        let names: HashMap<u32, String> = tables.iter().map(|table| (table.oid, table.full_name())).collect();
        for row in connection.query(&entries_sql(version, &ours, tables)).await? {
            let (table, entry): (u32, u32) = (row.number(0)?, row.number(1)?);
            if let Some(name) = names.get(&table) {
                listing.entries.insert(name.clone(), entry);
            }
        }
        Ok(listing)
    }

    /// An error of kind `Unavailable` when one of the publications has gone since they were planned.
    pub(super) fn holds(&self, publications: &[String]) -> Result<()> {
        match publications.iter().find(|name| !self.publications.contains_key(*name)) {
            Some(gone) => {
                Err(Error::new(Kind::Unavailable, format!("publication \"{gone}\" was dropped just now")))
            }
            None => Ok(()),
        }
    }

    /// Whether something is published now that was not when `stored` was written.
    pub fn is_wider_than(&self, stored: &State) -> bool {
        self.operations.iter().any(|(name, operations)| {
            stored.operations.get(name).is_some_and(|known| !operations.is_subset(known))
        })
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

fn publications_sql(ours: &str) -> String {
    let operations: Vec<String> = ["insert", "update", "delete", "truncate"]
        .map(|operation| format!("CASE WHEN p.pub{operation} THEN '{operation}' END"))
        .into();
    format!(
        "SELECT p.pubname, p.oid, concat_ws(' ', {}), to_jsonb(p)::text FROM pg_publication p WHERE {ours} ORDER BY 1",
        operations.join(", ")
    )
}

/// Of each table one entry, always the same: the one with the lowest identifier.
fn entries_sql(version: u32, ours: &str, tables: &[CapturedTable]) -> String {
    let oids: Vec<String> = tables.iter().map(|table| table.oid.to_string()).collect();
    let schemas = match version {
        150_000.. => format!(
            "UNION ALL SELECT c.oid, n.oid FROM pg_publication_namespace n JOIN pg_publication p ON p.oid = n.pnpubid \
             JOIN pg_class c ON c.relnamespace = n.pnnspid WHERE {ours}"
        ),
        _ => String::new(),
    };
    format!(
        "SELECT t.oid, min(e.entry) FROM unnest('{{{}}}'::oid[]) t(oid), \
         LATERAL (SELECT t.oid relid UNION SELECT relid::oid FROM pg_partition_ancestors(t.oid)) above, \
         (SELECT r.prrelid, r.oid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid \
         WHERE {ours} {schemas}) e(relid, entry) WHERE e.relid = above.relid GROUP BY 1",
        oids.join(",")
    )
}
