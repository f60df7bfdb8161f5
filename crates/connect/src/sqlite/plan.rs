//! What has to be done so that the triggers fit the tables: planned from the catalogue alone, as SQL
//! text, so that it can be run, printed, or found to be nothing.

use std::collections::HashSet;
use std::fmt;

use headwater_core::{Error, Kind, Result};
use headwater_wire::format::OutboxColumns;
use rusqlite::Connection;

use super::definition::{self, Captures, Definition, Recorded};
use super::errors::Sql as _;
use super::layout::{self, NOW, ident, literal, value_columns};
use super::outbox;
use super::shape::{self, Shape};
use super::triggers::{self, Trigger};
use super::watch::schema_version;
use crate::settings::Outbox;

/// What is to be captured.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Tables by name, or `"*"`.
    pub tables: &'a [String],
    /// The outbox.
    pub outbox: Option<&'a Outbox>,
    /// Whether that is all: triggers on other tables are removed.
    pub only: bool,
    /// The last change that was read: the ones up to it were made while all triggers were in step.
    pub read: u64,
}

/// What has to be done.
#[derive(Debug, Default)]
pub struct Plan {
    /// The statements, in order, for one transaction.
    pub statements: Vec<String>,
    /// What they do, in words.
    pub notes: Vec<Note>,
    /// The tables that are captured afterwards.
    pub captured: Vec<Captured>,
    /// The version of the schema that it was planned for.
    pub schema: i64,
}

/// A table that is captured.
#[derive(Debug, Clone)]
pub struct Captured {
    /// What it looks like.
    pub shape: Shape,
    /// What is captured of it.
    pub captures: Captures,
    /// The number of its definition.
    pub def: i64,
}

/// One thing that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// Headwater's tables were made.
    Installed,
    /// The outbox table was made.
    OutboxMade(String),
    /// A table is captured from now on.
    New(String),
    /// The definition of a captured table changed; its triggers were in place, and missed nothing but
    /// what is read again.
    Changed(String, i64),
    /// A captured table got a unique index, and changes were made since by triggers that did not know it.
    Unnoticed(String),
    /// Triggers of a captured table were gone: changes may have been missed.
    Missed(String),
    /// Triggers were made anew, without any change having been missed.
    Renewed(String),
    /// A table is no longer captured.
    Released(String),
    /// A captured table is not there any more.
    Dropped(String),
    /// The change table was removed.
    Removed,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Installed => f.write_str("made the change table"),
            Self::OutboxMade(table) => write!(f, "made outbox table \"{table}\""),
            Self::New(table) => write!(f, "table \"{table}\" is captured from now on"),
            Self::Changed(table, version) => write!(
                f,
                "table \"{table}\" was altered: its triggers are made anew for definition {version}; \
                 rows changed since are read again"
            ),
            Self::Unnoticed(table) => write!(
                f,
                "table \"{table}\" got a unique index: rows that REPLACE displaced by it since may not have \
                 been captured; the table is read again, but which rows it displaced is not known"
            ),
            Self::Missed(table) => write!(
                f,
                "triggers of table \"{table}\" were gone: changes made since may not have been captured; \
                 the table is read again, but deletes made since are not known"
            ),
            Self::Renewed(table) => write!(f, "made the triggers of table \"{table}\" anew"),
            Self::Released(table) => write!(f, "table \"{table}\" is no longer captured"),
            Self::Removed => f.write_str("removed the change table"),
            Self::Dropped(table) => write!(f, "table \"{table}\" is not there: nothing of it is captured"),
        }
    }
}

/// Plans; reads the catalogue and changes nothing.
pub fn plan(conn: &Connection, wanted: Wanted<'_>) -> Result<Plan> {
    let mut planner = Planner::new(conn)?;
    planner.read = wanted.read;
    if !planner.installed {
        planner.plan.statements = layout::create();
        planner.plan.notes.push(Note::Installed);
    }
    planner.outbox(wanted.outbox)?;
    planner.tables(wanted)?;
    if wanted.only {
        planner.release();
    }
    Ok(planner.plan)
}

/// A trigger of ours that is there.
#[derive(Debug)]
struct Existing {
    name: String,
    table: String,
    sql: String,
    /// Whether the application made a trigger on the same table later: that one runs before ours.
    overtaken: bool,
}

impl Existing {
    fn is_one_of(&self, triggers: &[Trigger]) -> bool {
        triggers.iter().any(|trigger| trigger.name.eq_ignore_ascii_case(&self.name))
    }
}

fn existing(conn: &Connection) -> Result<Vec<Existing>> {
    let doing = || "listing triggers".to_owned();
    let sql = "SELECT name, tbl_name, sql, EXISTS (SELECT 1 FROM sqlite_schema AS other \
               WHERE other.type = 'trigger' AND other.tbl_name = mine.tbl_name COLLATE NOCASE \
               AND other.rowid > mine.rowid AND other.name NOT LIKE 'headwater\\_%' ESCAPE '\\') \
               FROM sqlite_schema AS mine \
               WHERE type = 'trigger' AND name LIKE 'headwater\\_%' ESCAPE '\\'";
    let mut statement = conn.prepare(sql).sql(doing)?;
    let rows = statement.query_map([], |row| {
        Ok(Existing { name: row.get(0)?, table: row.get(1)?, sql: row.get(2)?, overtaken: row.get(3)? })
    });
    rows.sql(doing)?.collect::<rusqlite::Result<_>>().sql(doing)
}

struct Planner<'a> {
    conn: &'a Connection,
    installed: bool,
    next_def: i64,
    width: usize,
    read: u64,
    existing: Vec<Existing>,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(conn: &'a Connection) -> Result<Self> {
        let installed = layout::installed(conn)?;
        Ok(Self {
            conn,
            installed,
            next_def: if installed { definition::next_number(conn)? } else { 1 },
            width: if installed { layout::width(conn)? } else { 0 },
            read: 0,
            existing: existing(conn)?,
            plan: Plan { schema: schema_version(conn)?, ..Plan::default() },
        })
    }

    fn outbox(&mut self, outbox: Option<&Outbox>) -> Result<()> {
        let Some(outbox) = outbox else { return Ok(()) };
        let there = shape::tables(self.conn)?;
        let shape = match find(&there, &outbox.table)? {
            Some(table) => Shape::read(self.conn, table)?,
            // Whoever carries the plan out makes it first, and plans again.
            None => {
                let table = wanted(outbox)?;
                self.plan.statements.push(outbox::script(table));
                self.plan.notes.push(Note::OutboxMade(bare(table).to_owned()));
                return Ok(());
            }
        };
        self.capture(shape, Captures::Inserts)
    }

    fn tables(&mut self, wanted: Wanted<'_>) -> Result<()> {
        let there = shape::tables(self.conn)?;
        let outbox = wanted.outbox.map(|outbox| find(&there, &outbox.table)).transpose()?.flatten();
        let mut chosen = HashSet::new();
        for name in wanted.tables {
            if name == "*" {
                let ours = outbox::tables(self.conn)?;
                let theirs = |table: &&String| Some(table.as_str()) != outbox && !ours.contains(table);
                chosen.extend(there.iter().filter(theirs));
                continue;
            }
            match find(&there, name)? {
                Some(table) if Some(table) == outbox => {}
                Some(table) => {
                    chosen.extend(there.iter().find(|one| *one == table));
                }
                None => self.missing(name, &there)?,
            }
        }
        for table in there.iter().filter(|table| chosen.contains(table)) {
            self.capture(Shape::read(self.conn, table)?, Captures::Changes)?;
        }
        Ok(())
    }

    /// A table that was captured may be dropped; one that was never there is a mistake.
    fn missing(&mut self, name: &str, there: &[String]) -> Result<()> {
        if self.installed && definition::newest(self.conn, bare(name))?.is_some() {
            self.plan.notes.push(Note::Dropped(bare(name).to_owned()));
            return Ok(());
        }
        let tables = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        Err(Error::new(Kind::Refused, format!("there is no table \"{name}\" to capture"))
            .hint(format!("correct `tables` or make the table; ordinary tables there are: {tables}")))
    }

    fn capture(&mut self, shape: Shape, captures: Captures) -> Result<()> {
        let definition = Definition::of(&shape, captures);
        let known = if self.installed { definition::newest(self.conn, &shape.name)? } else { None };
        let make = |def| match captures {
            Captures::Changes => triggers::of_table(&shape, def),
            Captures::Inserts => triggers::of_outbox(&shape, def),
        };
        let same = known.as_ref().filter(|known| known.definition == definition);
        let standing = known.as_ref().map_or_else(Vec::new, |known| make(known.def));
        let all_there = !standing.is_empty() && standing.iter().all(|trigger| self.stands(trigger));
        if let (Some(known), true) = (same, all_there) {
            let def = known.def;
            if !standing.iter().all(|trigger| self.stands_as_made(trigger)) {
                self.plan.notes.push(Note::Renewed(shape.name.clone()));
                self.make(&shape, &standing);
            }
            self.existing.retain(|existing| !existing.is_one_of(&standing));
            self.plan.captured.push(Captured { shape, captures, def });
            return Ok(());
        }
        let def = self.next_def;
        self.next_def += 1;
        let triggers = make(def);
        self.define(&shape, &definition, known.as_ref(), def, all_there)?;
        self.make(&shape, &triggers);
        if captures == Captures::Inserts && !all_there {
            let earlier = known.as_ref().map(|known| known.def);
            self.plan.statements.extend(triggers::what_waits(&shape, def, earlier, self.read));
        }
        self.plan.captured.push(Captured { shape, captures, def });
        Ok(())
    }

    fn stands(&self, trigger: &Trigger) -> bool {
        self.existing.iter().any(|existing| existing.name.eq_ignore_ascii_case(&trigger.name))
    }

    fn stands_as_made(&self, trigger: &Trigger) -> bool {
        self.existing.iter().any(|existing| existing.sql == trigger.sql && !existing.overtaken)
    }

    /// Records a new definition.
    fn define(
        &mut self,
        shape: &Shape,
        definition: &Definition,
        known: Option<&Recorded>,
        def: i64,
        all_there: bool,
    ) -> Result<()> {
        let version = known.map_or(1, |known| known.version + 1);
        let standing = known.filter(|_| all_there);
        let unnoticed = match standing {
            Some(known) => grew(definition, known) && self.writes_since(known)?,
            None => false,
        };
        let reread = standing.filter(|_| !unnoticed).and_then(|known| reread(shape, definition, known, def));
        let gap = unnoticed || !(all_there && (reread.is_some() || covered(definition, known)));
        let widen = layout::widen(self.width, shape.columns.len());
        self.width = self.width.max(shape.columns.len());
        self.plan.statements.extend(widen);
        self.plan.statements.push(format!(
            "INSERT INTO headwater_table (def, name, version, definition, gap, made_at) \
             VALUES ({def}, {}, {version}, {}, {}, {NOW})",
            literal(&shape.name),
            literal(&definition.to_json()?),
            i32::from(gap)
        ));
        self.plan.statements.extend(reread);
        self.plan.notes.push(match known {
            None => Note::New(shape.name.clone()),
            Some(_) if unnoticed => Note::Unnoticed(shape.name.clone()),
            Some(_) if all_there => Note::Changed(shape.name.clone(), version),
            Some(_) => Note::Missed(shape.name.clone()),
        });
        Ok(())
    }

    /// Whether rows may have been displaced since the last change that was read.
    fn writes_since(&self, known: &Recorded) -> Result<bool> {
        let sql =
            "SELECT EXISTS (SELECT 1 FROM headwater_change WHERE id > ?1 AND def = ?2 AND op IN ('c', 'u'))";
        let read = i64::try_from(self.read).unwrap_or(i64::MAX);
        let found = self.conn.query_row(sql, [read, known.def], |row| row.get(0));
        found.sql(|| format!("looking for changes of table \"{}\"", known.table))
    }

    /// Makes triggers in place of all that stand on the table, or under their names.
    fn make(&mut self, shape: &Shape, triggers: &[Trigger]) {
        let (old, others) = std::mem::take(&mut self.existing).into_iter().partition(|existing| {
            existing.table.eq_ignore_ascii_case(&shape.name) || existing.is_one_of(triggers)
        });
        self.existing = others;
        let old: Vec<Existing> = old;
        self.plan.statements.extend(old.iter().map(|existing| drop_trigger(&existing.name)));
        self.plan.statements.extend(triggers.iter().map(|trigger| trigger.sql.clone()));
    }

    /// Removes the triggers that stand.
    fn release(&mut self) {
        let mut tables: Vec<&str> = self.existing.iter().map(|existing| existing.table.as_str()).collect();
        tables.dedup();
        tables.retain(|table| *table != "headwater_change");
        self.plan.notes.extend(tables.into_iter().map(|table| Note::Released(table.to_owned())));
        self.plan.statements.extend(self.existing.iter().map(|existing| drop_trigger(&existing.name)));
    }
}

/// The name of the outbox to make: Headwater's own layout, unless the config names columns of another.
pub fn wanted(outbox: &Outbox) -> Result<&str> {
    if outbox.columns == OutboxColumns::default() {
        return Ok(&outbox.table);
    }
    let what = format!("there is no outbox \"{}\"", outbox.table);
    Err(Error::new(Kind::Refused, what).hint(
        "make it with the columns that the config names, or leave them out: then Headwater makes its own",
    ))
}

/// Plans to take away the triggers of some tables; with none named, all that Headwater made.
pub fn removal(conn: &Connection, tables: &[String]) -> Result<Plan> {
    let mut planner = Planner::new(conn)?;
    if !planner.installed {
        return Ok(planner.plan);
    }
    if tables.is_empty() {
        planner.release();
        planner.plan.statements.extend(layout::DROP.map(str::to_owned));
        planner.plan.notes.push(Note::Removed);
        return Ok(planner.plan);
    }
    let there = shape::tables(conn)?;
    let mut chosen = Vec::new();
    for name in tables {
        match find(&there, name)? {
            Some(table) => chosen.push(table),
            None => planner.missing(name, &there)?,
        }
    }
    planner.existing.retain(|existing| chosen.contains(&existing.table.as_str()));
    planner.release();
    Ok(planner.plan)
}

fn drop_trigger(name: &str) -> String {
    format!("DROP TRIGGER IF EXISTS {}", ident(name))
}

/// Whether changes made under the old definition say everything that the new one asks for.
fn covered(new: &Definition, known: Option<&Recorded>) -> bool {
    known.is_some_and(|known| {
        let has = |name: &str| known.definition.columns.iter().any(|(known, _)| known == name);
        known.definition.captures == new.captures && new.columns.iter().all(|(name, _)| has(name))
    })
}

/// Whether rows may now displace others by what the old triggers did not look up.
fn grew(new: &Definition, known: &Recorded) -> bool {
    new.unique.iter().any(|unique| !known.definition.unique.contains(unique))
}

/// Reads the rows again that were changed while the old triggers did not see the new columns. `None`
/// when there is no need, or when no key says which rows they are.
fn reread(shape: &Shape, new: &Definition, known: &Recorded, def: i64) -> Option<String> {
    if new.captures == Captures::Inserts || covered(new, Some(known)) {
        return None;
    }
    let columns = new.columns.iter();
    let keys: Vec<&String> = columns.filter(|(_, key)| *key).map(|(name, _)| name).collect();
    let place =
        |name: &String| known.definition.columns.iter().position(|(known, key)| *key && known == name);
    let places: Vec<usize> = keys.iter().map(|name| place(name)).collect::<Option<_>>()?;
    let same_key = known.definition.columns.iter().filter(|(_, key)| *key).count() == keys.len();
    if keys.is_empty() || !same_key {
        return None;
    }
    let list = |items: Vec<String>| format!("({})", items.join(", "));
    let key = list(keys.iter().map(|name| format!("x.{}", ident(name))).collect());
    let old_key = places.iter().map(|at| format!("c{at}")).collect::<Vec<_>>().join(", ");
    let values = shape.columns.iter().map(|column| format!("x.{}", ident(&column.name)));
    Some(format!(
        "INSERT INTO headwater_change (def, op, at, {}) SELECT {def}, 'r', {NOW}, {} FROM {} AS x \
         WHERE {key} IN (SELECT {old_key} FROM headwater_change WHERE def = {} AND op IN ('c', 'u'))",
        value_columns(shape.columns.len()),
        values.collect::<Vec<_>>().join(", "),
        ident(&shape.name),
        known.def,
    ))
}

/// The table that a config means by `name`: the name itself, or what stands behind `main.`. SQLite does
/// not tell upper from lower case in names, but whoever reads changes does.
fn find<'a>(there: &'a [String], name: &str) -> Result<Option<&'a str>> {
    let named = |name: &str| there.iter().find(|table| table.eq_ignore_ascii_case(name));
    match named(name).or_else(|| named(bare(name))) {
        Some(table) if table != name && table != bare(name) => {
            let what =
                format!("there is no table \"{name}\" to capture, but one that is spelled \"{table}\"");
            Err(Error::new(Kind::Refused, what)
                .hint(format!("write \"{table}\", also in `from` of its streams")))
        }
        found => Ok(found.map(String::as_str)),
    }
}

/// A table's name without the schema that every table here has.
pub fn bare(name: &str) -> &str {
    name.strip_prefix("main.").unwrap_or(name)
}
