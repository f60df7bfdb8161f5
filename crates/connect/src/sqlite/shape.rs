//! What a table looks like now: its columns, what finds a row, and what makes two rows conflict.

use headwater_core::{Error, Kind, Result};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::errors::Sql as _;
use super::index;
use super::layout::MAX_COLUMNS;

/// A table as SQLite's catalogue describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Its name, as the catalogue spells it.
    pub name: String,
    /// Its columns as they are captured, STORED generated ones among them.
    pub columns: Vec<Column>,
    /// Its VIRTUAL generated columns. They are computed whenever they are read, and that may fail: only
    /// what SQLite computes anyway is asked of them, so they are not captured.
    pub computed: Vec<Column>,
    /// What finds one row.
    pub place: Place,
    /// Each set of values that only one row may have, beside its place.
    pub unique: Vec<Unique>,
    /// The conditions of its `CHECK`s, where an expression in `unique` may depend on them.
    pub checks: Vec<String>,
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Whether it is part of the primary key.
    pub key: bool,
    /// Whether it is computed from the others.
    pub generated: bool,
    /// What `REPLACE` puts in place of a NULL: the default of a NOT NULL column.
    pub fallback: Option<String>,
}

/// What finds one row of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The rowid, by a name that no other column hides.
    Rowid {
        /// `rowid`, `_rowid_`, `oid`, or the quoted name of an INTEGER PRIMARY KEY.
        name: String,
        /// Whether it is an INTEGER PRIMARY KEY: any other rowid may change when the database is vacuumed.
        stable: bool,
    },
    /// The primary key of a table WITHOUT ROWID.
    Key(Vec<Part>),
}

/// One column of a key, and how its values compare.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Part {
    /// Its place among the table's columns, computed ones last.
    pub column: usize,
    /// The collation of the index.
    pub collation: String,
}

/// What only one row may have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Unique {
    /// Its terms.
    pub terms: Vec<Term>,
    /// The condition of a partial index.
    pub condition: Option<String>,
}

/// One term of a unique index.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Term {
    /// A column.
    Column(Part),
    /// An expression, as text.
    Expression {
        /// The expression.
        sql: String,
        /// How its values compare.
        collation: String,
    },
}

/// How `pragma_table_xinfo` marks a VIRTUAL generated column.
const VIRTUAL: i64 = 2;

/// What the rowid is called, unless a column is.
pub const ROWID: [&str; 3] = ["rowid", "_rowid_", "oid"];

/// The ordinary tables of the database that are not SQLite's or Headwater's own, by name.
pub fn tables(conn: &Connection) -> Result<Vec<String>> {
    let sql = "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' \
               AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT LIKE 'headwater\\_%' ESCAPE '\\' \
               ORDER BY name";
    let mut statement = conn.prepare(sql).sql(|| "listing tables".into())?;
    let names = statement.query_map([], |row| row.get(0)).sql(|| "listing tables".into())?;
    names.collect::<rusqlite::Result<_>>().sql(|| "listing tables".into())
}

impl Shape {
    /// Reads the shape of a table that exists.
    pub fn read(conn: &Connection, table: &str) -> Result<Self> {
        let doing = || format!("reading the definition of table \"{table}\"");
        let (columns, computed) = columns(conn, table).sql(doing)?;
        if columns.is_empty() || columns.len() > MAX_COLUMNS {
            return Err(Error::new(
                Kind::Refused,
                format!("table \"{table}\" has {} columns: it cannot be captured", columns.len()),
            )
            .hint(format!("leave it out of `tables`; at most {MAX_COLUMNS} columns are possible")));
        }
        let all: Vec<&Column> = columns.iter().chain(&computed).collect();
        let indexes = unique_indexes(conn, table, &all).sql(doing)?;
        let unreadable = |term: &Term| matches!(term, Term::Expression { sql, .. } if sql.is_empty());
        if indexes.iter().any(|index| index.terms.iter().any(unreadable)) {
            let what = format!("a unique index of table \"{table}\" has an expression that cannot be read");
            return Err(Error::new(Kind::Refused, what).hint("leave the table out of `tables`"));
        }
        let computes = |index: &Index| index.terms.iter().any(|term| part(term).is_none());
        let checks = match indexes.iter().any(computes) {
            true => checks(conn, table, &all).sql(doing)?,
            false => Vec::new(),
        };
        let place = place(conn, table, &all, &indexes)?;
        let unique = indexes.into_iter().filter_map(|index| index.into_unique(&place)).collect();
        Ok(Self { name: table.to_owned(), columns, computed, place, unique, checks })
    }

    /// All columns, in the order that a [`Part`] counts them.
    pub fn all_columns(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().chain(&self.computed)
    }
}

/// Whether a column, or the rowid, is called so.
fn is_name(columns: &[&Column], name: &str) -> bool {
    let names = columns.iter().map(|column| column.name.as_str());
    names.chain(ROWID).any(|known| known.eq_ignore_ascii_case(name))
}

fn checks(conn: &Connection, table: &str, columns: &[&Column]) -> rusqlite::Result<Vec<String>> {
    let sql = "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1";
    let text: String = conn.query_row(sql, [table], |row| row.get(0))?;
    Ok(index::checks(&text, &|name| is_name(columns, name)))
}

/// Those that are captured, and those that are computed.
fn columns(conn: &Connection, table: &str) -> rusqlite::Result<(Vec<Column>, Vec<Column>)> {
    let sql = "SELECT name, pk, hidden, \"notnull\", dflt_value FROM pragma_table_xinfo(?1, 'main') \
               WHERE hidden <> 1 ORDER BY cid";
    let mut statement = conn.prepare(sql)?;
    let rows = statement.query_map([table], |row| {
        let not_null: bool = row.get(3)?;
        let default: Option<String> = row.get(4)?;
        let hidden: i64 = row.get(2)?;
        let column = Column {
            name: row.get(0)?,
            key: row.get::<_, i64>(1)? > 0,
            generated: hidden > 1,
            fallback: default.filter(|_| not_null).map(|sql| index::expression(&sql, &|_| false)),
        };
        Ok((hidden == VIRTUAL, column))
    })?;
    let (mut columns, mut computed) = (Vec::new(), Vec::new());
    for row in rows {
        let (virtual_, column) = row?;
        if virtual_ { computed.push(column) } else { columns.push(column) }
    }
    Ok((columns, computed))
}

/// A unique index as the catalogue lists it.
struct Index {
    primary: bool,
    terms: Vec<Term>,
    condition: Option<String>,
}

impl Index {
    /// `None` for the index that is the place itself.
    fn into_unique(self, place: &Place) -> Option<Unique> {
        let is_place = self.primary && matches!(place, Place::Key(_));
        (!is_place).then_some(Unique { terms: self.terms, condition: self.condition })
    }
}

fn unique_indexes(conn: &Connection, table: &str, columns: &[&Column]) -> rusqlite::Result<Vec<Index>> {
    let sql = "SELECT l.name, l.origin, s.sql FROM pragma_index_list(?1, 'main') AS l \
               LEFT JOIN sqlite_schema AS s ON s.type = 'index' AND s.name = l.name \
               WHERE l.\"unique\" ORDER BY l.name";
    let mut statement = conn.prepare(sql)?;
    let rows = statement.query_map([table], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, Option<String>>(2)?))
    })?;
    let mut indexes = Vec::new();
    for row in rows {
        let (name, origin, sql) = row?;
        let text = sql.as_deref().and_then(|sql| index::parse(sql, &|name| is_name(columns, name)));
        let terms = terms(conn, &name, columns, text.as_ref())?;
        let condition = text.and_then(|text| text.condition);
        indexes.push(Index { primary: origin == "pk", terms, condition });
    }
    Ok(indexes)
}

fn terms(
    conn: &Connection,
    index: &str,
    columns: &[&Column],
    text: Option<&index::IndexText>,
) -> rusqlite::Result<Vec<Term>> {
    let sql = "SELECT seqno, name, coll FROM pragma_index_xinfo(?1, 'main') WHERE key ORDER BY seqno";
    let mut statement = conn.prepare(sql)?;
    let rows = statement.query_map([index], |row| {
        let (at, name): (u16, Option<String>) = (row.get(0)?, row.get(1)?);
        let collation: String = row.get(2)?;
        let column = name.and_then(|name| columns.iter().position(|column| column.name == name));
        Ok(match column {
            Some(column) => Term::Column(Part { column, collation }),
            None => {
                let term = text.and_then(|text| text.terms.get(usize::from(at))).cloned();
                // An empty term is refused by `Shape::read`.
                Term::Expression { sql: term.unwrap_or_default(), collation }
            }
        })
    })?;
    rows.collect()
}

fn place(conn: &Connection, table: &str, columns: &[&Column], indexes: &[Index]) -> Result<Place> {
    let doing = || format!("reading the definition of table \"{table}\"");
    let sql = "SELECT wr FROM pragma_table_list(?1) WHERE schema = 'main'";
    let without_rowid: bool = conn.query_row(sql, [table], |row| row.get(0)).sql(doing)?;
    let primary = indexes.iter().find(|index| index.primary);
    if without_rowid {
        let parts = primary.map(|index| index.terms.iter().filter_map(part).collect::<Vec<_>>());
        return Ok(Place::Key(parts.unwrap_or_default()));
    }
    // A primary key without an index of its own is the rowid itself.
    let stable = primary.is_none() && columns.iter().any(|column| column.key);
    let hidden = |name: &str| columns.iter().any(|column| column.name.eq_ignore_ascii_case(name));
    let alias = ROWID.into_iter().find(|name| !hidden(name)).map(str::to_owned);
    let own = || columns.iter().find(|column| stable && column.key).map(|c| super::layout::ident(&c.name));
    let name = alias.or_else(own).ok_or_else(|| {
        Error::new(
            Kind::Refused,
            format!("table \"{table}\" has columns that hide its rowid: it cannot be captured"),
        )
        .hint("rename one of its columns rowid, oid and _rowid_, or leave the table out of `tables`")
    })?;
    Ok(Place::Rowid { name, stable })
}

fn part(term: &Term) -> Option<Part> {
    match term {
        Term::Column(part) => Some(part.clone()),
        Term::Expression { .. } => None,
    }
}
