//! Following changes as they are made.

use std::time::Duration;

use headwater_connect::postgres::lsn;
use headwater_connect::settings::SnapshotMode;
use headwater_core::ports::{Connector, Severity, SourceState};
use headwater_core::{Kind, Position};
use headwater_testkit::servers::Postgres;

use crate::support::Place;

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

async fn place(sql: &str, tables: &[&str]) -> Place {
    let mut place = Place::new(sql, tables).await;
    place.config.snapshot = SnapshotMode::Never;
    place
}

#[tokio::test]
async fn changes_come_in_commit_order_and_what_is_rolled_back_does_not() {
    let place = place(TABLE, &["t"]).await;
    let mut capture = place.capture().await;
    let (mut first, mut second) = (place.session().await, place.session().await);
    first.query("BEGIN; INSERT INTO t VALUES (1, 'begun first')").await.unwrap();
    second.query("BEGIN; INSERT INTO t VALUES (2, 'committed first'); COMMIT").await.unwrap();
    first.query("SAVEPOINT s; INSERT INTO t VALUES (3, 'gone'); ROLLBACK TO s; COMMIT").await.unwrap();
    second.query("BEGIN; INSERT INTO t VALUES (4, 'gone'); ROLLBACK").await.unwrap();
    second.query("UPDATE t SET v = NULL WHERE id = 1; DELETE FROM t WHERE id = 2").await.unwrap();
    let expected = [
        "create t (2, committed first)",
        "create t (1, begun first)",
        "update t (1, NULL)",
        "delete t (2, absent)",
    ];
    assert_eq!(capture.take(4).await, expected);
    assert_eq!(capture.connector.status().state, SourceState::Streaming);
}

#[tokio::test]
async fn a_change_knows_its_transaction() {
    let place = place(TABLE, &["t"]).await;
    let mut capture = place.capture().await;
    let sql = "BEGIN; INSERT INTO t VALUES (1, 'a'); SELECT pg_current_xact_id()::text, \
        (extract(epoch FROM clock_timestamp()) * 1000000)::int8; COMMIT";
    let rows = place.session().await.query(sql).await.unwrap();
    capture.batch().await.unwrap();
    let transaction = capture.changes[0].transaction.clone();
    assert_eq!(Some(transaction.id.as_str()), rows[0].get(0));
    let since = transaction.committed_at - rows[0].number::<i64>(1).unwrap();
    assert!((-1_000_000..60_000_000).contains(&since), "committed {since} microseconds later");
    let commit = lsn::parse(&transaction.log_position).unwrap();
    assert_eq!(capture.changes[0].position.numbers()[0], commit);
    capture.until(|state| state.confirmed > commit).await;
    assert!(capture.checkpoint.unwrap().position >= Position::of(1, [commit, u64::MAX, 0]));
    assert_eq!(transaction.origin.database, place.database.name());
}

#[tokio::test]
async fn rows_that_share_a_place_in_the_log_are_counted() {
    let place = place(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY)",
        &["t", "u"],
    )
    .await;
    let mut capture = place.capture().await;
    // COPY logs many rows at once.
    place.copy_in("t", "1\ta\n2\tb\n3\tc\n").await;
    place.database.execute("TRUNCATE t, u").await.unwrap();
    while capture.changes.len() < 5 {
        capture.batch().await.unwrap();
    }
    let numbers: Vec<[u64; 3]> = capture.changes.iter().map(|change| change.position.numbers()).collect();
    assert_eq!(numbers.iter().map(|number| number[2]).collect::<Vec<_>>(), [0, 1, 2, 0, 1]);
    assert_eq!((numbers[0][1], numbers[3][1]), (numbers[2][1], numbers[4][1]));
    let mut truncated = capture.take(5).await.split_off(3);
    truncated.sort();
    assert_eq!(truncated, ["truncate t", "truncate u"]);
}

#[tokio::test]
async fn an_idle_source_lets_the_log_go() {
    let place = place(TABLE, &["t"]).await;
    let mut capture = place.capture().await;
    // Nothing of ours, but the log grows.
    place.database.execute("CREATE TABLE other AS SELECT generate_series(1, 1000)").await.unwrap();
    let end = lsn::parse(&place.query("SELECT pg_current_wal_lsn()::text").await[0]).unwrap();
    capture.until(|state| state.confirmed >= end).await;
    assert!(capture.changes.is_empty());
    assert!(place.confirmed().await < end, "confirmed before it is durable");
    capture.confirm().await;
    place.wait_for("the server to hear of it", async |place| place.confirmed().await >= end).await;
    let status = capture.connector.status();
    assert!(lsn::parse(&status.position.unwrap()).unwrap() >= end);
    assert!(status.lag_bytes.is_some());
}

/// Where the heartbeats in the log of our database stand, as a slot of another sees them.
async fn heartbeats(place: &Place) -> Vec<u64> {
    let sql = "SELECT lsn::text FROM pg_logical_slot_peek_changes('watch', NULL, NULL)
        WHERE data LIKE '%prefix: headwater-heartbeat%'";
    place.query(sql).await.iter().map(|lsn| lsn::parse(lsn).unwrap()).collect()
}

/// A server of its own, whose log nothing else moves.
async fn watched() -> (Postgres, Place) {
    let server = Postgres::settings().set("autovacuum", "off").start().await.unwrap();
    let mut place = Place::on(&server, TABLE, &["t"]).await;
    place.config.snapshot = SnapshotMode::Never;
    place.query("SELECT pg_create_logical_replication_slot('watch', 'test_decoding')::text").await;
    (server, place)
}

#[tokio::test]
async fn heartbeats_move_a_database_that_is_idle_beside_a_busy_one() {
    let (server, mut place) = watched().await;
    let neighbour = server.create_database().await.unwrap();
    place.config.heartbeat = Some(Duration::from_millis(50));
    let mut capture = place.capture().await;
    for round in 1..=3 {
        let sql = format!("CREATE TABLE t{round} AS SELECT generate_series(1, 10000)");
        neighbour.execute(&sql).await.unwrap();
        let end = place.end().await;
        place.wait_for("a heartbeat", async |place| heartbeats(place).await.last() > Some(&end)).await;
        let last = heartbeats(&place).await.pop().unwrap();
        capture.until(|state| state.confirmed > last).await;
        capture.confirm().await;
        place.wait_for("the confirmation", async |place| place.confirmed().await > last).await;
    }
    assert!(capture.changes.is_empty());
}

#[tokio::test]
async fn heartbeats_are_written_only_where_they_are_asked_for() {
    let (_server, place) = watched().await;
    let _capture = place.capture().await;
    let asked = "SELECT count(*)::text FROM pg_stat_activity WHERE state = 'idle' \
        AND query LIKE 'SELECT t.oid, min(%' AND backend_type = 'client backend' AND application_name = 'headwater'";
    // What would write them has been through its round.
    place.wait_for("the first round", async |place| place.query(asked).await == ["1"]).await;
    assert!(heartbeats(&place).await.is_empty());
}

#[tokio::test]
async fn the_server_hears_from_us_while_nothing_is_taken() {
    let server = Postgres::settings().set("wal_sender_timeout", "1s").start().await.unwrap();
    let mut place = Place::on(&server, TABLE, &["t"]).await;
    place.config.snapshot = SnapshotMode::Never;
    let mut capture = place.capture().await;
    // More than fits into all buffers on the way.
    let rows = "INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 30000) n";
    place.database.execute(rows).await.unwrap();
    capture.batch().await.unwrap();
    let sql = format!(
        "SELECT extract(epoch FROM now() - backend_start) > 4 AND state = 'streaming' \
        FROM pg_stat_replication WHERE pid = (SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{}')",
        place.names.slot
    );
    place.wait_for("four times the timeout", async |place| place.query(&sql).await == ["t"]).await;
    while capture.changes.len() < 30_000 {
        capture.batch().await.unwrap();
    }
}

#[tokio::test]
async fn a_lost_connection_is_an_error_that_may_pass() {
    let place = place(TABLE, &["t"]).await;
    let mut capture = place.capture().await;
    place.database.execute("INSERT INTO t VALUES (1, 'a')").await.unwrap();
    capture.take(1).await;
    place.end_replication().await;
    let error = capture.failure().await;
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    place.wait_for("the slot to be free", async |place| !place.is_active().await).await;
    place.database.execute("INSERT INTO t VALUES (2, 'b')").await.unwrap();
    capture.open().await.unwrap();
    assert_eq!(capture.take(1).await, ["create t (2, b)"]);
}

#[tokio::test]
async fn tables_that_are_not_named_are_not_captured_whatever_the_publication_has() {
    let mut place = place(
        "CREATE TABLE ours (id int PRIMARY KEY); CREATE TABLE theirs (id int PRIMARY KEY); \
         CREATE PUBLICATION everything FOR ALL TABLES",
        &["ours"],
    )
    .await;
    place.config.publication = Some("everything".to_owned());
    let mut capture = place.capture().await;
    place
        .database
        .execute("INSERT INTO theirs VALUES (1); INSERT INTO ours VALUES (1); TRUNCATE theirs, ours")
        .await
        .unwrap();
    assert_eq!(capture.take(2).await, ["create ours (1)", "truncate ours"]);
}

#[tokio::test]
async fn a_table_that_changes_its_shape_is_described_anew() {
    let place = place(TABLE, &["t"]).await;
    let mut capture = place.capture().await;
    let sql = "INSERT INTO t VALUES (1, 'a'); ALTER TABLE t ADD n numeric(5,2) DEFAULT 1; \
        INSERT INTO t VALUES (2, 'b', 2.5); ALTER TABLE t DROP v; INSERT INTO t VALUES (3, 3); \
        ALTER TABLE t RENAME TO renamed; INSERT INTO renamed VALUES (4, 4)";
    for statement in sql.split(';') {
        place.database.execute(statement).await.unwrap();
    }
    let expected = ["create t (1, a)", "create t (2, b, 2.50)", "create t (3, 3.00)", "create t (4, 4.00)"];
    assert_eq!(capture.take(4).await, expected);
}

#[tokio::test]
async fn names_may_hold_what_has_to_be_quoted() {
    let odd = r#"we"ird\name'x, y"#;
    let quoted = odd.replace('"', "\"\"");
    let sql = format!(
        r#"CREATE SCHEMA "{quoted}"; CREATE TABLE "{quoted}"."{quoted}" ("{quoted}" int PRIMARY KEY, v text);
           INSERT INTO "{quoted}"."{quoted}" VALUES (1, 'a')"#
    );
    let mut place = Place::new(&sql, &[&format!("{odd}.{odd}")]).await;
    place.config.publication = Some(odd.to_owned());
    let mut capture = place.capture().await;
    assert_eq!(capture.take(1).await, [format!("read {odd} (1, a)")]);
    place.each(&format!(r#"UPDATE "{quoted}"."{quoted}" SET "{quoted}" = 2"#)).await;
    assert_eq!(capture.take(1).await, [format!("update {odd} (1, absent) (2, a)")]);
    // Opened again, it finds all as it left it.
    capture.open().await.unwrap();
    place.each(&format!(r#"TRUNCATE "{quoted}"."{quoted}""#)).await;
    assert_eq!(capture.take(1).await, [format!("truncate {odd}")]);
    let findings = capture.connector.check().await.unwrap().findings;
    let wrong = findings.iter().filter(|finding| {
        finding.severity != Severity::Ok && !finding.message.contains("is used by another")
    });
    assert_eq!(wrong.count(), 0, "{findings:?}");
}
