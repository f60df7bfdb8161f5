//! Outbox rows and messages.

use headwater_connect::settings::{Outbox, SnapshotMode};
use headwater_core::Op;

use crate::capture::value;
use crate::support::Place;

const OUTBOX: &str = "CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype text,
    aggregateid text, type text, payload jsonb); CREATE TABLE t (id int PRIMARY KEY)";

async fn place(outbox: bool) -> Place {
    let mut place = Place::new(OUTBOX, &["t"]).await;
    place.config.snapshot = SnapshotMode::Never;
    place.config.outbox = outbox.then(|| Outbox::new("outbox"));
    place
}

#[tokio::test]
async fn a_row_that_is_deleted_by_the_transaction_that_wrote_it_comes_and_deletes_do_not() {
    let place = place(true).await;
    let mut capture = place.capture().await;
    let insert = |id: u32| {
        format!(
            "INSERT INTO outbox VALUES ('00000000-0000-0000-0000-00000000000{id}', 'order', '7', 'Placed', '{{\"n\": {id}}}')"
        )
    };
    let sql = format!(
        "BEGIN; INSERT INTO t VALUES (1); {}; DELETE FROM outbox; COMMIT; {}; UPDATE outbox SET type = 'x'; TRUNCATE outbox; INSERT INTO t VALUES (2)",
        insert(1),
        insert(2)
    );
    place.session().await.query(&sql).await.unwrap();
    let row = |id: u32| {
        format!("create outbox (00000000-0000-0000-0000-00000000000{id}, order, 7, Placed, {{\"n\": {id}}})")
    };
    assert_eq!(capture.take(4).await, ["create t (1)".to_owned(), row(1), row(2), "create t (2)".to_owned()]);
}

#[tokio::test]
async fn an_outbox_that_is_among_the_tables_is_captured_with_every_change() {
    let mut place = place(true).await;
    place.config.tables.push("outbox".to_owned());
    let mut capture = place.capture().await;
    let sql =
        "INSERT INTO outbox VALUES ('00000000-0000-0000-0000-000000000001', 'order', '7', 'Placed', '1');
        UPDATE outbox SET type = 'Paid'; DELETE FROM outbox; TRUNCATE outbox";
    place.each(sql).await;
    let changes = capture.take(4).await;
    let words: Vec<&str> = changes.iter().map(|change| change.split(' ').next().unwrap()).collect();
    assert_eq!(words, ["create", "update", "delete", "truncate"]);
}

#[tokio::test]
async fn messages_are_rows_of_the_outbox() {
    for outbox in [true, false] {
        let place = place(outbox).await;
        let mut capture = place.capture().await;
        let message = r#"{"id": "m1", "aggregatetype": "order", "aggregateid": 7, "type": "Placed", "payload": {"n": 1.50}}"#;
        let sql = format!(
            "BEGIN; SELECT pg_logical_emit_message(true, 'headwater', '{message}'); ROLLBACK;
             BEGIN; INSERT INTO t VALUES (1); SELECT pg_logical_emit_message(true, 'headwater', '{message}');
             SELECT pg_logical_emit_message(true, 'other', '{message}'); INSERT INTO t VALUES (2); COMMIT;
             SELECT pg_logical_emit_message(false, 'headwater', '{message}');
             SELECT pg_logical_emit_message(true, 'headwater', 'oops')"
        );
        place.session().await.query(&sql).await.unwrap();
        while capture.changes.len() < 4 {
            capture.batch().await.unwrap();
        }
        assert!(capture.changes.iter().all(|change| change.op == Op::Create));
        let names: Vec<_> =
            capture.changes[1].table.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["id", "aggregatetype", "aggregateid", "type", "payload", "headers", "timestamp"]);
        let table = if outbox { "outbox" } else { "messages" };
        let expected = [
            "create t (1)".to_owned(),
            format!("create {table} (m1, order, 7, Placed, {{\"n\": 1.50}}, NULL, NULL)"),
            "create t (2)".to_owned(),
            format!("create {table} (NULL, NULL, NULL, NULL, oops, NULL, NULL)"),
        ];
        assert_eq!(capture.take(4).await, expected);
    }
}

#[tokio::test]
async fn rows_that_were_waiting_in_the_outbox_come_with_the_snapshot() {
    let mut place = place(true).await;
    place.config.snapshot = SnapshotMode::Initial;
    place
        .database
        .execute("INSERT INTO outbox VALUES ('00000000-0000-0000-0000-000000000001', 'order', '7', 'Placed', '1'); INSERT INTO t VALUES (1)")
        .await
        .unwrap();
    let mut capture = place.capture().await;
    let expected = ["read outbox (00000000-0000-0000-0000-000000000001, order, 7, Placed, 1)", "read t (1)"];
    let mut changes = capture.take(2).await;
    changes.sort();
    assert_eq!(changes, expected);
}

/// Writes rows of types 1 to 8000, in that order, whose times fall, and which stand in the table in none.
async fn shuffled(place: &Place, time: &str, ty: &str) {
    place
        .each(&format!(
            "CREATE TABLE events (id uuid DEFAULT gen_random_uuid(), aggregatetype text, aggregateid text,
                type int PRIMARY KEY, payload jsonb, {time} {ty}) WITH (fillfactor = 10);
             CREATE PROCEDURE write(low int, high int) LANGUAGE sql
                AS 'INSERT INTO events SELECT gen_random_uuid(), ''order'', ''7'', n, to_jsonb(repeat(''x'', 300)),
                    (10000 - n)::text::{ty} FROM generate_series(low, high) n'"
        ))
        .await;
    let one_by_one = "DO $$ BEGIN FOR n IN 1..7990 LOOP CALL write(n, n); END LOOP; END $$";
    place.session().await.query(one_by_one).await.unwrap();
    for n in 7991..=8000 {
        place.each(&format!("CALL write({n}, {n})")).await;
    }
    place.each("CREATE INDEX shuffled ON events (md5(type::text)); CLUSTER events USING shuffled").await;
    let pieces = place.query("SELECT (pg_relation_size('events') / 8192 / 2048 + 1)::text").await;
    assert_eq!(pieces, ["2"]);
}

/// New rows go where old ones were deleted, so where they stand says nothing of their order.
#[tokio::test]
async fn rows_that_were_waiting_come_in_the_order_of_their_times_or_in_which_they_were_written() {
    let written: Vec<u32> = (1..=8000).collect();
    let timed: Vec<u32> = (1..=8000).rev().collect();
    for (time, ty, expected) in
        [("other", "int", &written), ("timestamp", "bigint", &timed), ("timestamp", "json", &written)]
    {
        let mut place = place(false).await;
        place.config.snapshot = SnapshotMode::Initial;
        place.config.outbox = Some(Outbox::new("events"));
        shuffled(&place, time, ty).await;
        let mut capture = place.capture().await;
        while capture.changes.len() < 8000 {
            capture.batch().await.unwrap();
        }
        let kind = |change: &headwater_core::Change| value(change.after.as_ref().unwrap().value(3));
        let came: Vec<u32> = capture.changes.iter().map(|change| kind(change).parse().unwrap()).collect();
        assert!(came == *expected, "{time} {ty}: {:?}", &came[..20]);
    }
}
