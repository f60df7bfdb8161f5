//! Transactions that the server sends in pieces before they have ended.

use headwater_connect::settings::SnapshotMode;

use crate::capture::Capture;
use crate::support::Place;

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY)";

/// A database whose transactions above 64 kB are sent in pieces.
async fn place() -> Place {
    let mut place = Place::new(TABLES, &["t", "u"]).await;
    place.config.snapshot = SnapshotMode::Never;
    memory(&place, "64kB").await;
    place
}

async fn memory(place: &Place, size: &str) {
    let name = place.database.name();
    let sql = format!("ALTER DATABASE {name} SET logical_decoding_work_mem = '{size}'");
    place.database.execute(&sql).await.unwrap();
}

fn rows(from: u32, to: u32) -> String {
    format!("INSERT INTO t SELECT n, repeat('x', 100) FROM generate_series({from}, {to}) n")
}

/// How often the server has sent a transaction in pieces for our slot.
async fn pieces(place: &Place) -> u64 {
    let sql = format!(
        "SELECT coalesce(sum(stream_count), 0)::text FROM pg_stat_replication_slots WHERE slot_name = '{}'",
        place.names.slot
    );
    place.query(&sql).await[0].parse().unwrap()
}

fn ids(changes: &[String]) -> Vec<u32> {
    let id = |change: &String| {
        let digits = change.split('(').nth(1).unwrap();
        digits.split([',', ')']).next().unwrap().parse().unwrap()
    };
    changes.iter().map(id).collect()
}

#[tokio::test]
async fn what_came_in_pieces_is_handed_out_once_it_has_committed() {
    let place = place().await;
    let mut capture = place.capture().await;
    let mut session = place.session().await;
    session.query(&format!("BEGIN; {}", rows(1, 3000))).await.unwrap();
    place.wait_for("pieces", async |_| spilled(&capture) > 0).await;
    place.each("INSERT INTO u VALUES (7)").await;
    assert_eq!(capture.take(1).await, ["create u (7)"], "nothing of what has not committed");
    session.query("INSERT INTO u VALUES (8); COMMIT").await.unwrap();
    let mut changes = capture.take(3001).await;
    assert_eq!(changes.pop().unwrap(), "create u (8)");
    assert_eq!(ids(&changes), (1..=3000).collect::<Vec<_>>());
    place.wait_for("statistics", async |place| pieces(place).await > 0).await;
    assert_eq!(spilled(&capture), 0);
}

/// How many files of unfinished transactions there are.
fn spilled(capture: &Capture) -> usize {
    let mut folders = vec![capture.data.path().join("spill")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() { folders.push(entry.path()) } else { files += 1 }
        }
    }
    files
}

#[tokio::test]
async fn what_is_rolled_back_never_comes_whole_or_in_part() {
    let place = place().await;
    let mut capture = place.capture().await;
    let mut session = place.session().await;
    let sql = format!(
        "BEGIN; {}; SAVEPOINT a; {}; SAVEPOINT b; {}; RELEASE b; ROLLBACK TO a; {}; COMMIT",
        rows(1, 1000),
        rows(1001, 2000),
        rows(2001, 3000),
        rows(3001, 4000)
    );
    session.query(&sql).await.unwrap();
    session.query(&format!("BEGIN; {}; ROLLBACK", rows(5001, 7000))).await.unwrap();
    session.query("INSERT INTO u VALUES (1)").await.unwrap();
    let mut changes = capture.take(2001).await;
    assert_eq!(changes.pop().unwrap(), "create u (1)");
    assert_eq!(ids(&changes), (1..=1000).chain(3001..=4000).collect::<Vec<_>>());
    assert_eq!(spilled(&capture), 0);
}

#[tokio::test]
async fn a_table_that_was_first_touched_by_a_rolled_back_part_is_known() {
    let place = place().await;
    let mut capture = place.capture().await;
    let mut session = place.session().await;
    let sql = format!("BEGIN; SAVEPOINT a; {}; ROLLBACK TO a; {}; COMMIT", rows(1, 2000), rows(2001, 4000));
    session.query(&sql).await.unwrap();
    assert_eq!(ids(&capture.take(2000).await), (2001..=4000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_shape_that_changes_within_a_transaction_is_followed() {
    let place = place().await;
    let mut capture = place.capture().await;
    let mut session = place.session().await;
    let sql = format!(
        "BEGIN; {}; ALTER TABLE t ADD n int; INSERT INTO t SELECT n, 'y', n FROM generate_series(2001, 4000) n; COMMIT",
        rows(1, 2000)
    );
    session.query(&sql).await.unwrap();
    let changes = capture.take(4000).await;
    assert_eq!(changes[3999], "create t (4000, y, 4000)");
    assert_eq!(changes[0], format!("create t (1, {})", "x".repeat(100)));
}

#[tokio::test]
async fn several_at_once_come_in_the_order_of_their_commits() {
    let place = place().await;
    let mut capture = place.capture().await;
    let (mut first, mut second) = (place.session().await, place.session().await);
    for piece in 0..4 {
        let from = piece * 500;
        first
            .query(&format!("{}{}", if piece == 0 { "BEGIN; " } else { "" }, rows(from + 1, from + 500)))
            .await
            .unwrap();
        let from = 10_000 + from;
        second
            .query(&format!("{}{}", if piece == 0 { "BEGIN; " } else { "" }, rows(from + 1, from + 500)))
            .await
            .unwrap();
    }
    second.query("COMMIT").await.unwrap();
    first.query("COMMIT").await.unwrap();
    assert_eq!(ids(&capture.take(4000).await), (10_001..=12_000).chain(1..=2000).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_unfinished_transaction_does_not_hold_the_log_and_comes_again_after_a_reconnect() {
    let place = place().await;
    let mut capture = place.capture().await;
    let mut session = place.session().await;
    session.query(&format!("BEGIN; {}", rows(1, 3000))).await.unwrap();
    place.wait_for("pieces", async |_| spilled(&capture) > 0).await;
    place.each("INSERT INTO u VALUES (1)").await;
    capture.take(1).await;
    let end = place.end().await;
    capture.until(|state| state.confirmed >= end).await;
    capture.confirm().await;
    place.wait_for("the confirmation", async |place| place.confirmed().await >= end).await;
    place.end_replication().await;
    capture.open().await.unwrap();
    session.query("COMMIT").await.unwrap();
    assert_eq!(ids(&capture.take(3000).await), (1..=3000).collect::<Vec<_>>());
    assert!(capture.again.is_empty());
}

#[tokio::test]
async fn places_are_the_same_in_pieces_and_whole() {
    let place = place().await;
    let mut capture = place.capture().await;
    place.each(&rows(1, 2000)).await;
    let mut session = place.session().await;
    session.query(&format!("BEGIN; SAVEPOINT a; {}; COMMIT", rows(2001, 4000))).await.unwrap();
    let places = async |capture: &mut Capture| {
        while capture.changes.len() < 4000 {
            capture.batch().await.unwrap();
        }
        let changes = std::mem::take(&mut capture.changes);
        changes.iter().map(|change| change.position).collect::<Vec<_>>()
    };
    let before = places(&mut capture).await;
    place.wait_for("statistics", async |place| pieces(place).await > 0).await;
    // With more memory the server sends them whole.
    memory(&place, "64MB").await;
    let sent = pieces(&place).await;
    capture.checkpoint = None;
    capture.source = None;
    place.wait_for("the slot to be free", async |place| !place.is_active().await).await;
    capture.open().await.unwrap();
    assert_eq!(places(&mut capture).await, before);
    assert_eq!(pieces(&place).await, sent);
}

/// An outbox row by message, and how it arrives.
fn message(id: u32) -> (String, String) {
    let row =
        format!(r#"{{"id": "m{id}", "aggregatetype": "a", "aggregateid": 7, "type": "T", "payload": {id}}}"#);
    let sql = format!("SELECT pg_logical_emit_message(true, 'headwater', '{row}')");
    (sql, format!("create messages (m{id}, a, 7, T, {id}, NULL, NULL)"))
}

#[tokio::test]
async fn messages_come_in_their_places() {
    let place = place().await;
    let mut capture = place.capture().await;
    let (sql, said) = message(1);
    place
        .session()
        .await
        .query(&format!("BEGIN; {}; {sql}; {}; COMMIT", rows(1, 1000), rows(1001, 2000)))
        .await
        .unwrap();
    let changes = capture.take(2001).await;
    assert_eq!(changes[1000], said);
    place.wait_for("statistics", async |place| pieces(place).await > 0).await;
}

#[tokio::test]
async fn messages_of_a_part_that_is_rolled_back_never_come() {
    let place = place().await;
    let mut capture = place.capture().await;
    let mut session = place.session().await;
    let ((gone, never), (kept, said)) = (message(1), message(2));
    let sql = format!(
        "BEGIN; {}; SAVEPOINT a; {gone}; {}; ROLLBACK TO a; {kept}; {}; COMMIT",
        rows(1, 1000),
        rows(1001, 2000),
        rows(2001, 3000)
    );
    session.query(&sql).await.unwrap();
    // The server does not say which part a message stood in; it is asked for the whole.
    let error = capture.failure().await;
    assert!(error.is_retryable() && error.to_string().contains("rolled back a part"), "{error}");
    assert!(capture.changes.is_empty());
    capture.open().await.unwrap();
    for _ in 0..2 {
        let changes = capture.take(2001).await;
        assert_eq!(changes[1000], said);
        assert!(!changes.contains(&never));
        session.query("DELETE FROM t").await.unwrap();
        capture.take(2000).await;
        session.query(&sql).await.unwrap();
    }
}

#[tokio::test]
async fn messages_before_no_rollback_or_for_others_cause_no_doubt() {
    let place = place().await;
    let mut capture = place.capture().await;
    let (sql, said) = message(1);
    let sql = format!(
        "BEGIN; {}; SELECT pg_logical_emit_message(true, 'other', 'x'); SAVEPOINT a; {}; ROLLBACK TO a; {sql}; {}; COMMIT",
        rows(1, 1000),
        rows(1001, 2000),
        rows(2001, 3000)
    );
    place.session().await.query(&sql).await.unwrap();
    assert_eq!(capture.take(2001).await[1000], said);
}
