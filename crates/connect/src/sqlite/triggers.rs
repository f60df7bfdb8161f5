//! The triggers on a captured table, as SQL.
//!
//! What they must withstand, and how:
//!
//! - **REPLACE fires no delete trigger** (unless `recursive_triggers` is on). So BEFORE INSERT and BEFORE
//!   UPDATE note every row that has a value which the new row wants for itself in `headwater_displaced`.
//!   Whether such a row really goes is not known yet: the statement may be an OR IGNORE, an upsert, or
//!   fail. So the AFTER trigger looks: a noted row that is no longer there, and that no delete trigger
//!   took off the list, was displaced, and is written down as a delete. A note about a row that is still
//!   there means nothing; it is kept true (updated and deleted with its row) and forgotten in time.
//! - **Other triggers of the application** may run first and change the row again. So create and update
//!   write down the row as it stands, not `NEW`: whichever trigger runs last, the last change written of
//!   a row is how it is.
//! - **The outer statement's conflict clause** overrides one inside a trigger: nothing here can conflict.
//! - **Any table, any names, any values**: only qualified, quoted names; no functions on values. Expressions
//!   of the application's own indexes may fail: they are asked of a row only where SQLite asks them too, so
//!   of no row that a partial index leaves out, or that a CHECK will refuse.
//! - **Rowids move** where they are no key (a dump and its restore, VACUUM), and notes do not: there a unique
//!   index has to agree that a noted row is gone.

use super::index;
use super::layout::{NOW, ident, value_columns};
use super::shape::{Part, Place, ROWID, Shape, Term, Unique};

/// A trigger: its name and the statement that makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    /// Its name.
    pub name: String,
    /// Its `CREATE TRIGGER`.
    pub sql: String,
}

/// How many notes of rows that may be displaced are kept at least: enough for every trigger that may be
/// running inside another.
const NOTES: usize = 256;

/// The trigger on an outbox: rows are only ever inserted, and `NEW` is what was published even if
/// another trigger deletes the row at once. A row of Headwater's own layout is settled when the change that
/// says what it was is pruned, which is once that is confirmed.
pub fn of_outbox(shape: &Shape, def: i64) -> Vec<Trigger> {
    let writer = Writer { shape, def };
    let insert = writer.trigger("insert", "AFTER INSERT", None, vec![writer.record_image('c', "NEW")]);
    let settle = sequence(shape).map(|at| {
        let name = format!("headwater_settle_{}", shape.name);
        let sql = format!(
            "CREATE TRIGGER {} AFTER DELETE ON headwater_change WHEN OLD.def = {def} BEGIN\n  \
             UPDATE {} SET state = 'published', settled_at = {NOW}, error = NULL, next_try = NULL \
             WHERE seq = OLD.c{at} AND {WAITS};\nEND",
            ident(&name),
            ident(&shape.name)
        );
        Trigger { name, sql }
    });
    std::iter::once(insert).chain(settle).collect()
}

/// The states of rows that are not published yet.
const WAITS: &str = "state IN ('new', 'waiting', 'retrying')";

/// Where the sequence is, in an outbox of Headwater's own layout.
fn sequence(shape: &Shape) -> Option<usize> {
    let at = |name: &str| shape.columns.iter().position(|column| column.name == name);
    at("state").and(at("stream")).and(at("seq"))
}

/// Writes down what an outbox of Headwater's own layout holds that nobody has published. Changes after `read`
/// that an earlier definition wrote down of its rows are those of another time: a relay may have published them.
pub fn what_waits(shape: &Shape, def: i64, earlier: Option<i64>, read: u64) -> Vec<String> {
    let Some(at) = sequence(shape) else { return Vec::new() };
    let forget = earlier.filter(|_| read > 0).map(|earlier| {
        let outbox = ident(&shape.name);
        format!("DELETE FROM headwater_change WHERE id > {read} AND def = {earlier} AND c{at} IN (SELECT seq FROM {outbox})")
    });
    let waits = format!(
        "INSERT INTO headwater_change (def, op, at, {}) SELECT {def}, 'c', {NOW}, {} FROM {} AS headwater_x \
         WHERE {WAITS} ORDER BY seq",
        value_columns(shape.columns.len()),
        Writer { shape, def }.values("headwater_x"),
        ident(&shape.name)
    );
    forget.into_iter().chain([waits]).collect()
}

/// The triggers on a table that is captured whole.
pub fn of_table(shape: &Shape, def: i64) -> Vec<Trigger> {
    let writer = Writer { shape, def };
    vec![
        writer.trigger("before_insert", "BEFORE INSERT", None, writer.note("")),
        writer.trigger("before_update", "BEFORE UPDATE", writer.moved(), {
            writer.note(&format!(" AND NOT ({})", writer.place(&writer.itself(), "OLD")))
        }),
        writer.trigger("insert", "AFTER INSERT", None, writer.after_insert()),
        writer.trigger("update", "AFTER UPDATE", None, writer.after_update()),
        writer.trigger("delete", "AFTER DELETE", None, writer.after_delete()),
    ]
}

struct Writer<'a> {
    shape: &'a Shape,
    def: i64,
}

impl Writer<'_> {
    fn trigger(&self, word: &str, when: &str, only: Option<String>, body: Vec<String>) -> Trigger {
        let name = format!("headwater_{word}_{}", self.shape.name);
        let only = only.map(|only| format!(" WHEN {only}")).unwrap_or_default();
        let body = body.join(";\n  ");
        let sql = format!(
            "CREATE TRIGGER {} {when} ON {}{only} BEGIN\n  {body};\nEND",
            ident(&name),
            ident(&self.shape.name)
        );
        Trigger { name, sql }
    }

    /// What a row of the table is called that is looked up by an index. The index's condition may call it
    /// by the table's name; only a table `new` or `old` must not hide the rows of the trigger.
    fn itself(&self) -> String {
        let hides = ["new", "old"].iter().any(|name| self.shape.name.eq_ignore_ascii_case(name));
        ident(if hides { "headwater_x" } else { &self.shape.name })
    }

    /// Notes the rows that stand where the new row wants to be.
    fn note(&self, but: &str) -> Vec<String> {
        let (def, width, itself) = (self.def, self.shape.columns.len(), self.itself());
        let forget = format!(
            "DELETE FROM headwater_displaced WHERE rowid < \
             (SELECT max(rowid) FROM headwater_displaced) - {NOTES}"
        );
        let note = |which: String| {
            format!(
                "INSERT INTO headwater_displaced (def, row, {}) SELECT {def}, {}, {} FROM {} AS {itself} \
                 WHERE {which}{but} AND NOT EXISTS (SELECT 1 FROM headwater_displaced WHERE {})",
                value_columns(width),
                self.row_of(&itself),
                self.values(&itself),
                ident(&self.shape.name),
                self.noted(&itself),
            )
        };
        let lookups = self.shape.unique.iter().map(|unique| self.conflict(unique));
        let notes = std::iter::once(self.place(&itself, "NEW")).chain(lookups).map(note);
        std::iter::once(forget).chain(notes).collect()
    }

    /// Whether an update may conflict with other rows at all: `None` where only trying tells.
    fn moved(&self) -> Option<String> {
        let mut terms = match &self.shape.place {
            Place::Rowid { name, .. } => vec![format!("NEW.{name} IS NOT OLD.{name}")],
            Place::Key(parts) => parts.iter().map(|part| self.differs(part.column)).collect(),
        };
        for unique in &self.shape.unique {
            for term in &unique.terms {
                match term {
                    Term::Column(part) if unique.condition.is_none() && !self.generated(part.column) => {
                        terms.push(self.differs(part.column));
                    }
                    _ => return None,
                }
            }
        }
        Some(terms.join(" OR "))
    }

    fn generated(&self, column: usize) -> bool {
        self.shape.all_columns().nth(column).is_none_or(|column| column.generated)
    }

    fn differs(&self, column: usize) -> String {
        let name = self.column(column);
        format!("NEW.{name} COLLATE BINARY IS NOT OLD.{name}")
    }

    fn after_insert(&self) -> Vec<String> {
        let mut body = self.record_displaced(&self.gone());
        body.push(self.record_standing('c'));
        body
    }

    fn after_update(&self) -> Vec<String> {
        let gone = format!("NOT ({}) AND {}", self.noted_is("OLD"), self.gone());
        let mut body = self.record_displaced(&gone);
        let columns = self.shape.columns.iter().enumerate();
        let values = columns.map(|(at, column)| format!("c{at} = NEW.{}", ident(&column.name)));
        body.push(format!(
            "UPDATE headwater_displaced SET row = {}, {} WHERE {}",
            self.row_of("NEW"),
            values.collect::<Vec<_>>().join(", "),
            self.noted("OLD")
        ));
        body.push(self.record_image('b', "OLD"));
        body.push(self.record_standing('u'));
        body
    }

    fn after_delete(&self) -> Vec<String> {
        let forget = format!("DELETE FROM headwater_displaced WHERE {}", self.noted("OLD"));
        vec![forget, self.record_image('d', "OLD")]
    }

    /// Writes the noted rows that are gone down as deletes.
    fn record_displaced(&self, gone: &str) -> Vec<String> {
        let values = value_columns(self.shape.columns.len());
        let which = format!("headwater_displaced.def = {} AND {gone}", self.def);
        vec![
            format!(
                "INSERT INTO headwater_change (def, op, at, {values}) \
                 SELECT def, 'd', {NOW}, {values} FROM headwater_displaced WHERE {which} ORDER BY rowid"
            ),
            format!("DELETE FROM headwater_displaced WHERE {which}"),
        ]
    }

    /// Writes down `NEW` or `OLD`.
    fn record_image(&self, op: char, image: &str) -> String {
        format!(
            "INSERT INTO headwater_change (def, op, at, {}) VALUES ({}, '{op}', {NOW}, {})",
            value_columns(self.shape.columns.len()),
            self.def,
            self.values(image)
        )
    }

    /// Writes down the row as it stands now.
    fn record_standing(&self, op: char) -> String {
        format!(
            "INSERT INTO headwater_change (def, op, at, {}) SELECT {}, '{op}', {NOW}, {} \
             FROM {} AS headwater_x WHERE {}",
            value_columns(self.shape.columns.len()),
            self.def,
            self.values("headwater_x"),
            ident(&self.shape.name),
            self.place("headwater_x", "NEW")
        )
    }

    fn column(&self, at: usize) -> String {
        self.shape.all_columns().nth(at).map(|column| ident(&column.name)).unwrap_or_default()
    }

    fn values(&self, of: &str) -> String {
        let columns = self.shape.columns.iter();
        columns.map(|column| format!("{of}.{}", ident(&column.name))).collect::<Vec<_>>().join(", ")
    }

    /// That two rows of the table are one and the same.
    fn place(&self, left: &str, right: &str) -> String {
        match &self.shape.place {
            Place::Rowid { name, .. } => format!("{left}.{name} = {right}.{name}"),
            Place::Key(parts) => self.all(parts, |_, part| {
                let name = self.column(part.column);
                format!("{left}.{name} = {right}.{name} COLLATE {}", ident(&part.collation))
            }),
        }
    }

    /// What `headwater_displaced.row` holds for a row: the rowid, or the first value of the key.
    fn row_of(&self, of: &str) -> String {
        match &self.shape.place {
            Place::Rowid { name, .. } => format!("{of}.{name}"),
            Place::Key(parts) => {
                parts.first().map(|part| format!("{of}.{}", self.column(part.column))).unwrap_or_default()
            }
        }
    }

    /// That a note is about exactly this row; served by the index.
    fn noted(&self, of: &str) -> String {
        let mut terms = vec![
            format!("headwater_displaced.def = {}", self.def),
            format!("headwater_displaced.row = {}", self.exact(&self.row_of(of))),
        ];
        if let Place::Key(parts) = &self.shape.place {
            terms.extend(parts.iter().skip(1).map(|part| {
                let value = self.exact(&format!("{of}.{}", self.column(part.column)));
                format!("headwater_displaced.c{} = {value}", part.column)
            }));
        }
        terms.extend(self.agreeing().unwrap_or_default().iter().map(|part| {
            let name = self.column(part.column);
            format!("headwater_displaced.c{} IS {of}.{name} COLLATE BINARY", part.column)
        }));
        terms.join(" AND ")
    }

    /// A value compared byte by byte, whatever its column's collation; rowids need no such care.
    fn exact(&self, value: &str) -> String {
        match self.shape.place {
            Place::Rowid { .. } => value.to_owned(),
            Place::Key(_) => format!("{value} COLLATE BINARY"),
        }
    }

    /// That a note's row was displaced: `NEW` has its place, or nobody has.
    fn gone(&self) -> String {
        let by_place = format!("({} OR NOT {})", self.noted_is("NEW"), self.noted_lives());
        let Some(parts) = self.agreeing() else { return by_place };
        let same = |of: &str| {
            self.all(&parts, |_, part| {
                let (name, collation) = (self.column(part.column), ident(&part.collation));
                format!("{of}.{name} = headwater_displaced.c{} COLLATE {collation}", part.column)
            })
        };
        let table = ident(&self.shape.name);
        let lives = format!("EXISTS (SELECT 1 FROM {table} AS headwater_x WHERE {})", same("headwater_x"));
        format!("{by_place} AND (({}) OR NOT {lives})", same("NEW"))
    }

    /// The columns of a unique index, where the place may move.
    fn agreeing(&self) -> Option<Vec<Part>> {
        let Place::Rowid { stable: false, .. } = self.shape.place else { return None };
        let plain = |term: &Term| match term {
            Term::Column(part) if part.column < self.shape.columns.len() => Some(part.clone()),
            _ => None,
        };
        let mut unique = self.shape.unique.iter().filter(|unique| unique.condition.is_none());
        unique.find_map(|unique| unique.terms.iter().map(plain).collect())
    }

    /// That a note's row has the place of `NEW` or `OLD`, as the key's index compares.
    fn noted_is(&self, image: &str) -> String {
        match &self.shape.place {
            Place::Rowid { name, .. } => format!("headwater_displaced.row = {image}.{name}"),
            Place::Key(parts) => self.all(parts, |at, part| {
                let name = self.column(part.column);
                format!("{} = {image}.{name} COLLATE {}", noted_value(at, part), ident(&part.collation))
            }),
        }
    }

    /// That a note's row is still in the table.
    fn noted_lives(&self) -> String {
        let which = match &self.shape.place {
            Place::Rowid { name, .. } => format!("headwater_x.{name} = headwater_displaced.row"),
            Place::Key(parts) => self.all(parts, |at, part| {
                let name = self.column(part.column);
                format!("headwater_x.{name} = {} COLLATE {}", noted_value(at, part), ident(&part.collation))
            }),
        };
        format!("EXISTS (SELECT 1 FROM {} AS headwater_x WHERE {which})", ident(&self.shape.name))
    }

    fn all(&self, parts: &[Part], term: impl Fn(usize, &Part) -> String) -> String {
        parts.iter().enumerate().map(|(at, part)| term(at, part)).collect::<Vec<_>>().join(" AND ")
    }

    /// That a row has what the new row wants for itself. Whether a partial index counts the new row is
    /// asked only where its expression could fail otherwise: noting too many does no harm.
    fn conflict(&self, unique: &Unique) -> String {
        let itself = self.itself();
        let terms = unique.terms.iter().map(|term| match term {
            Term::Column(part) => {
                let name = self.column(part.column);
                let new = self.wanted(part.column);
                format!("{itself}.{name} = {new} COLLATE {}", ident(&part.collation))
            }
            Term::Expression { sql, collation } => {
                // The expression names columns: the new row stands in as a table that has them.
                let columns = self.shape.all_columns().enumerate();
                let new =
                    columns.map(|(at, column)| format!("{} AS {}", self.wanted(at), ident(&column.name)));
                let new = new.collect::<Vec<_>>().join(", ");
                let value = self.guarded(sql, unique.condition.as_deref());
                format!(
                    "({sql}) = (SELECT {value} FROM (SELECT {new}) AS {itself}) COLLATE {}",
                    ident(collation)
                )
            }
        });
        // The condition comes first: it has to be true before an expression is asked of the row.
        let condition = unique.condition.iter().map(|condition| format!("({condition})"));
        condition.chain(terms).collect::<Vec<_>>().join(" AND ")
    }

    /// An expression of the new row; NULL where the row will not be in the index.
    fn guarded(&self, sql: &str, condition: Option<&str>) -> String {
        let outside = condition.map(|condition| (condition, format!("({condition}) IS NOT TRUE")));
        let refused = self.shape.checks.iter().map(|check| (check.as_str(), format!("NOT ({check})")));
        let known = outside.into_iter().chain(refused).filter(|(sql, _)| !self.asks_rowid(sql));
        let unless = known.map(|(_, unless)| unless).collect::<Vec<_>>().join(" OR ");
        match unless.is_empty() {
            true => format!("({sql})"),
            false => format!("CASE WHEN {unless} THEN NULL ELSE ({sql}) END"),
        }
    }

    /// Whether a condition is about the rowid, which a new row may not have yet.
    fn asks_rowid(&self, sql: &str) -> bool {
        let own = self.shape.columns.iter().find(|column| column.key).map(|column| column.name.as_str());
        let stable = matches!(self.shape.place, Place::Rowid { stable: true, .. });
        let names = || own.filter(|_| stable).into_iter().chain(ROWID);
        index::has_name(sql, &|name| names().any(|rowid| rowid.eq_ignore_ascii_case(name)))
    }

    /// The value that the new row will have: REPLACE puts the default in place of a forbidden NULL.
    fn wanted(&self, column: usize) -> String {
        let name = self.column(column);
        match self.shape.all_columns().nth(column).and_then(|column| column.fallback.as_ref()) {
            Some(fallback) => format!("ifnull(NEW.{name}, ({fallback}))"),
            None => format!("NEW.{name}"),
        }
    }
}

/// Where a note keeps a value of its row's key.
fn noted_value(at: usize, part: &Part) -> String {
    match at {
        0 => "headwater_displaced.row".into(),
        _ => format!("headwater_displaced.c{}", part.column),
    }
}
