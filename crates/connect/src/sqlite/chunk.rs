//! Reading a table piece by piece.

use headwater_core::{Change, Result, Row};
use rusqlite::{Connection, params_from_iter};

use super::errors::Sql as _;
use super::layout::{self, ident};
use super::row;
use super::shape::{Part, Place, Shape};
use super::state::Scalar;

/// The most rows of a piece.
const ROWS: usize = 10_000;

/// A piece of a table: its rows as they were when `watermark` was the newest change.
pub struct Chunk {
    /// The newest change then. These rows stand behind it, and before every later one.
    pub watermark: u64,
    /// The rows, in the order of their place.
    pub rows: Vec<Row>,
    /// The place of the last one.
    pub last: Vec<Scalar>,
    /// Whether the table has no more.
    pub end: bool,
}

/// Reads the rows that follow `after` (empty: from the beginning), about `budget` bytes of them. Within a
/// read transaction, so that they and the watermark are of one moment.
pub fn read(conn: &Connection, shape: &Shape, after: &[Scalar], budget: usize) -> Result<Chunk> {
    let doing = || format!("reading table \"{}\"", shape.name);
    let mut chunk = Chunk { watermark: layout::newest(conn)?, rows: Vec::new(), last: Vec::new(), end: true };
    let (sql, parameters) = query(shape, after);
    let mut statement = conn.prepare_cached(&sql).sql(doing)?;
    let mut rows = statement.query(params_from_iter(parameters)).sql(doing)?;
    let width = shape.columns.len();
    let mut size = 0;
    while let Some(row) = rows.next().sql(doing)? {
        let values = row::read(row, 0, width).sql(doing)?;
        size += values.size() + size_of::<Change>();
        chunk.rows.push(values);
        if size >= budget || chunk.rows.len() >= ROWS {
            let place = width..width + parts(shape);
            let last = place.map(|at| row.get_ref(at).map(Scalar::from)).collect::<rusqlite::Result<_>>();
            chunk.last = last.sql(doing)?;
            chunk.end = false;
            break;
        }
    }
    Ok(chunk)
}

fn parts(shape: &Shape) -> usize {
    match &shape.place {
        Place::Rowid { .. } => 1,
        Place::Key(parts) => parts.len(),
    }
}

/// The columns, then the place; rows above `after` in the order of the place.
fn query(shape: &Shape, after: &[Scalar]) -> (String, Vec<rusqlite::types::Value>) {
    let places: Vec<String> = match &shape.place {
        Place::Rowid { name, .. } => vec![format!("x.{name}")],
        Place::Key(parts) => parts.iter().map(|part| compared(shape, part)).collect(),
    };
    let columns = shape.columns.iter().map(|column| format!("x.{}", ident(&column.name)));
    let columns = columns.chain(places.iter().cloned()).collect::<Vec<_>>().join(", ");
    let places = places.join(", ");
    let (values, marks): (Vec<_>, Vec<_>) = after.iter().map(Scalar::parameter).unzip();
    let from = match marks.is_empty() {
        true => String::new(),
        false => format!(" WHERE ({places}) > ({})", marks.join(", ")),
    };
    let table = ident(&shape.name);
    (format!("SELECT {columns} FROM {table} AS x{from} ORDER BY {places}"), values)
}

fn compared(shape: &Shape, part: &Part) -> String {
    let column = shape.columns.get(part.column).map(|column| ident(&column.name)).unwrap_or_default();
    format!("x.{column} COLLATE {}", ident(&part.collation))
}

/// About how many rows a table has, where that costs nothing to know: its rowids' range.
pub fn estimate(conn: &Connection, shape: &Shape) -> Option<u64> {
    let Place::Rowid { name, .. } = &shape.place else { return None };
    let table = ident(&shape.name);
    let sql = format!("SELECT (SELECT max({name}) FROM {table}), (SELECT min({name}) FROM {table})");
    let ends: (Option<i64>, Option<i64>) =
        conn.query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?))).ok()?;
    match ends {
        (Some(max), Some(min)) => u64::try_from(max.saturating_sub(min).saturating_add(1)).ok(),
        _ => Some(0),
    }
}
