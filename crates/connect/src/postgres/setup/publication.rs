//! The publications: which tables each must hold, and the SQL that makes them so.
//!
//! There are two. The main one publishes every change. Publishing the updates of a table that has no
//! usable replica identity makes those updates fail for whoever makes them, so such tables, and the
//! outbox, are in a second one that publishes inserts (and truncates) alone. Both are made together,
//! before any slot: a slot cannot decode what was logged before a publication that it is asked for.

use headwater_core::{Error, Kind, Result};

use super::{CapturedTable, Server};
use crate::postgres::client::{Connection, PgError, QueryRow, quote_ident, quote_literal};
use crate::postgres::config::Names;

/// What a publication's comment begins with when it is Headwater's own, to be altered with the config.
const MARK: &str = "made by Headwater";

/// A publication as it is in the database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Publication {
    pub marked: bool,
    /// Whether our user may alter it.
    pub owned: bool,
    /// Whether its tables are not listed one by one: `FOR ALL TABLES`, `FOR TABLES IN SCHEMA`.
    pub open: bool,
    /// Which of insert, update, delete, truncate it publishes, as four letters: `iudt`.
    pub publishes: String,
    pub via_root: bool,
    /// `s` where stored generated columns are published; `None` before version 18.
    pub generated: Option<String>,
    /// The tables listed.
    pub listed: Vec<Listed>,
    /// The tables published in the end, by oid.
    pub published: Vec<u32>,
}

/// A table that a publication lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub oid: u32,
    /// Its name in SQL.
    pub name: String,
    /// Whether only some of its rows are published.
    pub filtered: bool,
    /// Whether only some of its columns are published.
    pub cut: bool,
}

/// What somebody else's publication leaves out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Narrow {
    /// What it leaves out.
    pub what: String,
    /// How to have it published, if it is not meant to be left out.
    pub mend: String,
}

/// What there is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The publications to ask for.
    pub publications: Vec<String>,
    /// The SQL to run, in one transaction; empty when all is as it should be.
    pub statements: Vec<String>,
    /// The publications that the statements make; no older slot can decode for them.
    pub missing: Vec<String>,
    /// Whether the publication is somebody else's, and is as they want it.
    pub theirs: bool,
    /// Whether our user owns all that the statements touch, as far as it can be seen.
    pub permitted: bool,
    /// What is left out where it is theirs.
    pub narrow: Vec<Narrow>,
}

impl Publication {
    async fn find(connection: &mut Connection, name: &str) -> Result<Option<Self>> {
        let name = quote_literal(name);
        // As JSON, because the columns differ between versions: pubgencols (18).
        let sql = format!(
            "SELECT p.oid, coalesce(obj_description(p.oid, 'pg_publication'), ''), \
             p.puballtables OR EXISTS (SELECT FROM pg_publication_tables t WHERE t.pubname = p.pubname) \
                 AND NOT EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid), \
             CASE WHEN pubinsert THEN 'i' ELSE '' END || CASE WHEN pubupdate THEN 'u' ELSE '' END || \
             CASE WHEN pubdelete THEN 'd' ELSE '' END || CASE WHEN pubtruncate THEN 't' ELSE '' END, \
             p.pubviaroot, to_jsonb(p)->>'pubgencols', pg_has_role(p.pubowner, 'USAGE') FROM pg_publication p WHERE p.pubname = {name}"
        );
        let rows = connection.query(&sql).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let listed = connection
            .query(&format!(
                "SELECT c.oid, format('%I.%I', n.nspname, c.relname), \
                 to_jsonb(r)->>'prqual' IS NOT NULL, to_jsonb(r)->>'prattrs' IS NOT NULL FROM pg_publication_rel r \
                 JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE r.prpubid = {} ORDER BY 2",
                row.number::<u32>(0)?
            ))
            .await?;
        let published = connection
            .query(&format!(
                "SELECT c.oid FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname \
                 JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename WHERE t.pubname = {name}"
            ))
            .await?;
        Ok(Some(Self {
            marked: row.text(1)?.starts_with(MARK),
            owned: row.is_true(6),
            open: row.is_true(2),
            publishes: row.text(3)?.to_owned(),
            via_root: row.is_true(4),
            generated: row.get(5).map(str::to_owned),
            listed: listed.iter().map(Listed::read).collect::<Result<_>>()?,
            published: published.iter().map(|row| row.number(0)).collect::<Result<_>>()?,
        }))
    }

    /// The statements that change it into what it should be. A table that was not published whole gets a
    /// new entry: that is what tells it, also after a crash, from one that always was.
    fn alter(&self, shape: &Shape<'_>) -> Vec<String> {
        let name = quote_ident(shape.name);
        let mut statements = Vec::new();
        let generated = self.generated.as_deref().is_none_or(|kind| kind == "s");
        if self.publishes != shape.publishes || !self.via_root || !generated {
            statements.push(format!("ALTER PUBLICATION {name} SET ({});", shape.options()));
        }
        let kinds = shape.publishes.chars().all(|kind| self.publishes.contains(kind));
        let all = kinds && self.via_root && generated;
        // One that somebody narrowed is taken out and put in again whole.
        let whole = |listed: &&Listed| all && !listed.filtered && !listed.cut;
        let wanted = |listed: &Listed| shape.tables.iter().any(|table| table.oid == listed.oid);
        let surplus = self.listed.iter().filter(|listed| !wanted(listed) || !whole(listed));
        let surplus: Vec<&str> = surplus.map(|listed| listed.name.as_str()).collect();
        if !surplus.is_empty() {
            statements.push(format!("ALTER PUBLICATION {name} DROP TABLE ONLY {};", surplus.join(", ONLY ")));
        }
        let there = |table: &CapturedTable| self.listed.iter().filter(whole).any(|one| one.oid == table.oid);
        let missing: Vec<&CapturedTable> =
            shape.tables.iter().copied().filter(|table| !there(table)).collect();
        if !missing.is_empty() {
            statements.push(format!("ALTER PUBLICATION {name} ADD {};", list(&missing)));
        }
        statements
    }
}

impl Listed {
    fn read(row: &QueryRow) -> Result<Self> {
        Ok(Self {
            oid: row.number(0)?,
            name: row.text(1)?.to_owned(),
            filtered: row.is_true(2),
            cut: row.is_true(3),
        })
    }
}

impl Publication {
    /// What it leaves out of the tables. It may be meant so: it is somebody else's.
    fn narrow(&self, names: &Names, tables: &[CapturedTable]) -> Vec<Narrow> {
        let (shown, name) = (&names.publication, quote_ident(&names.publication));
        let mut narrow = Vec::new();
        let kinds = [('u', "updates"), ('d', "deletes"), ('t', "truncates")];
        let left_out = kinds.iter().filter(|(letter, _)| !self.publishes.contains(*letter));
        let left_out: Vec<&str> = left_out.map(|(_, kind)| *kind).collect();
        if !left_out.is_empty() && tables.iter().any(|table| table.changes) {
            narrow.push(Narrow {
                what: format!("publication \"{shown}\" does not publish {}: they are not captured", left_out.join(" and ")),
                mend: format!("run as its owner: ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate');"),
            });
        }
        for listed in self.listed.iter().filter(|listed| listed.filtered || listed.cut) {
            let Some(table) = tables.iter().find(|table| table.oid == listed.oid) else { continue };
            let part = match (listed.filtered, listed.cut) {
                (true, true) => "some rows and columns",
                (true, false) => "some rows",
                _ => "some columns",
            };
            let one = &listed.name;
            narrow.push(Narrow {
                what: format!("publication \"{shown}\" publishes only {part} of {}: the others are not captured", table.full_name()),
                mend: format!("if that is not meant, run as its owner: BEGIN; ALTER PUBLICATION {name} DROP TABLE ONLY {one}; ALTER PUBLICATION {name} ADD TABLE ONLY {one}; COMMIT;"),
            });
        }
        narrow
    }
}

/// What one of our publications should be.
struct Shape<'a> {
    name: &'a str,
    publishes: &'static str,
    tables: Vec<&'a CapturedTable>,
    server: &'a Server,
}

impl Shape<'_> {
    fn options(&self) -> String {
        let what =
            if self.publishes == "it" { "insert, truncate" } else { "insert, update, delete, truncate" };
        let generated =
            if self.server.publishes_generated() { ", publish_generated_columns = stored" } else { "" };
        format!("publish = '{what}', publish_via_partition_root = true{generated}")
    }

    fn create(&self, source: &str) -> Vec<String> {
        let name = quote_ident(self.name);
        let tables =
            if self.tables.is_empty() { String::new() } else { format!(" FOR {}", list(&self.tables)) };
        let comment = format!("{MARK} for its source {source}, and altered with that source's config");
        let comment = quote_literal(&comment);
        vec![
            format!("CREATE PUBLICATION {name}{tables} WITH ({});", self.options()),
            format!("COMMENT ON PUBLICATION {name} IS {comment};"),
        ]
    }
}

/// `ONLY`, since the children of a table that is inherited from are tables of their own to us.
fn list(tables: &[&CapturedTable]) -> String {
    let names: Vec<String> = tables.iter().map(|table| format!("ONLY {}", table.sql_name())).collect();
    format!("TABLE {}", names.join(", "))
}

/// What has to be done so that `tables` are published. An error when the publication is somebody else's
/// and lacks something.
pub async fn plan(
    connection: &mut Connection,
    names: &Names,
    is_default: bool,
    server: &Server,
    tables: &[CapturedTable],
) -> Result<Plan> {
    let main = Publication::find(connection, &names.publication).await?;
    let inserts = Publication::find(connection, &names.inserts).await?;
    match main {
        Some(theirs) if theirs.open || !(theirs.marked || is_default) => {
            verify(&theirs, names, tables)?;
            Ok(Plan {
                publications: vec![names.publication.clone()],
                statements: Vec::new(),
                missing: Vec::new(),
                theirs: true,
                permitted: true,
                narrow: theirs.narrow(names, tables),
            })
        }
        ours => {
            let sql = "SELECT has_database_privilege(current_database(), 'CREATE')";
            let creator = connection.query(sql).await?.first().is_some_and(|row| row.is_true(0));
            let mine = |publication: &Option<Publication>| publication.as_ref().map_or(creator, |p| p.owned);
            let permitted = mine(&ours) && mine(&inserts) && tables.iter().all(|table| table.owned);
            Ok(Plan { permitted, ..shape(ours, inserts, names, server, tables) })
        }
    }
}

fn shape(
    main: Option<Publication>,
    inserts: Option<Publication>,
    names: &Names,
    server: &Server,
    tables: &[CapturedTable],
) -> Plan {
    let (narrow, whole) = tables.iter().partition(|table| table.publishes_inserts_only());
    let shapes = [
        (main, Shape { name: &names.publication, publishes: "iudt", tables: whole, server }),
        (inserts, Shape { name: &names.inserts, publishes: "it", tables: narrow, server }),
    ];
    let missing = shapes.iter().filter(|(there, _)| there.is_none());
    let missing = missing.map(|(_, shape)| shape.name.to_owned()).collect();
    let of_shape = |(there, shape): (Option<Publication>, Shape<'_>)| match there {
        Some(there) => there.alter(&shape),
        None => shape.create(&names.source),
    };
    let statements = shapes.into_iter().flat_map(of_shape).collect();
    let publications = vec![names.publication.clone(), names.inserts.clone()];
    Plan {
        publications,
        statements,
        missing,
        theirs: false,
        permitted: tables.iter().all(|table| table.owned),
        narrow: Vec::new(),
    }
}

/// Whether a publication that is not ours publishes all that the config names.
fn verify(theirs: &Publication, names: &Names, tables: &[CapturedTable]) -> Result<()> {
    let name = quote_ident(&names.publication);
    let refused = |what: String, sql: String| {
        Err(Error::new(Kind::Refused, what).hint(format!(
            "run as its owner: {sql} or leave `publication` out of the config: Headwater then makes its own"
        )))
    };
    let missing: Vec<&CapturedTable> =
        tables.iter().filter(|table| !theirs.published.contains(&table.oid)).collect();
    if !theirs.via_root && missing.iter().any(|table| table.partitioned) {
        return refused(
            format!(
                "publication {name} publishes partitions, not the partitioned tables that they belong to"
            ),
            format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = true);"),
        );
    }
    if !missing.is_empty() {
        let listed: Vec<String> = missing.iter().map(|table| table.full_name()).collect();
        return refused(
            format!("publication {name} does not publish {}", listed.join(", ")),
            format!("ALTER PUBLICATION {name} ADD {};", list(&missing)),
        );
    }
    if !theirs.publishes.contains('i') {
        return refused(
            format!("publication {name} does not publish inserts"),
            format!("ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate');"),
        );
    }
    Ok(())
}

impl Plan {
    /// The SQL in one piece, for whoever may run it.
    pub fn sql(&self) -> String {
        self.statements.join("\n")
    }

    /// Runs the statements. When our user may not, the error's hint has them.
    pub async fn apply(&self, connection: &mut Connection, user: &str) -> Result<()> {
        if self.statements.is_empty() {
            return Ok(());
        }
        for statement in &self.statements {
            tracing::info!(%statement, "publication");
        }
        // One message, so one transaction. Whoever holds a lock on a table is not waited for without end.
        let sql = format!("SET LOCAL lock_timeout = '10s';\n{}", self.sql());
        connection.query(&sql).await.map(|_| ()).map_err(|error| match PgError::code_of(&error) {
            Some("42501") => self.refused(user).because(error),
            Some("25006") => self.refused_by_standby().because(error),
            Some("55P03") => {
                error.hint("a table is locked by a long transaction: wait for its end, or see pg_locks")
            }
            _ => error,
        })
    }

    fn state(&self) -> &'static str {
        if self.missing.is_empty() { "do not fit the config" } else { "are missing" }
    }

    /// The error when the server takes no statements.
    pub(in crate::postgres) fn refused_by_standby(&self) -> Error {
        let what = format!("the publications {}, and this server takes no changes", self.state());
        Error::new(Kind::Refused, what).hint(format!("run on the primary:\n{}", self.sql()))
    }

    /// The error when our user may not run the statements.
    pub(in crate::postgres) fn refused(&self, user: &str) -> Error {
        let what = format!("the publications {}, and user \"{user}\" may not mend that", self.state());
        Error::new(Kind::Refused, what)
            .hint(format!("run as an owner of the tables who may CREATE in the database:\n{}", self.sql()))
    }
}
