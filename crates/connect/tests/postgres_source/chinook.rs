//! The Chinook sample database: what is captured is what the database says.

use std::collections::BTreeMap;

use headwater_core::Op;
use headwater_testkit::data::chinook_postgres;

use crate::capture::{Capture, value};
use crate::support::Place;

type Rows = BTreeMap<String, BTreeMap<String, String>>;

/// Each table's rows by key, as the changes leave them.
fn replayed(capture: &Capture, rows: &mut Rows) {
    for change in &capture.changes {
        let table = rows.entry(change.table.name.clone()).or_default();
        let key = |row: &headwater_core::Row| {
            let key = change.table.key_columns().map(|at| value(row.value(at)));
            key.collect::<Vec<_>>().join(",")
        };
        if let (Op::Update | Op::Delete, Some(before)) = (change.op, &change.before) {
            table.remove(&key(before));
        }
        if let Some(after) = &change.after {
            let row = after.values().map(value).collect::<Vec<_>>().join("|");
            table.insert(key(after), row);
        }
    }
}

/// Each table's rows by key, as the database says them.
async fn stored(place: &Place, capture: &Capture) -> Rows {
    let mut rows = Rows::new();
    let mut session = place.session().await;
    let tables: BTreeMap<_, _> =
        capture.changes.iter().map(|change| (change.table.name.clone(), change.table.clone())).collect();
    for (name, table) in tables {
        let stored = session.query(&format!("SELECT * FROM public.\"{name}\"")).await.unwrap();
        let text = |row: &headwater_connect::postgres::client::QueryRow, at: usize| {
            row.get(at).unwrap_or("NULL").to_owned()
        };
        let entry = |row| {
            let key = table.key_columns().map(|at| text(row, at)).collect::<Vec<_>>().join(",");
            let all = (0..table.columns.len()).map(|at| text(row, at)).collect::<Vec<_>>().join("|");
            (key, all)
        };
        rows.insert(name, stored.iter().map(entry).collect());
    }
    rows
}

#[tokio::test]
async fn snapshot_and_changes_are_what_the_database_says() {
    let place = Place::new(&chinook_postgres(), &["public.*"]).await;
    let count: usize = place
        .query("SELECT sum((xpath('/row/c/text()', query_to_xml(format('SELECT count(*) c FROM %s', oid::regclass), false, true, '')))[1]::text::int)::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
        .await[0]
        .parse()
        .unwrap();
    assert!(count > 15_000, "{count} rows");
    let mut capture = place.capture().await;
    while capture.changes.len() < count {
        capture.batch().await.unwrap();
    }
    assert!(capture.changes.iter().all(|change| change.op == Op::Read));
    assert_eq!(capture.changes.len(), count);
    let mut rows = Rows::new();
    replayed(&capture, &mut rows);
    assert_eq!(rows, stored(&place, &capture).await);
    assert_eq!(rows.len(), 11);

    place
        .each(
            "UPDATE track SET unit_price = unit_price + 1, composer = NULL WHERE track_id % 7 = 0;
             DELETE FROM playlist_track WHERE track_id % 3 = 0;
             UPDATE playlist_track SET playlist_id = 18 WHERE playlist_id = 1;
             INSERT INTO artist SELECT n, 'Tab\t, \"quotes\", \\ and ünïcödé ' || n FROM generate_series(1000, 1100) n;
             UPDATE artist SET name = upper(name)",
        )
        .await;
    place.each("INSERT INTO genre VALUES (1000, 'the last')").await;
    while capture.changes.last().is_none_or(|last| last.table.name != "genre" || last.op != Op::Create) {
        capture.batch().await.unwrap();
    }
    rows.clear();
    replayed(&capture, &mut rows);
    assert_eq!(rows, stored(&place, &capture).await);
}
