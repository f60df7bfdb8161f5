//! What a waiting batch of the PostgreSQL source keeps in memory. In a process of its own, as it measures it.
#![allow(clippy::unwrap_used)]

mod support;

use headwater_connect::postgres::PostgresConnector;
use headwater_connect::settings::SnapshotMode;
use headwater_core::Change;
use headwater_core::ports::Connector;
use support::Place;

/// How many rows are kept, each among two megabytes of others.
const KEPT: usize = 64;

/// How many mebibytes of this process are in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    kibibytes.trim().trim_end_matches(" kB").parse::<usize>().unwrap() >> 10
}

#[tokio::test]
async fn a_row_among_others_that_are_not_captured_does_not_keep_them() {
    let sql = "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (v text); \
               ALTER TABLE other ALTER v SET STORAGE PLAIN; CREATE PUBLICATION every FOR ALL TABLES";
    let mut place = Place::new(sql, &["t"]).await;
    (place.config.snapshot, place.config.publication) = (SnapshotMode::Never, Some("every".to_owned()));
    let data = tempfile::tempdir().unwrap();
    let connector = PostgresConnector::new(&place.names.source, place.config.clone(), data.path()).unwrap();
    let mut source = connector.open(None).await.unwrap();
    let before = resident();
    let mut kept: Vec<Change> = Vec::new();
    for id in 0..KEPT {
        let many = "INSERT INTO other SELECT repeat('x', 8000) FROM generate_series(1, 125)";
        place
            .database
            .execute(&format!("BEGIN; {many}; INSERT INTO t VALUES ({id}); {many}; COMMIT"))
            .await
            .unwrap();
        while kept.len() <= id {
            kept.append(&mut source.next(1 << 20).await.unwrap().changes);
        }
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < KEPT / 4, "{grown} MiB for {KEPT} rows of a few bytes");
}
