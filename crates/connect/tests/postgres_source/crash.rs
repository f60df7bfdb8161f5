//! Servers that die, and disks that are full.

use headwater_connect::postgres::PostgresConnector;
use headwater_core::{Kind, Op};
use headwater_testkit::disk::SmallDisk;
use headwater_testkit::servers::Postgres;

use crate::support::Place;

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

fn rows(from: u32, to: u32) -> String {
    format!("INSERT INTO t SELECT n, repeat('x', 200) FROM generate_series({from}, {to}) n")
}

#[tokio::test]
async fn a_server_that_dies_in_the_middle_of_everything_is_gone_on_with() {
    let server = Postgres::start().await.unwrap();
    let place = Place::on(&server, TABLE, &["t"]).await;
    place.each(&rows(1, 30_000)).await;
    let mut capture = place.capture().await;
    // Within the snapshot.
    while capture.changes.len() < 1000 {
        capture.batch().await.unwrap();
    }
    server.kill();
    assert_eq!(capture.failure().await.kind(), Kind::Unavailable);
    assert_eq!(capture.open().await.unwrap_err().kind(), Kind::Unavailable);
    server.restart().await.unwrap();
    place.each("DELETE FROM t WHERE id <= 100").await;
    capture.open().await.unwrap();
    capture.until(|state| state.snapshots.contains_key("public.t")).await;
    // Within the stream.
    place.each(&rows(40_001, 60_000)).await;
    while capture.changes.last().is_none_or(|last| last.op != Op::Create) {
        capture.batch().await.unwrap();
    }
    server.kill();
    assert_eq!(capture.failure().await.kind(), Kind::Unavailable);
    server.restart().await.unwrap();
    capture.open().await.unwrap();
    place.each("INSERT INTO t VALUES (0, 'last')").await;
    let mut ids = std::collections::BTreeSet::new();
    let mut seen = 0;
    loop {
        for change in &capture.changes[seen..] {
            let row = change.after.as_ref().or(change.before.as_ref()).unwrap();
            let id: u32 = crate::capture::value(row.value(0)).parse().unwrap();
            if change.op == Op::Delete {
                ids.remove(&id)
            } else {
                ids.insert(id)
            };
        }
        seen = capture.changes.len();
        if ids.contains(&0) {
            break;
        }
        capture.batch().await.unwrap();
    }
    assert_eq!(ids, (0..=0).chain(101..=30_000).chain(40_001..=60_000).collect());
}

#[tokio::test]
async fn a_full_disk_under_an_unfinished_transaction_is_told_and_nothing_is_lost() {
    let mut place = Place::new(TABLE, &["t"]).await;
    place.config.snapshot = headwater_connect::settings::SnapshotMode::Never;
    let name = place.database.name();
    place.each(&format!("ALTER DATABASE {name} SET logical_decoding_work_mem = '64kB'")).await;
    let mut capture = place.closed();
    let disk = capture.data.path().join("small");
    let Some(small) = SmallDisk::mount(&disk, 2) else { return };
    capture.connector = PostgresConnector::new(&place.names.source, place.config.clone(), &disk).unwrap();
    capture.open().await.unwrap();
    place.each(&rows(1, 20_000)).await;
    let error = capture.failure().await;
    assert_eq!(error.kind(), Kind::Full, "{error}");
    assert!(error.hint_text().is_some() && error.is_retryable());
    assert!(capture.changes.is_empty());
    // Room is made.
    small.resize(64);
    capture.open().await.unwrap();
    assert_eq!(capture.take(20_000).await.len(), 20_000);
}
