//! Opening again: what comes a second time, and when there is nothing to go on from.

use headwater_connect::postgres::{PostgresConnector, State};
use headwater_connect::requests::{Requests, SnapshotRequest};
use headwater_connect::settings::SnapshotMode;
use headwater_core::{Kind, Position};
use headwater_testkit::servers::Postgres;

use crate::capture::Capture;
use crate::support::Place;

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

async fn place() -> Place {
    let mut place = Place::new(TABLE, &["t"]).await;
    place.config.snapshot = SnapshotMode::Never;
    place
}

#[tokio::test]
async fn what_comes_again_comes_with_the_same_places() {
    let place = place().await;
    let mut capture = place.capture().await;
    place.each("INSERT INTO t SELECT n, 'a' FROM generate_series(1, 500) n; UPDATE t SET v = 'b' WHERE id < 100; DELETE FROM t").await;
    place.copy_in("t", "1\ta\n2\tb\n").await;
    while capture.changes.len() < 1101 {
        capture.batch().await.unwrap();
    }
    let places = |capture: &Capture| {
        capture.changes.iter().map(|change| (change.position, change.transaction.clone())).collect::<Vec<_>>()
    };
    let first = places(&capture);
    capture.changes.clear();
    capture.checkpoint = None;
    capture.source = None;
    place.wait_for("the slot to be free", async |place| !place.is_active().await).await;
    capture.open().await.unwrap();
    while capture.changes.len() < 1101 {
        capture.batch().await.unwrap();
    }
    assert_eq!(places(&capture), first);
}

#[tokio::test]
async fn a_source_that_is_closed_has_told_the_server_of_the_last_confirmation() {
    let place = place().await;
    let mut capture = place.capture().await;
    for id in 1..=3 {
        place.each(&format!("INSERT INTO t VALUES ({id}, 'a')")).await;
        capture.take(1).await;
        capture.confirm().await;
    }
    capture.source.take().unwrap().close().await;
    place.wait_for("the slot to be free", async |place| !place.is_active().await).await;
    assert_eq!(place.confirmed().await, capture.state().confirmed);
}

#[tokio::test]
async fn a_checkpoint_within_a_transaction_confirms_only_what_was_before() {
    let place = place().await;
    let mut capture = place.capture().await;
    place.each("INSERT INTO t SELECT n, repeat('x', 100) FROM generate_series(1, 5000) n; INSERT INTO t VALUES (0, 'next')").await;
    capture.batch().await.unwrap();
    let came = capture.changes.len();
    assert!(came < 5000, "the budget is smaller than the transaction");
    let commit = capture.changes[0].position.numbers()[0];
    assert!(capture.state().confirmed < commit);
    assert_eq!(capture.checkpoint.as_ref().unwrap().position, capture.changes[came - 1].position);
    capture.confirm().await;
    capture.source = None;
    place.wait_for("the slot to be free", async |place| !place.is_active().await).await;
    capture.open().await.unwrap();
    let changes = capture.take(5001).await;
    assert_eq!(capture.again.len(), came);
    assert_eq!(changes[5000], "create t (0, next)");
}

#[tokio::test]
async fn what_a_budget_cuts_off_is_not_confirmed() {
    let place = place().await;
    let mut capture = place.capture().await;
    capture.source = None;
    place
        .each("INSERT INTO t VALUES (1, 'a'); INSERT INTO t VALUES (2, 'b'); INSERT INTO t VALUES (3, 'c')")
        .await;
    capture.open().await.unwrap();
    let mut confirmed = 0;
    for count in 1..=3 {
        while capture.changes.len() < count {
            capture.batch_of(1).await.unwrap();
        }
        assert_eq!(capture.changes.len(), count);
        let commit = capture.changes[count - 1].position.numbers()[0];
        assert!(confirmed <= commit, "change {count} was confirmed before it was handed out");
        confirmed = capture.state().confirmed;
    }
}

#[tokio::test]
async fn a_slot_that_begins_after_the_checkpoint_is_a_hole_until_all_is_read_anew() {
    let place = place().await;
    let mut capture = place.capture().await;
    place.each("INSERT INTO t VALUES (1, 'a')").await;
    capture.take(1).await;
    let stored = capture.checkpoint.clone();
    let confirmed = capture.state().confirmed;
    capture.source = None;
    place.wait_for("the slot to be free", async |place| !place.is_active().await).await;
    // Somebody else moved the slot on.
    place.each("INSERT INTO t VALUES (2, 'missed')").await;
    place
        .query(&format!(
            "SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())::text",
            place.names.slot
        ))
        .await;
    let error = capture.open().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Hole, "{error}");
    assert!(
        error.hint_text().unwrap().contains(&format!("headwater snapshot --source {}", place.names.source))
    );
    // A request for one table does not mend it, one for all does.
    let requests = Requests::new(capture.data.path(), &place.names.source);
    requests.write(&SnapshotRequest::new(vec!["public.t".into()])).unwrap();
    assert_eq!(capture.open().await.unwrap_err().kind(), Kind::Hole);
    let request = SnapshotRequest::new(Vec::new());
    requests.write(&request).unwrap();
    capture.open().await.unwrap();
    place.each("INSERT INTO t VALUES (3, 'c')").await;
    assert_eq!(capture.take(3).await, ["read t (1, a)", "read t (2, missed)", "create t (3, c)"]);
    let state = capture.state();
    assert_eq!((state.epoch, state.request.as_ref()), (2, Some(&request.id)));
    assert!(capture.checkpoint.as_ref().unwrap().position > stored.unwrap().position);
    assert!(state.confirmed > confirmed);
    // The request is followed once.
    capture.confirm().await;
    assert_eq!(requests.read().unwrap(), None);
}

/// A capture that has gone some way and was closed; then a row changes that it does not see.
async fn closed(place: &Place) -> Capture {
    let mut capture = place.capture().await;
    place.each("INSERT INTO t VALUES (1, 'a')").await;
    capture.take(1).await;
    capture.source = None;
    place.wait_for("the slot to be free", async |place| !place.is_active().await).await;
    place.each("UPDATE t SET v = 'missed'; INSERT INTO t VALUES (2, 'missed')").await;
    capture
}

/// Opening says that there is a hole; the command that it names has all rows read, and the stream goes on.
async fn is_mended(place: &Place, capture: &mut Capture, part: &str) {
    let stored = capture.checkpoint.clone().unwrap();
    let error = capture.open().await.unwrap_err();
    assert!(error.kind() == Kind::Hole && error.to_string().contains(part), "{error}");
    let command = format!("headwater snapshot --source {}", place.names.source);
    assert!(error.hint_text().unwrap().contains(&command), "{error}");
    let requests = Requests::new(capture.data.path(), &place.names.source);
    requests.write(&SnapshotRequest::new(Vec::new())).unwrap();
    capture.open().await.unwrap();
    let rows = place.query("SELECT format('read t (%s, %s)', id, v) FROM t ORDER BY id").await;
    assert_eq!(rows.len(), 2);
    assert_eq!(capture.take(rows.len()).await, rows);
    place.each("UPDATE t SET v = 'after' WHERE id = 1").await;
    assert_eq!(capture.take(1).await, ["update t (1, after)"]);
    assert_eq!(capture.state().epoch, 2);
    assert!(capture.checkpoint.as_ref().unwrap().position > stored.position);
    capture.confirm().await;
    // And once: it is no hole any more.
    capture.open().await.unwrap();
    place.each("DELETE FROM t WHERE id = 2").await;
    assert_eq!(capture.take(1).await, ["delete t (2, absent)"]);
}

#[tokio::test]
async fn a_slot_that_is_gone_is_mended() {
    let place = place().await;
    let mut capture = closed(&place).await;
    place.query(&format!("SELECT pg_drop_replication_slot('{}')::text", place.names.slot)).await;
    is_mended(&place, &mut capture, "is gone, and with it the changes since").await;
}

#[tokio::test]
async fn a_publication_that_is_gone_is_mended() {
    let place = place().await;
    let mut capture = closed(&place).await;
    place.database.execute(&format!("DROP PUBLICATION {}", place.names.publication)).await.unwrap();
    is_mended(&place, &mut capture, "is gone, and with it the changes since").await;
}

#[tokio::test]
async fn a_publication_that_was_made_anew_is_mended() {
    let place = place().await;
    let mut capture = closed(&place).await;
    let name = &place.names.publication;
    place.each(&format!("DROP PUBLICATION {name}; CREATE PUBLICATION {name} FOR TABLE t")).await;
    is_mended(&place, &mut capture, "was dropped and made anew").await;
}

#[tokio::test]
async fn another_publication_is_mended() {
    let mut place = place().await;
    let mut capture = closed(&place).await;
    place.each("CREATE PUBLICATION other FOR TABLE t").await;
    place.config.publication = Some("other".to_owned());
    let connector = PostgresConnector::new(&place.names.source, place.config.clone(), capture.data.path());
    capture.connector = connector.unwrap();
    is_mended(&place, &mut capture, "not of other").await;
}

/// A place on a server that keeps little log.
async fn forgetful() -> (Postgres, Place) {
    let limits = Postgres::settings().set("max_slot_wal_keep_size", "1MB").set("max_wal_size", "32MB");
    let server = limits.start().await.unwrap();
    let mut place = Place::on(&server, TABLE, &["t"]).await;
    place.config.snapshot = SnapshotMode::Never;
    (server, place)
}

/// Has the server remove the log that the slot needs.
async fn lose(place: &Place) {
    let status =
        format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{}'", place.names.slot);
    place.each("CREATE TABLE filler (a int)").await;
    for _ in 0..50 {
        if place.query(&status).await == ["lost"] {
            break;
        }
        place.each("SELECT pg_switch_wal(); INSERT INTO filler VALUES (1); CHECKPOINT").await;
    }
}

#[tokio::test]
async fn a_slot_that_is_lost_is_mended() {
    let (_server, place) = forgetful().await;
    let mut capture = closed(&place).await;
    lose(&place).await;
    is_mended(&place, &mut capture, "is lost: the server removed log that it needed").await;
}

#[tokio::test]
async fn a_slot_that_was_lost_before_anything_was_stored_is_mended() {
    let (_server, place) = forgetful().await;
    place.prepare(None).await.unwrap();
    place.slot().await;
    place.each("INSERT INTO t VALUES (1, 'a')").await;
    lose(&place).await;
    let mut capture = place.closed();
    let error = capture.open().await.unwrap_err();
    assert!(error.kind() == Kind::Hole && error.to_string().contains("is lost"), "{error}");
    assert!(error.hint_text().unwrap().contains("headwater snapshot --source"), "{error}");
    let requests = Requests::new(capture.data.path(), &place.names.source);
    requests.write(&SnapshotRequest::new(Vec::new())).unwrap();
    capture.open().await.unwrap();
    assert_eq!(capture.take(1).await, ["read t (1, a)"]);
}

#[tokio::test]
async fn another_server_that_replaces_it_is_mended() {
    let mut place = place().await;
    let mut capture = closed(&place).await;
    let rows = place.query("SELECT format('INSERT INTO t VALUES (%s, %L)', id, v) FROM t").await;
    let other = Postgres::start().await.unwrap();
    let name = place.database.name().to_owned();
    other.database("postgres").execute(&format!("CREATE DATABASE {name}")).await.unwrap();
    (place.database, place.config.url.port) = (other.database(&name), other.port());
    place.each(&format!("{TABLE}; {}", rows.join(";"))).await;
    let connector = PostgresConnector::new(&place.names.source, place.config.clone(), capture.data.path());
    capture.connector = connector.unwrap();
    is_mended(&place, &mut capture, "the checkpoint is of another server").await;
}

#[tokio::test]
async fn a_slot_in_use_is_busy() {
    let place = place().await;
    let _capture = place.capture().await;
    let mut other = place.closed();
    let error = other.open().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Busy, "{error}");
    assert!(error.is_retryable());
}

#[tokio::test]
async fn another_timeline_of_the_same_server_begins_an_epoch() {
    let place = place().await;
    let mut capture = place.capture().await;
    place.each("INSERT INTO t VALUES (1, 'a')").await;
    capture.take(1).await;
    let end = place.end().await;
    capture.until(|state| state.confirmed >= end).await;
    let mut checkpoint = capture.checkpoint.take().unwrap();
    let mut state = State::read(&checkpoint).unwrap();
    state.timeline += 1;
    checkpoint = state.checkpoint(&checkpoint.source, checkpoint.position).unwrap();
    capture.checkpoint = Some(checkpoint);
    capture.source = None;
    place.wait_for("the slot to be free", async |place| !place.is_active().await).await;
    capture.open().await.unwrap();
    place.each("INSERT INTO t VALUES (2, 'b')").await;
    while capture.changes.is_empty() {
        capture.batch().await.unwrap();
    }
    assert_eq!(capture.changes[0].position.epoch(), 2);
    // The log may have forked: what the slot had not seen confirmed comes again.
    let mut told = capture.take(1).await;
    if told == ["create t (1, a)"] {
        told = capture.take(1).await;
    }
    assert_eq!(told, ["create t (2, b)"]);
    assert!(capture.checkpoint.unwrap().position > Position::of(2, [0]));
}
