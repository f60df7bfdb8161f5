//! What happens to the publications beside the source.

use headwater_connect::settings::SnapshotMode;
use headwater_core::Kind;

use crate::capture::Capture;
use crate::support::Place;

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

/// A capture of a table with one row, which was read.
async fn capture(place: &Place) -> Capture {
    place.each("INSERT INTO t VALUES (1, 'a')").await;
    let mut capture = place.capture().await;
    assert_eq!(capture.take(1).await, ["read t (1, a)"]);
    capture.until(|state| state.snapshots.contains_key("public.t")).await;
    capture
}

async fn close(place: &Place, capture: &mut Capture) {
    capture.source = None;
    place.wait_for("the slot to be free", async |place| !place.is_active().await).await;
}

#[tokio::test]
async fn a_table_that_got_a_key_is_read_anew_as_its_updates_until_then_were_not_published() {
    let place = Place::new("CREATE TABLE t (id int, v text)", &["t"]).await;
    let mut capture = capture(&place).await;
    place.each("UPDATE t SET v = 'missed'; INSERT INTO t VALUES (2, 'b')").await;
    assert_eq!(capture.take(1).await, ["create t (2, b)"]);
    place.each("ALTER TABLE t ADD PRIMARY KEY (id)").await;
    close(&place, &mut capture).await;
    // Also when the process ends before it could store that the table is to be read.
    capture.open().await.unwrap();
    close(&place, &mut capture).await;
    capture.open().await.unwrap();
    assert_eq!(capture.take(2).await, ["read t (1, missed)", "read t (2, b)"]);
    place.each("UPDATE t SET v = 'c' WHERE id = 1").await;
    assert_eq!(capture.take(1).await, ["update t (1, c)"]);
    // And once.
    capture.until(|state| state.snapshots.contains_key("public.t")).await;
    close(&place, &mut capture).await;
    capture.open().await.unwrap();
    place.each("DELETE FROM t WHERE id = 2").await;
    assert_eq!(capture.take(1).await, ["delete t (2, absent)"]);
}

#[tokio::test]
async fn a_table_that_somebody_took_out_of_our_publication_is_read_anew() {
    let place = Place::new(TABLE, &["t"]).await;
    let name = place.names.publication.clone();
    let mut ways = vec![
        format!("ALTER PUBLICATION {name} DROP TABLE t; UPDATE t SET v = 'missed'"),
        format!("ALTER PUBLICATION {name} SET (publish = 'insert'); UPDATE t SET v = 'missed'"),
        // Put in again: nothing is left to mend, but what happened meanwhile is missing.
        format!(
            "ALTER PUBLICATION {name} DROP TABLE t; UPDATE t SET v = 'missed'; ALTER PUBLICATION {name} ADD TABLE t"
        ),
    ];
    if place.version().await >= 15 {
        ways.push(format!("ALTER PUBLICATION {name} SET TABLE t WHERE (id > 1); UPDATE t SET v = 'missed'"));
    }
    let mut capture = capture(&place).await;
    for way in ways {
        close(&place, &mut capture).await;
        place.each(&way).await;
        capture.open().await.unwrap();
        assert_eq!(capture.take(1).await, ["read t (1, missed)"], "{way}");
        place.each("UPDATE t SET v = 'a'").await;
        assert_eq!(capture.take(1).await, ["update t (1, a)"], "{way}");
        capture.until(|state| state.snapshots.contains_key("public.t")).await;
    }
}

#[tokio::test]
async fn without_snapshots_a_table_that_is_published_again_goes_on() {
    let mut place = Place::new(TABLE, &["t"]).await;
    place.config.snapshot = SnapshotMode::Never;
    let mut capture = place.capture().await;
    place.each("INSERT INTO t VALUES (1, 'a')").await;
    capture.take(1).await;
    close(&place, &mut capture).await;
    place
        .each(&format!("ALTER PUBLICATION {} DROP TABLE t; UPDATE t SET v = 'b'", place.names.publication))
        .await;
    capture.open().await.unwrap();
    place.each("UPDATE t SET v = 'c'").await;
    assert_eq!(capture.take(1).await, ["update t (1, c)"]);
}

#[tokio::test]
async fn a_publication_that_is_altered_while_it_is_followed_is_noticed() {
    let mut place = Place::new(TABLE, &["t"]).await;
    place.config.heartbeat = Some(std::time::Duration::from_secs(1));
    let mut capture = capture(&place).await;
    place
        .each(&format!(
            "ALTER PUBLICATION {} DROP TABLE t; UPDATE t SET v = 'missed'",
            place.names.publication
        ))
        .await;
    let error = capture.failure().await;
    assert!(error.is_retryable() && error.to_string().contains("was altered"), "{error}");
    capture.open().await.unwrap();
    assert_eq!(capture.take(1).await, ["read t (1, missed)"]);
}

#[tokio::test]
async fn a_publication_that_is_made_anew_while_it_is_followed_is_a_hole() {
    let place = Place::new(TABLE, &["t"]).await;
    let mut capture = capture(&place).await;
    let name = &place.names.publication;
    place
        .each(&format!(
            "DROP PUBLICATION {name}; UPDATE t SET v = 'missed'; CREATE PUBLICATION {name} FOR TABLE t"
        ))
        .await;
    // Version 18 goes on without it; the others cannot read the log any more.
    if place.version().await < 18 {
        let error = capture.failure().await;
        assert!(error.is_retryable(), "{error}");
    }
    close(&place, &mut capture).await;
    let error = capture.open().await.unwrap_err();
    assert!(error.kind() == Kind::Hole && error.to_string().contains("made anew"), "{error}");
}

/// A capture through a publication that somebody else made.
async fn capture_theirs(publication: &str) -> (Place, Capture) {
    let mut place = Place::new(TABLE, &["t"]).await;
    place.config.publication = Some("theirs".into());
    place.names = place.config.names(place.database.name()).unwrap();
    place.each(&format!("CREATE PUBLICATION theirs FOR {publication}")).await;
    let capture = capture(&place).await;
    (place, capture)
}

async fn is_read_anew_after(place: &Place, capture: &mut Capture, change: &str) {
    close(place, capture).await;
    place.each(change).await;
    capture.open().await.unwrap();
    assert_eq!(capture.take(1).await, ["read t (1, missed)"], "{change}");
}

#[tokio::test]
async fn a_table_whose_schema_was_taken_out_for_a_while_is_read_anew() {
    let there = "ALTER PUBLICATION theirs ADD TABLES IN SCHEMA public";
    let back = "ALTER PUBLICATION theirs DROP TABLES IN SCHEMA public; UPDATE t SET v = 'missed'";
    if Place::new("", &[]).await.version().await < 15 {
        return;
    }
    let (place, mut capture) = capture_theirs("TABLES IN SCHEMA public").await;
    is_read_anew_after(&place, &mut capture, &format!("{back}; {there}")).await;
    // By name now, where it was by its schema.
    capture.until(|state| state.snapshots.contains_key("public.t")).await;
    place.each("UPDATE t SET v = 'a'").await;
    assert_eq!(capture.take(1).await, ["update t (1, a)"]);
    is_read_anew_after(&place, &mut capture, &format!("{back}; ALTER PUBLICATION theirs ADD TABLE t")).await;
}

#[tokio::test]
async fn what_somebody_published_less_of_for_a_while_is_read_anew() {
    let (place, mut capture) = capture_theirs("TABLE t").await;
    close(&place, &mut capture).await;
    place.each("ALTER PUBLICATION theirs SET (publish = 'insert'); UPDATE t SET v = 'missed'").await;
    capture.open().await.unwrap();
    place.each("INSERT INTO t VALUES (2, 'b')").await;
    assert_eq!(capture.take(1).await, ["create t (2, b)"]);
    capture.until(|state| state.operations["theirs"].len() == 1).await;
    place.each("DELETE FROM t WHERE id = 2").await;
    let whole = "ALTER PUBLICATION theirs SET (publish = 'insert, update, delete, truncate')";
    is_read_anew_after(&place, &mut capture, whole).await;
}

/// What version 18 does not fail by itself, the look at the catalog has to notice.
#[tokio::test]
async fn a_publication_that_is_dropped_while_it_is_followed_is_noticed() {
    let mut place = Place::new(TABLE, &["t"]).await;
    place.config.heartbeat = Some(std::time::Duration::from_secs(1));
    let mut capture = capture(&place).await;
    // Nothing is written to the table: the log says nothing of it.
    place.each(&format!("DROP PUBLICATION {}", place.names.publication)).await;
    let error = capture.failure().await;
    assert!(error.is_retryable() && error.to_string().contains("was altered"), "{error}");
}
