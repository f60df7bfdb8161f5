//! The owner's own work, which Headwater may not hold up.

use headwater_connect::postgres::url::ConnectOptions;
use headwater_connect::requests::{Requests, SnapshotRequest};
use headwater_connect::settings::SnapshotMode;
use headwater_core::Kind;
use headwater_testkit::servers::Postgres;

use crate::capture::say;
use crate::support::Place;

/// Rows of a megabyte each, which take little room in the table: few are on their way at a time.
fn wide(table: &str, count: u32) -> String {
    format!("INSERT INTO {table} SELECT n, repeat('x', 1 << 20) FROM generate_series(1, {count}) n")
}

/// One worker reads the beginning of `u`; its owner wants to alter it, and waits for that worker; then
/// another worker has read `t` and would go for the rest of `u`, behind the owner.
#[tokio::test]
async fn an_owner_who_waits_for_a_table_that_is_read_gets_it() {
    let mut place = Place::new(
        "CREATE TABLE t (id int PRIMARY KEY, v text);
         CREATE TABLE u (id int PRIMARY KEY, v text) WITH (fillfactor = 10)",
        &["t", "u"],
    )
    .await;
    // Whose socket holds little.
    place.config.url = ConnectOptions::parse(place.database.unix_url()).unwrap();
    let rest = "INSERT INTO u SELECT n, repeat('x', 300) FROM generate_series(100, 8000) n";
    place.each(&format!("{}; {}; {rest}", wide("t", 16), wide("u", 48))).await;
    let pieces = place.query("SELECT (pg_relation_size('u') / 8192 / 2048 + 1)::text").await;
    assert_eq!(pieces, ["2"]);
    let mut capture = place.capture().await;
    let locks = |granted: bool| {
        format!(
            "SELECT count(DISTINCT relation)::text FROM pg_locks WHERE granted = {granted}
                 AND relation IN ('t'::regclass, 'u'::regclass) AND pid <> pg_backend_pid()"
        )
    };
    place.wait_for("both tables to be read", async |place| place.query(&locks(true)).await == ["2"]).await;
    let mut owner = place.session().await;
    let altering =
        tokio::spawn(async move { owner.query("ALTER TABLE u ALTER v TYPE varchar(2000000)").await });
    place.wait_for("the owner to wait", async |place| place.query(&locks(false)).await == ["1"]).await;
    while capture.changes.len() < 16 + 48 + 7901 {
        capture.batch().await.unwrap();
    }
    capture.until(|state| state.snapshots.len() == 2).await;
    altering.await.unwrap().unwrap();
}

/// While a snapshot waits for the owner's long transaction, the source is opened again and again.
#[tokio::test]
async fn a_snapshot_that_waits_takes_one_slot_however_often_the_source_is_opened() {
    // Snapshots of other tests would wait for its transaction.
    let server = Postgres::start().await.unwrap();
    let mut place = Place::on(&server, "CREATE TABLE t (id int PRIMARY KEY, v text)", &["t"]).await;
    place.config.snapshot = SnapshotMode::Never;
    let mut capture = place.capture().await;
    let mut owner = place.session().await;
    owner.query("BEGIN; INSERT INTO t VALUES (1, 'long')").await.unwrap();
    let requests = Requests::new(capture.data.path(), &place.names.source);
    requests.write(&SnapshotRequest::new(Vec::new())).unwrap();
    let waiting =
        "SELECT active_pid::text FROM pg_replication_slots WHERE temporary AND database = current_database()";
    let mut pids = Vec::new();
    for _ in 0..3 {
        capture.open().await.unwrap();
        place
            .wait_for("a new temporary slot", async |place| {
                place.query(waiting).await.last().is_some_and(|pid| !pids.contains(pid))
            })
            .await;
        let now = place.query(waiting).await;
        assert_eq!(now.len(), 1, "{now:?} after {pids:?}");
        pids.extend(now);
    }
    owner.query("COMMIT").await.unwrap();
    assert_eq!(capture.take(2).await, ["create t (1, long)", "read t (1, long)"]);
}

/// As while the bus is away: nothing is read, or what is read is never confirmed.
#[tokio::test]
async fn a_server_shuts_down_while_nothing_is_confirmed() {
    let server = Postgres::start().await.unwrap();
    let mut place = Place::on(&server, "CREATE TABLE t (id int PRIMARY KEY, v text)", &["t"]).await;
    place.config.snapshot = SnapshotMode::Never;
    let mut capture = place.capture().await;
    place.each("INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 30000) n").await;
    server.stop().await.unwrap();
    assert_eq!(capture.failure().await.kind(), Kind::Unavailable);
    server.restart().await.unwrap();
    capture.open().await.unwrap();
    while capture.changes.len() < 30_000 {
        capture.batch().await.unwrap();
    }
}

#[tokio::test]
async fn a_server_shuts_down_while_a_snapshot_is_not_taken_off_our_hands() {
    let server = Postgres::start().await.unwrap();
    let place = Place::on(&server, "CREATE TABLE t (id int PRIMARY KEY, v text)", &["t"]).await;
    place.each(&wide("t", 32)).await;
    let mut capture = place.capture().await;
    let locks =
        "SELECT count(*)::text FROM pg_locks WHERE relation = 't'::regclass AND pid <> pg_backend_pid()";
    place.wait_for("the table to be read", async |place| place.query(locks).await == ["1"]).await;
    place.each("INSERT INTO t VALUES (0, 'later')").await;
    server.stop().await.unwrap();
    assert_eq!(capture.failure().await.kind(), Kind::Unavailable);
    server.restart().await.unwrap();
    capture.open().await.unwrap();
    capture.until(|state| state.snapshots.len() == 1).await;
}

/// What committed before is handed out, also where what came later stood in the same read of the socket.
#[tokio::test]
async fn a_snapshot_that_waits_holds_back_nothing_that_committed_before() {
    // Snapshots of other tests would wait for its transaction.
    let server = Postgres::start().await.unwrap();
    let mut place = Place::on(&server, "CREATE TABLE t (id int PRIMARY KEY, v text)", &["t"]).await;
    place.config.snapshot = SnapshotMode::Never;
    let mut capture = place.capture().await;
    capture.source = None;
    place.wait_for("the slot to be free", async |place| !place.is_active().await).await;
    let mut owner = place.session().await;
    owner.query("BEGIN; INSERT INTO t VALUES (-1, 'long')").await.unwrap();
    // More than is read before somebody takes it.
    place.each("INSERT INTO t SELECT n, repeat('x', 300) FROM generate_series(1, 14000) n").await;
    place.each("INSERT INTO t VALUES (-2, 'before')").await;
    let requests = Requests::new(capture.data.path(), &place.names.source);
    requests.write(&SnapshotRequest::new(Vec::new())).unwrap();
    capture.open().await.unwrap();
    place.each("INSERT INTO t VALUES (-3, 'after')").await;
    while capture.changes.len() < 14_001 {
        capture.batch().await.unwrap();
    }
    assert_eq!(say(&capture.changes[14_000]), "create t (-2, before)");
    owner.query("COMMIT").await.unwrap();
    while capture.changes.len() < 14_003 + 14_003 {
        capture.batch().await.unwrap();
    }
}
