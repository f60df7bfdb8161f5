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
//! - **Any table, any names, any values**: only qualified, quoted names; no functions on values.

use super::layout::{NOW, ident, value_columns};
use super::shape::{Part, Place, Shape, Term, Unique};

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
/// another trigger deletes the row at once.
pub fn of_outbox(shape: &Shape, def: i64) -> Vec<Trigger> {
    let writer = Writer { shape, def };
    vec![writer.trigger("insert", "AFTER INSERT", None, vec![writer.record_image('c', "NEW")])]
}

/// The triggers on a table that is captured whole.
pub fn of_table(shape: &Shape, def: i64) -> Vec<Trigger> {
    let writer = Writer { shape, def };
    vec![
        writer.trigger("before_insert", "BEFORE INSERT", None, writer.note("")),
        writer.trigger("before_update", "BEFORE UPDATE", writer.moved(), {
            writer.note(&format!(" AND NOT ({})", writer.place("headwater_x", "OLD")))
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

    /// Notes the rows that stand where the new row wants to be.
    fn note(&self, but: &str) -> Vec<String> {
        let (def, width) = (self.def, self.shape.columns.len());
        let forget = format!(
            "DELETE FROM headwater_displaced WHERE rowid < \
             (SELECT max(rowid) FROM headwater_displaced) - {NOTES}"
        );
        let note = |which: String| {
            format!(
                "INSERT INTO headwater_displaced (def, row, {}) SELECT {def}, {}, {} FROM {} AS headwater_x \
                 WHERE {which}{but} AND NOT EXISTS (SELECT 1 FROM headwater_displaced WHERE {})",
                value_columns(width),
                self.row_of("headwater_x"),
                self.values("headwater_x"),
                ident(&self.shape.name),
                self.noted("headwater_x"),
            )
        };
        let lookups = self.shape.unique.iter().map(|unique| self.conflict(unique));
        let notes = std::iter::once(self.place("headwater_x", "NEW")).chain(lookups).map(note);
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
        self.shape.columns.get(column).is_none_or(|column| column.generated)
    }

    fn differs(&self, column: usize) -> String {
        let name = self.column(column);
        format!("NEW.{name} COLLATE BINARY IS NOT OLD.{name}")
    }

    fn after_insert(&self) -> Vec<String> {
        let gone = format!("({} OR NOT {})", self.noted_is("NEW"), self.noted_lives());
        let mut body = self.record_displaced(&gone);
        body.push(self.record_standing('c'));
        body
    }

    fn after_update(&self) -> Vec<String> {
        let gone = format!(
            "NOT ({}) AND ({} OR NOT {})",
            self.noted_is("OLD"),
            self.noted_is("NEW"),
            self.noted_lives()
        );
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
        self.shape.columns.get(at).map(|column| ident(&column.name)).unwrap_or_default()
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
        terms.join(" AND ")
    }

    /// A value compared byte by byte, whatever its column's collation; rowids need no such care.
    fn exact(&self, value: &str) -> String {
        match self.shape.place {
            Place::Rowid { .. } => value.to_owned(),
            Place::Key(_) => format!("{value} COLLATE BINARY"),
        }
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

    /// That a row has what the new row wants for itself. The condition of a partial index is asked of the
    /// standing row only: noting too many does no harm.
    fn conflict(&self, unique: &Unique) -> String {
        let terms = unique.terms.iter().map(|term| match term {
            Term::Column(part) => {
                let name = self.column(part.column);
                let new = self.wanted(part.column);
                format!("headwater_x.{name} = {new} COLLATE {}", ident(&part.collation))
            }
            Term::Expression { sql, collation } => {
                // The expression names columns: the new row stands in as a table that has them.
                let columns = self.shape.columns.iter().map(|column| ident(&column.name));
                let new = columns.map(|name| format!("NEW.{name} AS {name}")).collect::<Vec<_>>().join(", ");
                format!("({sql}) = (SELECT ({sql}) FROM (SELECT {new})) COLLATE {}", ident(collation))
            }
        });
        let condition = unique.condition.iter().map(|condition| format!("({condition})"));
        terms.chain(condition).collect::<Vec<_>>().join(" AND ")
    }

    /// The value that the new row will have: REPLACE puts the default in place of a forbidden NULL.
    fn wanted(&self, column: usize) -> String {
        let name = self.column(column);
        match self.shape.columns.get(column).and_then(|column| column.fallback.as_ref()) {
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
