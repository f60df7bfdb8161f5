//! Reading the change table.

use std::collections::HashMap;
use std::sync::Arc;

use headwater_core::{Change, Error, Kind, Op, Origin, Position, Result, Row, Table, Transaction};
use rusqlite::Connection;

use super::definition;
use super::errors::Sql as _;
use super::row;
use super::state::Anchor;

/// Reads changes, and remembers the tables they name.
pub struct Reader {
    origin: Arc<Origin>,
    epoch: u64,
    tables: HashMap<i64, Arc<Table>>,
}

/// What was read in one go.
pub struct Read {
    /// The changes, in order.
    pub changes: Vec<Change>,
    /// The last one.
    pub last: Option<Anchor>,
    /// Whether the budget ended it: there may be more.
    pub more: bool,
}

/// A row of the change table.
struct Line {
    id: u64,
    def: i64,
    op: char,
    at: i64,
    row: Row,
}

impl Reader {
    /// A reader whose changes come from `origin`.
    pub fn new(origin: Arc<Origin>, epoch: u64) -> Self {
        Self { origin, epoch, tables: HashMap::new() }
    }

    /// The system the changes come from.
    pub fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    /// The changes with ids above `after`, up to `until`: about `budget` bytes.
    pub fn read(&mut self, conn: &Connection, after: u64, until: u64, budget: usize) -> Result<Read> {
        let doing = || "reading the change table".to_owned();
        let sql = "SELECT * FROM headwater_change WHERE id > ?1 AND id <= ?2 ORDER BY id";
        let mut statement = conn.prepare_cached(sql).sql(doing)?;
        let bound = |id: u64| i64::try_from(id).unwrap_or(i64::MAX);
        let mut rows = statement.query([bound(after), bound(until)]).sql(doing)?;
        let mut read = Read { changes: Vec::new(), last: None, more: false };
        let mut size = 0;
        let mut before: Option<Line> = None;
        while let Some(row) = rows.next().sql(doing)? {
            let line = self.line(conn, row)?;
            size += line.row.size() + size_of::<Change>();
            if line.op == 'b' {
                before = Some(line);
                continue;
            }
            // An update whose row was gone again leaves its before alone: the delete is written elsewhere.
            let pair = before.take().filter(|before| line.op == 'u' && before.id + 1 == line.id);
            read.last = Some(Anchor { id: line.id, at: line.at });
            read.changes.push(self.change(line, pair)?);
            if size >= budget {
                read.more = true;
                break;
            }
        }
        Ok(read)
    }

    /// The table that a definition describes.
    pub fn table(&mut self, conn: &Connection, def: i64) -> Result<Arc<Table>> {
        if let Some(table) = self.tables.get(&def) {
            return Ok(table.clone());
        }
        let recorded = definition::numbered(conn, def)?;
        let table = recorded.definition.table(&recorded.table);
        self.tables.insert(def, table.clone());
        Ok(table)
    }

    fn line(&mut self, conn: &Connection, row: &rusqlite::Row<'_>) -> Result<Line> {
        let doing = || "reading a row of the change table".to_owned();
        let id: i64 = row.get(0).sql(doing)?;
        let def = row.get(1).sql(doing)?;
        let op: String = row.get(2).sql(doing)?;
        let width = self.table(conn, def)?.columns.len();
        Ok(Line {
            id: u64::try_from(id).unwrap_or(0),
            def,
            op: op.chars().next().unwrap_or(' '),
            at: row.get(3).sql(doing)?,
            row: row::read(row, 4, width).sql(doing)?,
        })
    }

    fn change(&self, line: Line, before: Option<Line>) -> Result<Change> {
        let id = line.id.to_string();
        let mut name = id.clone();
        let (op, before, after) = match line.op {
            'c' => (Op::Create, None, Some(line.row)),
            'u' => (Op::Update, before.map(|before| before.row), Some(line.row)),
            'd' => (Op::Delete, Some(line.row), None),
            'r' => {
                name = format!("definition {}", line.def);
                (Op::Read, None, Some(line.row))
            }
            other => {
                let error = Error::new(Kind::Decode, format!("change {id} has the unknown op \"{other}\""));
                return Err(error.hint("was it written by a newer Headwater? use that one"));
            }
        };
        let table = self
            .tables
            .get(&line.def)
            .cloned()
            .ok_or_else(|| Error::new(Kind::Internal, format!("change {id} has no definition")))?;
        let transaction = Transaction {
            origin: self.origin.clone(),
            id: name,
            committed_at: line.at.saturating_mul(1000),
            log_position: id,
        };
        let position = Position::of(self.epoch, [line.id, 0]);
        Ok(Change { op, table, before, after, position, transaction: Arc::new(transaction) })
    }
}

/// Whether the database still has a change that was handed out: an older copy of it, or another
/// database, does not.
pub fn still_has(conn: &Connection, anchor: Anchor) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM headwater_change WHERE id = ?1 AND at = ?2)";
    let id = i64::try_from(anchor.id).unwrap_or(i64::MAX);
    let doing = || format!("looking for change {id}");
    conn.prepare_cached(sql).sql(doing)?.query_row([id, anchor.at], |row| row.get(0)).sql(doing)
}
