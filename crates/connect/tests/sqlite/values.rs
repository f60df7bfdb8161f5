//! Values, names and shapes of tables, and what an application notices of the triggers: nothing.

use headwater_connect::settings::SnapshotMode;
use headwater_core::{CellKind, Value};
use rusqlite::config::DbConfig;

use crate::tools::{Shop, after, before, cells};

/// Literals of every type, and their cells.
const VALUES: [(&str, CellKind, &[u8]); 14] = [
    ("9223372036854775807", CellKind::Integer, b"9223372036854775807"),
    ("-9223372036854775808", CellKind::Integer, b"-9223372036854775808"),
    ("1.0", CellKind::Real, b"1.0"),
    ("-0.0", CellKind::Real, b"-0.0"),
    ("1.7976931348623157e308", CellKind::Real, b"1.7976931348623157e308"),
    ("5e-324", CellKind::Real, b"5e-324"),
    ("9e999", CellKind::Real, b"Infinity"),
    ("-9e999", CellKind::Real, b"-Infinity"),
    ("'a' || char(0) || 'b'", CellKind::String, b"a\0b"),
    ("cast(x'fffe00' as text)", CellKind::String, b"\xff\xfe\0"),
    ("'1'", CellKind::String, b"1"),
    ("''", CellKind::String, b""),
    ("x''", CellKind::Blob, b""),
    ("x'fffe00'", CellKind::Blob, b"\xff\xfe\0"),
];

#[tokio::test]
async fn values_arrive_exactly_by_snapshot_and_by_trigger() {
    let shop = Shop::new("create table t (id integer primary key, v)");
    let insert = |from: usize| {
        for (at, (literal, ..)) in VALUES.iter().enumerate() {
            shop.execute(&format!("insert into t values ({}, {literal})", from + at));
        }
        shop.execute(&format!("insert into t values ({}, 9e999 - 9e999)", from + VALUES.len()));
    };
    insert(0);
    let mut reading = shop.read(shop.config(&["t"]), None).await;
    insert(100);
    shop.execute("update t set id = id + 1000");
    shop.execute("delete from t where id >= 1100");
    shop.read_all(&mut reading, 1).await;
    while reading.next_within(std::time::Duration::from_millis(50), 1 << 20).await {}
    let mut told = Vec::new();
    let rows = reading.changes.iter().flat_map(|change| [&change.before, &change.after]).flatten();
    for row in rows.filter(|row| row.len() == 2) {
        let Value::Bytes(_, id) = row.value(0) else { panic!("no id") };
        let value = match row.value(1) {
            Value::Bytes(kind, bytes) => Some((kind, bytes.to_vec())),
            _ => None,
        };
        let id: usize = std::str::from_utf8(id).unwrap().parse().unwrap();
        told.push((id, value));
    }
    // Each as read or created, before and after the update, half of them before the delete, at least.
    assert!(told.len() >= 15 * 7, "{}", told.len());
    for (id, value) in told {
        let expected = VALUES.get(id % 100).map(|(_, kind, bytes)| (*kind, bytes.to_vec()));
        assert_eq!(value, expected, "row {id}");
    }
}

#[tokio::test]
async fn odd_names_and_shapes() {
    let wide: Vec<String> = (0..600).map(|at| format!("w{at} default {at}")).collect();
    let shop = Shop::new(&format!(
        "create table \"select \"\"from\"\" [x] 'y'\n\" (\"group\" primary key, \"a \"\"b\", \"rowid\", [def], row, \"naïve – ☃\");
         create table wide ({});
         create table composed (a, b collate nocase, c, primary key (c, b)) without rowid;
         create table made (id integer primary key, v, up as (upper(v)), twice as (v || v) stored);
         create table strict (id integer primary key, v any) strict;
         create table keyless (a, b);
         create virtual table search using fts5(words);
         create view seen as select * from keyless;",
        wide.join(", ")
    ));
    let mut reading = shop.read(shop.config(&["*"]), None).await;
    shop.execute(
        "insert into \"select \"\"from\"\" [x] 'y'\n\" values (1, 2, 3, 4, 5, 6);
         insert into wide (w0) values (7);
         insert into composed values (1, 'x', 2);
         replace into composed values (3, 'X', 2);
         insert into made (v) values ('q');
         insert into strict values (1, x'00');
         insert into keyless values (1, 2);
         insert into search values ('nobody captures this');",
    );
    shop.read_all(&mut reading, 1).await;
    let told: Vec<(String, usize)> = reading
        .changes
        .iter()
        .map(|change| (format!("{} {}", change.op.as_str(), change.table.name), change.table.columns.len()))
        .collect();
    let expected = [
        ("create select \"from\" [x] 'y'\n", 6),
        ("create wide", 600),
        ("create composed", 3),
        ("delete composed", 3),
        ("create composed", 3),
        ("create made", 3),
        ("create strict", 2),
        ("create keyless", 2),
    ];
    assert_eq!(told, expected.map(|(text, width)| (text.to_owned(), width)));
    let table = &reading.changes[0].table;
    assert_eq!(table.columns[5].name, "naïve – ☃");
    assert_eq!(table.key_columns().collect::<Vec<_>>(), [0]);
    assert_eq!(reading.changes[2].table.key_columns().collect::<Vec<_>>(), [1, 2]);
    assert_eq!(reading.changes[7].table.key_columns().count(), 0);
    let row = reading.changes[5].after.as_ref().unwrap();
    assert_eq!(row.value(2), Value::Bytes(CellKind::String, b"qq"));
    assert_eq!(
        reading.changes[1].after.as_ref().unwrap().value(599),
        Value::Bytes(CellKind::Integer, b"599")
    );
}

/// What they say is computed when they are read, which fails for a row that was there before them.
#[tokio::test]
async fn virtual_columns_are_never_read() {
    let shop = Shop::new(
        "create table t (doc, id text primary key) without rowid;
         create table u (doc, id integer primary key, v unique);
         insert into t values ('not json', 1), ('{}', 2), ('worse', 3);
         insert into u values ('not json', 1, 1), ('{}', 2, 2), ('worse', 3, 3);
         alter table t add column name as (json_extract(doc, '$.name'));
         alter table u add column name as (json_extract(doc, '$.name'));
         create unique index n on u (name) where v > 3;",
    );
    let mut reading = shop.read(shop.config(&["t", "u"]), None).await;
    for table in ["t", "u"] {
        shop.execute(&format!(
            "update {table} set doc = '{{}}' where id = 1; delete from {table} where id = 3"
        ));
    }
    shop.execute("replace into u (id, doc, v) values (4, '[]', 2)");
    while reading.next_within(std::time::Duration::from_millis(50), 1 << 20).await {}
    shop.read_all(&mut reading, 1).await;
    let told: Vec<&headwater_core::Change> =
        reading.changes.iter().filter(|change| change.op != headwater_core::Op::Read).collect();
    let told: Vec<String> = told.into_iter().map(headwater_testkit::suites::source::describe).collect();
    assert_eq!(
        told,
        [
            "update t not json|1 -> {}|1",
            "delete t worse|3",
            "update u not json|1|1 -> {}|1|1",
            "delete u worse|3|3",
            "delete u {}|2|2",
            "create u []|4|2",
        ]
    );
    let names: Vec<&str> =
        reading.changes[0].table.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["doc", "id"]);
}

/// Keys that are not rowids are paged by value: of every type, compared as their index does.
#[tokio::test]
async fn tables_without_rowid_are_read_whole() {
    let shop = Shop::new("create table t (k, n collate nocase, v, primary key (n desc, k)) without rowid");
    for (at, (literal, ..)) in VALUES.iter().enumerate() {
        for name in ["a", "B", "cc"] {
            shop.execute(&format!("insert or ignore into t values ({literal}, '{name}', {at})"));
        }
    }
    let rows: usize = shop.one::<i64>("select count(*) from t") as usize;
    assert!(rows > 30);
    let mut reading = shop.read(shop.config(&["t"]), None).await;
    while reading.changes.len() < rows {
        reading.next(1).await;
    }
    let mut keys: Vec<_> = reading.changes.iter().map(after).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), rows);
}

/// What an application asks SQLite afterwards, and the protections it may have switched on.
#[tokio::test]
async fn applications_notice_nothing() {
    let shop = Shop::new("create table t (id integer primary key, u unique, v)");
    let mut reading = shop.read(shop.config(&["t"]), None).await;
    shop.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true).unwrap();
    shop.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false).unwrap();
    shop.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false).unwrap();
    shop.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false).unwrap();
    assert_eq!(shop.conn.execute("insert into t values (70, 'a', 1), (80, 'b', 1)", []).unwrap(), 2);
    assert_eq!(shop.conn.last_insert_rowid(), 80);
    assert_eq!(shop.conn.execute("replace into t values (90, 'a', 2)", []).unwrap(), 1);
    assert_eq!(shop.conn.last_insert_rowid(), 90);
    assert_eq!(shop.one::<i64>("update t set v = 3 where id = 90 returning id"), 90);
    assert_eq!(shop.conn.execute("update t set v = v + 1", []).unwrap(), 2);
    assert_eq!(shop.conn.execute("delete from t", []).unwrap(), 2);
    shop.read_all(&mut reading, 1).await;
    assert_eq!(reading.changes.len(), 9);
}

/// A row almost as large as SQLite allows is captured; the change table adds little to it.
#[tokio::test]
async fn rows_near_the_limit_can_still_be_written() {
    let shop = Shop::new("create table t (id integer primary key, a, b)");
    let mut reading = shop.read(shop.config(&["t"]), None).await;
    // The shell can lower the limit of its connection.
    let output = std::process::Command::new("sqlite3")
        .arg("-bail")
        .arg(&shop.path)
        .args([".limit length 1000000", "insert into t values (1, zeroblob(499900), zeroblob(499900))"])
        .arg("update t set b = zeroblob(400000)")
        .output()
        .expect("the sqlite3 command is there: scripts/test installs it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    shop.execute("delete from t");
    shop.read_all(&mut reading, 1).await;
    assert_eq!(reading.changes.len(), 3);
}

/// Deleted in the transaction that wrote it, displaced, cascaded: nothing is left out.
#[tokio::test]
async fn a_replaced_row_is_deleted_first() {
    let shop = Shop::new("create table t (id integer primary key, u unique)");
    let mut config = shop.config(&["t"]);
    config.snapshot = SnapshotMode::Never;
    let mut reading = shop.read(config, None).await;
    shop.execute("insert into t values (1, 'a'), (2, 'b'); replace into t values (1, 'b');");
    shop.read_all(&mut reading, 1).await;
    let told: Vec<_> =
        reading.changes.iter().map(|change| (change.op.as_str(), before(change), after(change))).collect();
    let row = |id: &str, text: &str| {
        vec![
            format!("{:?}", Value::Bytes(CellKind::Integer, id.as_bytes())),
            format!("{:?}", Value::Bytes(CellKind::String, text.as_bytes())),
        ]
    };
    let none = Vec::new;
    assert_eq!(
        told,
        [
            ("create", none(), row("1", "a")),
            ("create", none(), row("2", "b")),
            ("delete", row("1", "a"), none()),
            ("delete", row("2", "b"), none()),
            ("create", none(), row("1", "b")),
        ]
    );
    assert_eq!(cells(reading.changes[0].after.as_ref().unwrap()), row("1", "a"));
}
