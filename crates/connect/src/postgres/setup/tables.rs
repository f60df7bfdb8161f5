//! The tables that the config names, as they are in the database, and what may be published of each.

use std::collections::BTreeMap;

use headwater_core::{Error, Kind, Result};

use crate::postgres::client::{Connection, QueryRow, quote_ident, quote_literal};
use crate::postgres::config::{PostgresConfig, TablePattern};
use crate::settings::SnapshotMode;

/// A table to capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedTable {
    /// Its object identifier, which a rename leaves as it is.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Whether it is partitioned; changes of its partitions are published as its own.
    pub partitioned: bool,
    /// Whether it is (also) the outbox.
    pub outbox: bool,
    /// Whether its rows are captured as changes; not when it is the outbox alone.
    pub changes: bool,
    /// Why updates and deletes are not published: they would fail for those who make them.
    pub inserts_only: Option<InsertsOnly>,
    /// Whether our user owns it and so may publish it.
    pub owned: bool,
}

/// Why a table is published for inserts only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InsertsOnly {
    /// What is missing.
    pub why: String,
    /// What to do about it.
    pub mend: String,
}

impl CapturedTable {
    /// `schema.name`, as the config and streams say it.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Its name in SQL.
    pub fn sql_name(&self) -> String {
        format!("{}.{}", quote_ident(&self.schema), quote_ident(&self.name))
    }

    /// Whether only inserts of it are published.
    pub fn publishes_inserts_only(&self) -> bool {
        self.inserts_only.is_some() || !self.changes
    }
}

/// One row of the catalogue.
#[derive(Debug)]
struct Found {
    table: CapturedTable,
    kind: char,
    persistence: char,
    partition: bool,
    readable: bool,
    filtered: bool,
}

/// The tables of the config, sorted by name, and what is wrong with those that cannot be captured. `known`
/// are object identifiers that tables had, by `schema.name`: of one that is missing they tell its new name.
pub async fn resolve(
    connection: &mut Connection,
    config: &PostgresConfig,
    known: &BTreeMap<String, u32>,
) -> Result<(Vec<CapturedTable>, Vec<Error>)> {
    let patterns = config.tables.iter().map(|text| TablePattern::parse(text)).collect::<Result<Vec<_>>>()?;
    let outbox = config.outbox.as_ref().map(|outbox| TablePattern::parse(&outbox.table)).transpose()?;
    if outbox.as_ref().is_some_and(|outbox| outbox.table.is_none()) {
        return Err(Error::new(Kind::Config, "the outbox is one table, not all of a schema"));
    }
    let found = find(connection, patterns.iter().chain(&outbox)).await?;
    let mut wrong = Vec::new();
    let mut tables: Vec<CapturedTable> = Vec::new();
    let wanted =
        patterns.iter().map(|pattern| (pattern, false)).chain(outbox.iter().map(|outbox| (outbox, true)));
    for (pattern, is_outbox) in wanted {
        let of_pattern =
            found.iter().filter(|found| pattern.names(&found.table) && found.fits(pattern, outbox.as_ref()));
        let mut any = false;
        for found in of_pattern {
            any = true;
            match found.capturable(config) {
                Ok(()) => add(&mut tables, found, is_outbox),
                Err(error) => wrong.push(error),
            }
        }
        if !any {
            wrong.push(missing(connection, pattern, known).await?);
        }
    }
    tables.sort_by_key(CapturedTable::full_name);
    Ok((tables, wrong))
}

fn add(tables: &mut Vec<CapturedTable>, found: &Found, is_outbox: bool) {
    let at = tables.iter().position(|table| table.oid == found.table.oid).unwrap_or_else(|| {
        tables.push(found.table.clone());
        tables.len() - 1
    });
    if let Some(table) = tables.get_mut(at) {
        table.outbox |= is_outbox;
        table.changes |= !is_outbox;
    }
}

impl TablePattern {
    fn names(&self, table: &CapturedTable) -> bool {
        self.schema == table.schema && self.table.as_ref().is_none_or(|name| *name == table.name)
    }
}

impl Found {
    /// A wildcard takes what can be captured, without partitions (their table stands for them) and
    /// without the outbox (its rows are events, not changes).
    fn fits(&self, pattern: &TablePattern, outbox: Option<&TablePattern>) -> bool {
        pattern.table.is_some()
            || matches!(self.kind, 'r' | 'p')
                && self.persistence == 'p'
                && !self.partition
                && !outbox.is_some_and(|outbox| outbox.names(&self.table))
    }

    fn capturable(&self, config: &PostgresConfig) -> Result<()> {
        let name = self.table.full_name();
        let wrong =
            |what: &str, hint: String| Err(Error::new(Kind::Refused, format!("{name} {what}")).hint(hint));
        if self.table.schema == "pg_catalog" || self.table.schema == "information_schema" {
            return wrong("belongs to PostgreSQL itself", "take it out of `tables`".to_owned());
        }
        match (self.kind, self.persistence) {
            ('v' | 'm', _) => {
                return wrong("is a view", "capture the tables that it is made of".to_owned());
            }
            ('f', _) => {
                return wrong("is a foreign table", "capture it at the server that holds it".to_owned());
            }
            (_, 'u') => {
                let mend = format!("run as its owner: ALTER TABLE {} SET LOGGED;", self.table.sql_name());
                return wrong("is unlogged: its changes are not in the log", mend);
            }
            (_, 't') => return wrong("is a temporary table", "take it out of `tables`".to_owned()),
            _ => {}
        }
        if config.snapshot == SnapshotMode::Never {
            return Ok(());
        }
        let user = quote_ident(&config.url.user);
        if !self.readable {
            let mend = format!(
                "run as its owner: GRANT USAGE ON SCHEMA {} TO {user}; GRANT SELECT ON {} TO {user}; or set snapshot = \"never\"",
                quote_ident(&self.table.schema),
                self.table.sql_name()
            );
            return wrong(&format!("cannot be read by user {user}, as its snapshot needs"), mend);
        }
        if self.filtered {
            let mend =
                format!("run as a superuser: ALTER ROLE {user} BYPASSRLS; or set snapshot = \"never\"");
            return wrong("hides rows from us by row level security, so its snapshot would lack them", mend);
        }
        Ok(())
    }
}

/// Whether PostgreSQL lets rows of `alias` be updated while their updates are published
/// (CheckCmdReplicaIdentity): by a usable index, or by the whole row. Virtual generated columns (18) do
/// not go with the whole row.
fn identified(alias: &str) -> String {
    format!(
        "CASE {alias}.relreplident \
         WHEN 'f' THEN NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = {alias}.oid AND a.attgenerated = 'v') \
         WHEN 'n' THEN false \
         ELSE EXISTS (SELECT FROM pg_index i WHERE i.indrelid = {alias}.oid AND i.indisvalid AND i.indisunique \
              AND i.indimmediate AND i.indpred IS NULL \
              AND CASE {alias}.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END) END"
    )
}

async fn find(
    connection: &mut Connection,
    patterns: impl Iterator<Item = &TablePattern>,
) -> Result<Vec<Found>> {
    let condition = |pattern: &TablePattern| {
        let schema = format!("n.nspname = {}", quote_literal(&pattern.schema));
        match &pattern.table {
            Some(table) => format!("({schema} AND c.relname = {})", quote_literal(table)),
            None => format!("({schema})"),
        }
    };
    let conditions: Vec<String> = patterns.map(condition).collect();
    if conditions.is_empty() {
        return Ok(Vec::new());
    }
    // Of a partitioned table each leaf is asked, because it is the leaf whose updates would fail. A leaf
    // with another replica identity than the table's would be sent in the table's shape, with columns
    // made up as NULL: it is as bad as none.
    let sql = format!(
        "SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, c.relispartition, c.relreplident, \
         {root}, \
         EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary), \
         CASE WHEN c.relkind = 'p' THEN (SELECT l.oid::regclass::text FROM pg_partition_tree(c.oid) t \
              JOIN pg_class l ON l.oid = t.relid WHERE t.isleaf AND l.relkind = 'r' AND (NOT {leaf} OR \
              l.relreplident <> c.relreplident AND NOT (c.relreplident = 'd' AND l.relreplident = 'f')) LIMIT 1) END, \
         has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'), \
         c.relkind IN ('r', 'p') AND row_security_active(c.oid), \
         pg_has_role(c.relowner, 'USAGE') \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND ({conditions})",
        root = identified("c"),
        leaf = identified("l"),
        conditions = conditions.join(" OR ")
    );
    connection.query(&sql).await?.iter().map(read).collect()
}

fn read(row: &QueryRow) -> Result<Found> {
    let letter = |at: usize| row.get(at).and_then(|text| text.chars().next()).unwrap_or(' ');
    let mut table = CapturedTable {
        oid: row.number(0)?,
        schema: row.text(1)?.to_owned(),
        name: row.text(2)?.to_owned(),
        partitioned: letter(3) == 'p',
        outbox: false,
        changes: false,
        inserts_only: None,
        owned: row.is_true(12),
    };
    table.inserts_only = inserts_only(&table, letter(6), row.is_true(7), row.is_true(8), row.get(9));
    Ok(Found {
        table,
        kind: letter(3),
        persistence: letter(4),
        partition: row.is_true(5),
        readable: row.is_true(10),
        filtered: row.is_true(11),
    })
}

/// Why updates of the table must not be published, if so. A partition that is added while we run takes
/// the table's primary key with it but no other identity, so a partitioned table needs that key.
fn inserts_only(
    table: &CapturedTable,
    identity: char,
    identified: bool,
    has_key: bool,
    bad_leaf: Option<&str>,
) -> Option<InsertsOnly> {
    let name = table.sql_name();
    let add_key = format!("ALTER TABLE {name} ADD PRIMARY KEY (...);");
    let full = format!("ALTER TABLE {name} REPLICA IDENTITY FULL;");
    let because = |why: &str, mend: String| Some(InsertsOnly { why: why.to_owned(), mend });
    if table.partitioned {
        return match bad_leaf {
            _ if !has_key => because("it is partitioned and has no primary key", add_key),
            Some(leaf) => because(
                &format!("its partition {leaf} has another replica identity, or one that cannot be used"),
                format!("ALTER TABLE {leaf} REPLICA IDENTITY DEFAULT;"),
            ),
            None if identified => None,
            None => because(
                "its replica identity cannot be used",
                format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT;"),
            ),
        };
    }
    match identity {
        _ if identified => None,
        'f' => because(
            "its replica identity is the whole row, but it has virtual generated columns",
            format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT; (with a primary key)"),
        ),
        'n' => because(
            "its replica identity is NOTHING",
            format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT; (with a primary key), or {full}"),
        ),
        'i' => because(
            "the index of its replica identity is gone or not valid",
            format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT; or ... USING INDEX ...; or {full}"),
        ),
        _ if has_key => because("its primary key is deferrable or not valid", full),
        _ => because("it has no primary key", format!("{add_key} or {full}")),
    }
}

/// The error for a table that is not there, with its new name, or the most similar one that is.
async fn missing(
    connection: &mut Connection,
    pattern: &TablePattern,
    known: &BTreeMap<String, u32>,
) -> Result<Error> {
    let Some(table) = &pattern.table else {
        return Ok(Error::new(Kind::Refused, format!("schema {} has no tables to capture", pattern.schema))
            .hint("create them, or take the schema out of `tables`"));
    };
    let name = format!("{}.{table}", pattern.schema);
    if let Some(oid) = known.get(&name)
        && let Some(now) = called(connection, *oid).await?
    {
        return Ok(Error::new(Kind::Refused, format!("table {name} is called {now} now")).hint(format!(
            "write \"{now}\" in `tables`, and in `from` of the streams that it feeds; its changes wait in the slot"
        )));
    }
    let rows = connection
        .query(
            "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^(pg_|information_schema$)' ORDER BY 1 LIMIT 10000",
        )
        .await?;
    let scored = rows.iter().filter_map(|row| row.get(0)).map(|known| (similarity(&name, known), known));
    let nearest = scored.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0));
    let error = Error::new(Kind::Refused, format!("table {name} does not exist"));
    Ok(match nearest {
        Some((_, near)) => {
            error.hint(format!("did you mean {near}? Otherwise create it, or take it out of the config"))
        }
        None => error.hint("create it, or take it out of the config"),
    })
}

/// What a table is called now, `schema.name`; `None` when it is gone.
async fn called(connection: &mut Connection, oid: u32) -> Result<Option<String>> {
    let sql = format!(
        "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.oid = {oid}"
    );
    Ok(connection.query(&sql).await?.first().and_then(|row| row.get(0)).map(str::to_owned))
}

/// A name that by now means another table than the captured one.
pub async fn another(connection: &mut Connection, tables: &[CapturedTable]) -> Result<Option<String>> {
    if tables.is_empty() {
        return Ok(None);
    }
    let values = tables.iter().map(|table| {
        format!("({}, {}, {})", quote_literal(&table.schema), quote_literal(&table.name), table.oid)
    });
    let sql = format!(
        "SELECT t.schema || '.' || t.name FROM (VALUES {}) t (schema, name, oid) \
         JOIN pg_namespace n ON n.nspname = t.schema \
         JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.name WHERE c.oid <> t.oid LIMIT 1",
        values.collect::<Vec<_>>().join(", ")
    );
    Ok(connection.query(&sql).await?.first().and_then(|row| row.get(0)).map(str::to_owned))
}

/// Says which names of `known` no longer mean the tables that they meant.
pub async fn warn_of_others(
    connection: &mut Connection,
    known: &BTreeMap<String, u32>,
    tables: &[CapturedTable],
) -> Result<()> {
    for (name, oid) in known.iter().filter(|(_, oid)| **oid > 0) {
        let named = tables.iter().find(|table| table.full_name() == *name);
        if named.is_some_and(|table| table.oid == *oid) {
            continue;
        }
        match (called(connection, *oid).await?, named) {
            (Some(now), None) if now == *name => {}
            (Some(now), _) => {
                tracing::warn!(
                    table = name,
                    now,
                    "a captured table was renamed: it is captured on if `tables` has the new name"
                );
            }
            (None, Some(_)) => tracing::warn!(table = name, "a captured table was dropped and made anew"),
            (None, None) => {}
        }
    }
    Ok(())
}

/// How much alike two names are, 0 to 1; a name in another schema is as good as the name itself.
fn similarity(wanted: &str, known: &str) -> f64 {
    let bare = |name: &str| name.split_once('.').map_or(name, |(_, table)| table).to_lowercase();
    let whole = strsim::jaro_winkler(&wanted.to_lowercase(), &known.to_lowercase());
    let same_table = if bare(wanted) == bare(known) { 0.99 } else { 0.0 };
    // The schema's common beginning makes everything in it look alike: the table's own name decides.
    whole.min(strsim::jaro_winkler(&bare(wanted), &bare(known))).max(same_table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_by_the_table() {
        assert!(similarity("public.order", "public.orders") > 0.9);
        assert!(similarity("public.orders", "shop.orders") > 0.9);
        assert!(similarity("public.Orders", "public.orders") > 0.9);
        assert!(similarity("public.orders", "public.zebra") < 0.8);
    }
}
