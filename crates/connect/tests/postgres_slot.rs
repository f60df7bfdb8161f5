//! The slot, the server's limits, and what `check` says of them.
#![allow(clippy::unwrap_used)]

mod support;

use headwater_connect::postgres::client::{Connection, Mode};
use headwater_connect::postgres::{PostgresConnector, setup};
use headwater_core::ports::{Connector, Finding, Severity};
use headwater_core::{Error, Kind};
use headwater_testkit::servers::Postgres;
use support::Place;

const TABLE: &str = "CREATE TABLE a (id int PRIMARY KEY, v text)";

async fn place() -> Place {
    Place::new(TABLE, &["a"]).await
}

/// A place whose publications are made, with its slot.
async fn ready() -> (Place, headwater_connect::postgres::State) {
    let place = place().await;
    place.prepare(None).await.unwrap();
    let state = place.slot().await;
    (place, state)
}

#[track_caller]
fn says(error: &Error, kind: Kind, part: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(part), "{part} is not in {error}");
    assert!(error.hint_text().is_some_and(|hint| !hint.is_empty()), "no hint: {error}");
}

async fn check(place: &Place) -> Vec<Finding> {
    let dir = tempfile::tempdir().unwrap();
    let name = place.database.name();
    PostgresConnector::new(name, place.config.clone(), dir.path()).unwrap().check().await.unwrap().findings
}

/// The findings that are not well, in lines.
async fn troubles(place: &Place) -> String {
    let findings = check(place).await.into_iter().filter(|finding| finding.severity != Severity::Ok);
    findings
        .map(|finding| format!("{:?} {} / {}\n", finding.severity, finding.message, finding.hint.unwrap()))
        .collect()
}

#[tokio::test]
async fn a_slot_continues_what_is_stored() {
    let (place, state) = ready().await;
    let ready = place.prepare(Some(&state)).await.unwrap();
    assert_eq!(ready.slot.unwrap().confirmed, state.confirmed);
    // More may be stored than was confirmed: it was stored first. But not more than there is.
    let beyond =
        headwater_connect::postgres::State { confirmed: state.confirmed + (1 << 32), ..state.clone() };
    says(&place.prepare(Some(&beyond)).await.unwrap_err(), Kind::Hole, "restored from an older copy");
    place.database.execute("create table more (id int)").await.unwrap();
    place
        .prepare(Some(&headwater_connect::postgres::State { confirmed: state.confirmed + 100, ..state }))
        .await
        .unwrap();
}

#[tokio::test]
async fn holes_are_told_with_the_command_that_repairs_them() {
    let (place, state) = ready().await;
    let hole = async |stored: &headwater_connect::postgres::State, part: &str| {
        let error = place.prepare(Some(stored)).await.unwrap_err();
        says(&error, Kind::Hole, part);
        let command = format!("headwater snapshot --source {}", place.database.name());
        assert!(error.hint_text().unwrap().contains(&command), "{error}");
    };
    let with = |change: fn(&mut headwater_connect::postgres::State)| {
        let mut state = state.clone();
        change(&mut state);
        state
    };
    hole(&with(|state| state.confirmed -= 1), "the changes between are gone").await;
    hole(&with(|state| state.system_id = "7".into()), "its system identifier is 7").await;
    hole(&with(|state| state.database = "shop".into()), "of database \"shop\"").await;
    hole(&with(|state| state.slot = "other".into()), "of slot \"other\"").await;
    place.database.execute(&format!("DROP PUBLICATION {}", place.names.publication)).await.unwrap();
    hole(&state, "is gone, and with it the changes since").await;
    setup::drop_slot(&mut place.connect().await, &place.names.slot).await.unwrap();
    hole(&state, "is gone, and with it the changes since").await;
}

#[tokio::test]
async fn a_slot_that_is_older_than_its_publication_is_refused() {
    let place = place().await;
    place.slot().await;
    says(&place.error().await, Kind::Refused, "is older than publication");
    setup::drop_slot(&mut place.connect().await, &place.names.slot).await.unwrap();
    place.prepare(None).await.unwrap();
}

#[tokio::test]
async fn the_slot_of_another_is_refused() {
    let place = place().await;
    let slot = &place.names.slot;
    let make = format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')");
    place.database.execute(&make).await.unwrap();
    says(&place.error().await, Kind::Refused, "uses the plugin test_decoding");
    assert!(troubles(&place).await.contains("uses the plugin test_decoding"));
    let drop = format!("SELECT pg_drop_replication_slot('{slot}')");
    place
        .database
        .execute(&format!("{drop}; SELECT pg_create_physical_replication_slot('{slot}')"))
        .await
        .unwrap();
    says(&place.error().await, Kind::Refused, "is a physical one");
    place.database.execute(&drop).await.unwrap();
    let other = Place::new("", &[]).await;
    let make = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
    other.database.execute(&make).await.unwrap();
    says(&place.error().await, Kind::Refused, &format!("belongs to database \"{}\"", other.database.name()));
}

#[tokio::test]
async fn a_slot_in_use_is_busy_and_the_hint_names_the_process() {
    let (place, state) = ready().await;
    let start = format!(
        "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names '{}')",
        place.names.slot, place.names.publication
    );
    let (reader, writer) = place.connect().await.start_replication(&start).await.unwrap();
    let error = place.prepare(Some(&state)).await.unwrap_err();
    says(&error, Kind::Busy, "is used by another");
    assert!(error.is_retryable() && error.hint_text().unwrap().contains("pg_terminate_backend("), "{error}");
    assert!(troubles(&place).await.contains("is used by another"));
    drop((reader, writer));
}

#[tokio::test]
async fn a_user_needs_the_right_to_replicate() {
    let place = place().await.user(false).await;
    let error = setup::connect(&place.config.url).await.err().unwrap();
    let alter = format!("ALTER ROLE \"{}\" REPLICATION;", place.config.url.user);
    says(&error, Kind::Refused, &alter);
    let trouble = troubles(&place).await;
    assert!(trouble.contains(&alter), "{trouble}");
}

#[tokio::test]
async fn wal_level_is_told() {
    let server = Postgres::settings().set("wal_level", "replica").start().await.unwrap();
    let place = Place::on(&server, TABLE, &["a"]).await;
    says(&place.error().await, Kind::Refused, "wal_level is \"replica\"");
    assert!(troubles(&place).await.contains("ALTER SYSTEM SET wal_level = logical"));
}

#[tokio::test]
async fn slots_and_senders_that_are_used_up_are_told() {
    let limits = Postgres::settings().set("max_replication_slots", 1).set("max_wal_senders", 1);
    let server = limits.start().await.unwrap();
    let place = Place::on(&server, TABLE, &["a"]).await;
    place.database.execute("SELECT pg_create_physical_replication_slot('full')").await.unwrap();
    let trouble = troubles(&place).await;
    assert!(trouble.contains("all 1 slots of the server are in use"), "{trouble}");
    // The server takes a moment to see that the one before is closed.
    let mut connection = loop {
        match setup::connect(&place.config.url).await {
            Err(busy) if busy.kind() == Kind::Unavailable => tokio::task::yield_now().await,
            connected => break connected.unwrap(),
        }
    };
    let error = setup::create_slot(&mut connection, "one_more", false, false).await.unwrap_err();
    says(&error, Kind::Unavailable, "max_replication_slots");
    // The connection that is open is the one sender.
    says(&setup::connect(&place.config.url).await.err().unwrap(), Kind::Unavailable, "raise max_wal_senders");
}

#[tokio::test]
async fn a_lost_slot_is_a_hole() {
    let server = Postgres::settings().set("max_slot_wal_keep_size", "1MB").set("max_wal_size", "32MB");
    let server = server.start().await.unwrap();
    let place = Place::on(&server, TABLE, &["a"]).await;
    place.prepare(None).await.unwrap();
    let state = place.slot().await;
    let status =
        format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{}'", place.names.slot);
    for _ in 0..50 {
        if place.query(&status).await == ["lost"] {
            break;
        }
        place.database.execute("SELECT pg_switch_wal(); CREATE TABLE IF NOT EXISTS filler (a int); INSERT INTO filler SELECT generate_series(1, 100)").await.unwrap();
        place.database.execute("CHECKPOINT").await.unwrap();
    }
    let error = place.prepare(Some(&state)).await.unwrap_err();
    says(&error, Kind::Hole, "is lost: the server removed log that it needed");
    let trouble = troubles(&place).await;
    assert!(trouble.contains("is lost") && trouble.contains("headwater snapshot --source"), "{trouble}");
}

#[tokio::test]
async fn an_exported_snapshot_is_what_was_there_before() {
    let place = place().await;
    place.database.execute("INSERT INTO a VALUES (1)").await.unwrap();
    let mut connection = place.connect().await;
    let created = setup::create_slot(&mut connection, &place.names.slot, true, true).await.unwrap();
    place.database.execute("INSERT INTO a VALUES (2)").await.unwrap();
    let mut reader = Connection::connect(&place.config.url, Mode::Sql).await.unwrap();
    reader.query("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    reader.query(&format!("SET TRANSACTION SNAPSHOT '{}'", created.snapshot.unwrap())).await.unwrap();
    assert_eq!(reader.query("SELECT count(*) FROM public.a").await.unwrap()[0].text(0).unwrap(), "1");
}

#[tokio::test]
async fn check_finds_what_is_odd_and_changes_nothing() {
    let sql = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE bare (a int)";
    let place = Place::new(sql, &["a", "bare", "gone"]).await;
    let trouble = troubles(&place).await;
    assert!(
        trouble.contains("Warning public.bare: only inserts are captured, because it has no primary key"),
        "{trouble}"
    );
    assert!(trouble.contains("ALTER TABLE \"public\".\"bare\" REPLICA IDENTITY FULL;"), "{trouble}");
    assert!(trouble.contains("Error table public.gone does not exist"), "{trouble}");
    assert_eq!(trouble.lines().count(), 2, "{trouble}");
    assert!(place.published().await.is_empty());
    assert!(place.query("SELECT pubname FROM pg_publication").await.is_empty());
    let user = place.user(true).await;
    let trouble = troubles(&user).await;
    assert!(trouble.contains("the publications are missing, and user"), "{trouble}");
    assert!(trouble.contains("CREATE PUBLICATION \"headwater_"), "{trouble}");
}

#[tokio::test]
async fn check_is_content_with_what_is_ready() {
    let (place, _) = ready().await;
    let findings = check(&place).await;
    assert!(findings.iter().all(|finding| finding.severity == Severity::Ok), "{findings:#?}");
    let text: Vec<&str> = findings.iter().map(|finding| finding.message.as_str()).collect();
    assert!(text.contains(&"public.a is captured"), "{text:#?}");
    let mut away = place;
    away.config.url.port = 1;
    let findings = check(&away).await;
    assert_eq!((findings.len(), findings[0].severity), (1, Severity::Error), "{findings:#?}");
}

#[tokio::test]
async fn check_warns_of_sql_ascii_and_of_impatience() {
    let server = Postgres::settings()
        .initdb("--encoding=SQL_ASCII")
        .initdb("--locale=C")
        .set("wal_sender_timeout", "2s");
    let server = server.start().await.unwrap();
    let place = Place::on(&server, TABLE, &["a"]).await;
    let trouble = troubles(&place).await;
    assert!(trouble.contains("has the encoding SQL_ASCII"), "{trouble}");
    assert!(trouble.contains("wal_sender_timeout is 2000 ms"), "{trouble}");
}
