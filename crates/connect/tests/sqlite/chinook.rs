//! Chinook: loaded, read whole, changed all over; every row that arrives is what the database says.

use std::collections::BTreeMap;

use headwater_core::{CellKind, Change, Op, Value};
use rusqlite::types::ValueRef;

use crate::tools::Shop;

type Cell = (u8, Vec<u8>);
type Tables = BTreeMap<String, BTreeMap<Vec<Cell>, Vec<Cell>>>;

/// What a consumer that applies every change holds. While the tables are not `whole`, a row may change
/// before it is read.
fn apply(tables: &mut Tables, changes: &[&Change], whole: bool) {
    for change in changes {
        let cells = |row: &headwater_core::Row| row.values().map(cell).collect::<Vec<_>>();
        let keys: Vec<usize> = change.table.key_columns().collect();
        let key = |cells: &[Cell]| keys.iter().map(|&at| cells[at].clone()).collect::<Vec<_>>();
        let rows = tables.entry(change.table.name.clone()).or_default();
        if let Some(before) = change.before.as_ref().map(cells) {
            let held = rows.remove(&key(&before));
            if whole || held.is_some() {
                assert_eq!(held.as_ref(), Some(&before), "{:?} of a row that was another", change.op);
            }
        }
        if let Some(after) = change.after.as_ref().map(cells) {
            let held = rows.insert(key(&after), after);
            assert!(held.is_none() || change.op == Op::Read, "{:?} of a row that was there", change.op);
        }
    }
}

fn cell(value: Value<'_>) -> Cell {
    match value {
        Value::Null => (0, Vec::new()),
        Value::Bytes(CellKind::Integer, bytes) => (1, bytes.to_vec()),
        Value::Bytes(CellKind::Real, bytes) => {
            (2, std::str::from_utf8(bytes).unwrap().parse::<f64>().unwrap().to_be_bytes().to_vec())
        }
        Value::Bytes(CellKind::String, bytes) => (3, bytes.to_vec()),
        Value::Bytes(CellKind::Blob, bytes) => (4, bytes.to_vec()),
        other => panic!("{other:?} from SQLite"),
    }
}

/// What the database says.
fn database(shop: &Shop) -> Tables {
    let mut tables = Tables::new();
    let mut names = shop
        .conn
        .prepare(
            "select name from pragma_table_list where type = 'table' and schema = 'main'
        and name not like 'sqlite_%' and name not like 'headwater_%' and name <> 'marker'",
        )
        .unwrap();
    let names: Vec<String> = names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    for name in names {
        let sql = format!("select cid from pragma_table_info('{name}') where pk > 0 order by cid");
        let mut keys = shop.conn.prepare(&sql).unwrap();
        let keys: Vec<usize> =
            keys.query_map([], |row| row.get::<_, i64>(0)).unwrap().map(|at| at.unwrap() as usize).collect();
        let mut rows = shop.conn.prepare(&format!("select * from [{name}]")).unwrap();
        let width = rows.column_count();
        let read = rows.query_map([], |row| {
            (0..width).map(|at| row.get_ref(at).map(raw)).collect::<Result<Vec<Cell>, _>>()
        });
        let read = read.unwrap().map(Result::unwrap);
        let keyed = read.map(|row| (keys.iter().map(|&at| row[at].clone()).collect(), row)).collect();
        tables.insert(name, keyed);
    }
    tables
}

fn raw(value: ValueRef<'_>) -> Cell {
    match value {
        ValueRef::Null => (0, Vec::new()),
        ValueRef::Integer(number) => (1, number.to_string().into_bytes()),
        ValueRef::Real(number) => (2, number.to_be_bytes().to_vec()),
        ValueRef::Text(bytes) => (3, bytes.to_vec()),
        ValueRef::Blob(bytes) => (4, bytes.to_vec()),
    }
}

/// Changes of every kind, in every table.
const CHANGES: &str = "
    update Customer set Phone = null, Company = Company || ' ✓' where CustomerId % 3 = 0;
    update Track set UnitPrice = UnitPrice * 1.1 where TrackId % 5 = 0;
    update Track set Composer = x'00ff' where TrackId % 97 = 0;
    delete from PlaylistTrack where TrackId % 7 = 0;
    update PlaylistTrack set TrackId = TrackId + 100000 where TrackId % 11 = 0;
    insert or replace into Artist select ArtistId + 100, Name || ' again' from Artist;
    insert or ignore into Artist select ArtistId, 'never seen' from Artist;
    replace into Genre values (1, 'Rock''n''Roll'), (100, null), (9223372036854775807, 'last');
    insert into Album values (1, 'upserted', 1) on conflict (AlbumId) do update set Title = excluded.Title;
    update or replace MediaType set MediaTypeId = 1 where MediaTypeId = 2;
    delete from InvoiceLine where InvoiceId in (select InvoiceId from Invoice where Total > 5);
    update Invoice set InvoiceDate = julianday(InvoiceDate), Total = -Total;
    update Employee set EmployeeId = EmployeeId + 1000;
    begin; delete from Playlist; rollback;
    begin; delete from Playlist where PlaylistId > 9; insert into Playlist values (10, 'ten'); commit;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_of_chinook_arrives_as_it_is() {
    let shop = Shop::new("");
    shop.execute("pragma synchronous = off; pragma foreign_keys = off");
    shop.execute(&format!("begin; {}; commit", headwater_testkit::data::chinook_sqlite()));
    let mut reading = shop.read(shop.config(&["*"]), None).await;
    // Half of the changes while the snapshot is on its way, and again afterwards.
    for _ in 0..10 {
        reading.next(20_000).await;
    }
    shop.execute(CHANGES);
    shop.read_all(&mut reading, 1).await;
    while reading.next_within(std::time::Duration::from_millis(100), 1 << 16).await {}
    let whole = reading.changes.len();
    shop.execute(CHANGES);
    shop.read_all(&mut reading, 2).await;
    let changes: Vec<_> = reading.changes.iter().filter(|change| change.table.name != "marker").collect();
    let mut tables = Tables::new();
    apply(&mut tables, &changes[..whole], false);
    apply(&mut tables, &changes[whole..], true);
    let expected = database(&shop);
    assert_eq!(tables.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, rows) in &expected {
        assert!(tables[name] == *rows, "table {name} differs");
    }
    assert!(expected.values().map(BTreeMap::len).sum::<usize>() > 10_000);
    assert!(reading.changes.len() > 15_000, "only {} changes", reading.changes.len());
}
