//! What a snapshot reads of each table, and in which pieces.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use headwater_core::{ColumnType, Error, Kind, Result, Table};
use headwater_wire::pgoutput::ReplicaIdentity;

use crate::postgres::catalog::{Catalog, RawColumn};
use crate::postgres::client::{QueryRow, quote_ident, quote_literal};
use crate::postgres::setup::CapturedTable;

/// How many pages of a table one worker reads at a time: 16 MiB of pages of 8 KiB.
const CHUNK: u64 = 2048;

/// A table that is read.
pub struct Planned {
    /// `schema.name`.
    pub name: String,
    /// The table as the stream will describe it.
    pub table: Arc<Table>,
    /// About how many rows it has, where the server knows.
    pub estimate: Option<u64>,
    /// Its object identifier.
    oid: u32,
    /// Its name in SQL.
    sql_name: String,
    /// `ONLY` where its children are tables of their own; partitions are not.
    only: &'static str,
    /// `SELECT columns FROM table WHERE filter`.
    select: String,
    /// `ORDER BY ...` where the order of its rows matters.
    order: String,
    /// Pieces that nobody has read to the end.
    left: AtomicUsize,
}

/// A piece of a table: the rows on some of its pages.
pub struct Chunk {
    /// The table.
    pub table: Arc<Planned>,
    from: u64,
    to: Option<u64>,
}

/// What the server is like.
pub struct Published<'a> {
    /// `server_version_num`.
    pub version: u32,
    /// The publications that are followed: they decide on columns and rows. None: all are published.
    pub publications: &'a [String],
}

impl Planned {
    /// Keeps others from altering it until the transaction ends.
    pub fn lock_sql(&self) -> String {
        format!("LOCK TABLE {}{} IN ACCESS SHARE MODE", self.only, self.sql_name)
    }

    /// Two booleans: whether the name still means this table, and whether it is stored where it was stored
    /// in the snapshot of the transaction. The functions see the catalog as it is now, the scan of
    /// `pg_class` sees it as it was.
    pub fn still_sql(&self) -> String {
        let oid = self.oid;
        format!(
            "SELECT to_regclass({}) = {oid}::oid, NOT EXISTS (SELECT FROM pg_class WHERE relkind = 'r'
                 AND (oid = {oid} OR oid IN (SELECT relid FROM pg_partition_tree({oid})))
                 AND relfilenode IS DISTINCT FROM pg_relation_filenode(oid))",
            quote_literal(&self.sql_name)
        )
    }

    /// A piece was read; says whether it was the last.
    pub fn piece_done(&self) -> bool {
        self.left.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

impl Chunk {
    /// The COPY that reads it.
    pub fn sql(&self) -> String {
        let to = self.to.map(|to| format!(" AND ctid < '({to},0)'")).unwrap_or_default();
        let Planned { select, order, .. } = &*self.table;
        format!("COPY ({select} AND ctid >= '({},0)'{to}{order}) TO STDOUT", self.from)
    }
}

/// Plans one table; `None` when it is gone. `rows` are those of the outbox.
pub async fn table(
    catalog: &mut Catalog,
    captured: &CapturedTable,
    published: &Published<'_>,
    rows: &OutboxRows,
) -> Result<Option<(Arc<Planned>, Vec<Chunk>)>> {
    let sizes = catalog.query(&size_sql(captured.oid)).await?;
    let Some(size) = sizes.first() else { return Ok(None) };
    let identity = identity(size.text(0)?)?;
    let filter = filter(catalog, captured, published).await?;
    let columns = catalog.query(&columns_sql(captured, published)).await?;
    let raw = columns.iter().map(raw).collect::<Result<Vec<_>>>()?;
    let table = catalog.table(captured.oid, &captured.schema, &captured.name, identity, &raw).await?;
    let names: Vec<String> = raw.iter().map(|column| quote_ident(column.name)).collect();
    let only = if captured.partitioned { "" } else { "ONLY " };
    let sql_name = captured.sql_name();
    let unpublished = if captured.outbox { rows.filter() } else { "" };
    let select = format!("SELECT {} FROM {only}{sql_name} WHERE {filter}{unpublished}", names.join(", "));
    let (pages, leaves): (u64, u64) = (size.number(2)?, size.number(3)?);
    // What the rows of an outbox tell happened in an order.
    let (ranges, order) = match captured.outbox {
        true => (vec![(0, None)], rows.order(&table)),
        false => (ranges(pages, leaves), String::new()),
    };
    let planned = Arc::new(Planned {
        name: captured.full_name(),
        table,
        estimate: size.get(1).and_then(|rows| rows.parse().ok()),
        oid: captured.oid,
        sql_name,
        only,
        select,
        order,
        left: AtomicUsize::new(ranges.len()),
    });
    let chunk = |(from, to)| Chunk { table: planned.clone(), from, to };
    let chunks = ranges.into_iter().map(chunk).collect();
    Ok(Some((planned, chunks)))
}

/// A table as the stream will describe it; `None` when it is gone.
pub async fn describe(
    catalog: &mut Catalog,
    captured: &CapturedTable,
    published: &Published<'_>,
) -> Result<Option<Arc<Table>>> {
    let rows = catalog.query(&size_sql(captured.oid)).await?;
    let Some(size) = rows.first() else { return Ok(None) };
    let columns = catalog.query(&columns_sql(captured, published)).await?;
    let raw = columns.iter().map(raw).collect::<Result<Vec<_>>>()?;
    let identity = identity(size.text(0)?)?;
    catalog.table(captured.oid, &captured.schema, &captured.name, identity, &raw).await.map(Some)
}

/// Which rows of an outbox are read, and in which order.
#[derive(Debug, Clone)]
pub enum OutboxRows {
    /// Of Headwater's own layout: those that are not published, by their sequence.
    Own,
    /// Of another: all, by the column of times if it has one of this name.
    All(Option<String>),
}

impl OutboxRows {
    fn filter(&self) -> &'static str {
        match self {
            Self::Own => " AND state NOT IN ('published', 'dropped')",
            Self::All(_) => "",
        }
    }

    /// The order in which rows were written, as far as they tell: by their times; then by the numbers of their
    /// transactions and commands, which are given in order; then by place. Places alone say little, as new rows go
    /// where old ones were deleted.
    fn order(&self, table: &Table) -> String {
        use ColumnType::{Date, Int32, Int64, Numeric, Text, Timestamp, TimestampTz};
        let Self::All(time) = self else { return " ORDER BY seq".to_owned() };
        let is_time = |ty: &ColumnType| {
            matches!(ty, Timestamp(_) | TimestampTz(_) | Date | Int32 | Int64 | Numeric { .. } | Text)
        };
        let named = |name: &str| time.as_deref() == Some(name);
        let known = table.columns.iter().find(|column| named(&column.name) && is_time(&column.ty));
        let time = known.map_or(String::new(), |column| format!("{}, ", quote_ident(&column.name)));
        format!(" ORDER BY {time}age(xmin) DESC, cmin::text::int8, ctid")
    }
}

/// Of a partitioned table, the same pages of every partition make one piece. The last piece has no end.
fn ranges(pages: u64, leaves: u64) -> Vec<(u64, Option<u64>)> {
    let step = (CHUNK / leaves.max(1)).max(64);
    let count = pages.div_ceil(step).max(1);
    (0..count).map(|at| (at * step, (at + 1 < count).then_some((at + 1) * step))).collect()
}

fn identity(letter: &str) -> Result<ReplicaIdentity> {
    match letter {
        "d" => Ok(ReplicaIdentity::Default),
        "n" => Ok(ReplicaIdentity::Nothing),
        "f" => Ok(ReplicaIdentity::Full),
        "i" => Ok(ReplicaIdentity::Index),
        other => Err(Error::new(Kind::Decode, format!("\"{other}\" is not a replica identity"))),
    }
}

fn raw(row: &QueryRow) -> Result<RawColumn<'_>> {
    Ok(RawColumn {
        name: row.text(0)?,
        type_oid: row.number(1)?,
        modifier: row.number(2)?,
        identity: row.is_true(3),
    })
}

fn size_sql(oid: u32) -> String {
    format!(
        "SELECT c.relreplident, l.tuples, l.pages, l.leaves FROM pg_class c, LATERAL (
             SELECT (sum(reltuples) FILTER (WHERE reltuples >= 0))::int8 tuples, count(*) leaves,
                    coalesce(max(pg_relation_size(oid)), 0) / current_setting('block_size')::int8 pages
             FROM pg_class WHERE relkind = 'r'
                 AND (oid = c.oid OR oid IN (SELECT relid FROM pg_partition_tree(c.oid)))) l
         WHERE c.oid = {oid}"
    )
}

/// The columns that the stream will have, in its order, and whether they are in the replica identity.
fn columns_sql(captured: &CapturedTable, published: &Published<'_>) -> String {
    let listed = match published.version {
        ..150_000 => "a.attgenerated = ''".to_owned(),
        150_000..180_000 => format!("a.attgenerated = '' AND {}", listed(captured, published)),
        _ => format!("a.attgenerated <> 'v' AND {}", listed(captured, published)),
    };
    format!(
        "SELECT a.attname, a.atttypid, a.atttypmod, EXISTS (
             SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND CASE c.relreplident
                 WHEN 'd' THEN i.indisprimary AND i.indimmediate WHEN 'i' THEN i.indisreplident ELSE false END
                 AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]))
         FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
         WHERE c.oid = {} AND a.attnum > 0 AND NOT a.attisdropped AND {listed} ORDER BY a.attnum",
        captured.oid
    )
}

fn listed(captured: &CapturedTable, published: &Published<'_>) -> String {
    if published.publications.is_empty() {
        return "true".to_owned();
    }
    format!(
        "a.attname = ANY (SELECT unnest(attnames) FROM pg_publication_tables {})",
        of(captured, published)
    )
}

fn of(captured: &CapturedTable, published: &Published<'_>) -> String {
    let names: Vec<String> = published.publications.iter().map(|name| quote_literal(name)).collect();
    format!(
        "WHERE pubname IN ({}) AND schemaname = {} AND tablename = {}",
        names.join(", "),
        quote_literal(&captured.schema),
        quote_literal(&captured.name)
    )
}

/// Which rows the publications publish (row filters came with 15): all of them unless each one filters.
async fn filter(
    catalog: &mut Catalog,
    captured: &CapturedTable,
    published: &Published<'_>,
) -> Result<String> {
    if published.version < 150_000 {
        return Ok("true".to_owned());
    }
    let of = of(captured, published);
    let rows = catalog.query(&format!("SELECT rowfilter FROM pg_publication_tables {of}")).await?;
    let filters: Option<Vec<String>> =
        rows.iter().map(|row| row.get(0).map(|filter| format!("({filter})"))).collect();
    Ok(match filters {
        Some(filters) if !filters.is_empty() => format!("({})", filters.join(" OR ")),
        _ => "true".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_all_pages_once_and_the_last_is_open() {
        for (pages, leaves) in [(0, 1), (1, 1), (4096, 1), (4097, 1), (100_000, 1), (5000, 10), (300, 1000)] {
            let ranges = ranges(pages, leaves);
            assert_eq!(ranges.first().unwrap().0, 0);
            assert_eq!(ranges.last().unwrap().1, None);
            assert!(ranges.last().unwrap().0 <= pages);
            for pair in ranges.windows(2) {
                assert_eq!(pair[0].1, Some(pair[1].0));
                assert!(pair[0].0 < pair[1].0);
            }
        }
    }
}
