//! Reading whole tables: first, again, later, and when it is asked for.

use headwater_connect::postgres::State;
use headwater_connect::requests::{Requests, SnapshotRequest};
use headwater_connect::settings::SnapshotMode;
use headwater_core::Op;
use headwater_core::ports::{Connector, SourceState};

use crate::capture::{Capture, say};
use crate::support::Place;

const TABLE: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, v text)";

fn rows(table: &str, from: u32, to: u32) -> String {
    format!("INSERT INTO {table} SELECT n, repeat('x', 200) FROM generate_series({from}, {to}) n")
}

/// How often each id was read, and what came otherwise.
fn reads(capture: &Capture, table: &str) -> Vec<u32> {
    let ours = capture.changes.iter().filter(|change| change.op == Op::Read && change.table.name == table);
    let id = |change| crate::capture::value(row(change).value(0)).parse().unwrap();
    let mut ids: Vec<u32> = ours.map(id).collect();
    ids.sort_unstable();
    ids
}

fn is_read(state: &State, table: &str) -> bool {
    state.snapshots.get(table).is_some_and(|oid| *oid > 0)
}

fn row(change: &headwater_core::Change) -> &headwater_core::Row {
    change.after.as_ref().unwrap()
}

#[tokio::test]
async fn every_row_is_read_once_then_changes_follow() {
    let place = Place::new(TABLE, &["t", "u"]).await;
    place.each(&format!("{};{}", rows("t", 1, 20_000), rows("u", 1, 10))).await;
    place.each("DELETE FROM t WHERE id % 2 = 0; UPDATE t SET v = 'changed' WHERE id = 1").await;
    let mut capture = place.closed();
    assert_eq!(capture.connector.status().state, SourceState::Closed);
    capture.open().await.unwrap();
    place.each("INSERT INTO t VALUES (0, 'later')").await;
    while capture.changes.len() < 10_011 {
        capture.batch().await.unwrap();
    }
    assert_eq!(reads(&capture, "t"), (1..20_000).step_by(2).collect::<Vec<_>>());
    assert_eq!(reads(&capture, "u"), (1..=10).collect::<Vec<_>>());
    assert_eq!(say(capture.changes.last().unwrap()), "create t (0, later)");
    let status = capture.connector.status();
    assert_eq!(status.state, SourceState::Streaming);
    let told: Vec<_> = status.snapshot.iter().map(|of| (of.table.as_str(), of.rows, of.done)).collect();
    assert_eq!(told, [("public.t", 10_000, true), ("public.u", 10, true)]);
    assert_eq!(capture.state().snapshots.keys().collect::<Vec<_>>(), ["public.t", "public.u"]);
    let read = &capture.changes[0];
    assert_eq!(read.transaction.id, format!("snapshot:{}", read.transaction.log_position));
}

/// The shape that the snapshot gives a table is the one that the stream gives it.
#[tokio::test]
async fn reads_and_changes_have_the_same_shape() {
    let place = Place::new(
        "CREATE DOMAIN euros AS numeric(8,2); CREATE TYPE mood AS ENUM ('sad', 'happy');
         CREATE TYPE pair AS (a int, b euros); CREATE SCHEMA \"Odd one\";
         CREATE TABLE \"Odd one\".\"T\"\"x\" (gone int, \"Id\" bigint, price euros, m mood[], p pair, at timestamptz(3),
            twice numeric GENERATED ALWAYS AS (price * 2) STORED, PRIMARY KEY (\"Id\"));
         ALTER TABLE \"Odd one\".\"T\"\"x\" DROP gone;
         INSERT INTO \"Odd one\".\"T\"\"x\" VALUES (1, 1.5, '{sad,happy}', '(1,2.5)', '2024-05-17 10:00:00.1234+02');
         CREATE TABLE full_t (a int, b text, PRIMARY KEY (b)); ALTER TABLE full_t REPLICA IDENTITY FULL; INSERT INTO full_t VALUES (1, 'x');
         CREATE TABLE index_t (a int PRIMARY KEY, b text NOT NULL UNIQUE); ALTER TABLE index_t REPLICA IDENTITY USING INDEX index_t_b_key; INSERT INTO index_t VALUES (1, 'x');
         CREATE TABLE nothing_t (a int PRIMARY KEY); ALTER TABLE nothing_t REPLICA IDENTITY NOTHING; INSERT INTO nothing_t VALUES (1);
         CREATE TABLE bare_t (a int); INSERT INTO bare_t VALUES (1);
         CREATE TABLE late_t (a int PRIMARY KEY DEFERRABLE); INSERT INTO late_t VALUES (1)",
        &["public.*", "Odd one.T\"x"],
    )
    .await;
    let mut capture = place.capture().await;
    while capture.changes.len() < 6 {
        capture.batch().await.unwrap();
    }
    place
        .each(
            "INSERT INTO \"Odd one\".\"T\"\"x\" VALUES (2, 1.5, '{sad,happy}', '(1,2.5)', '2024-05-17 10:00:00.1234+02');
             INSERT INTO full_t VALUES (2, 'y'); INSERT INTO index_t VALUES (2, 'y'); INSERT INTO nothing_t VALUES (2);
             INSERT INTO bare_t VALUES (2); INSERT INTO late_t VALUES (2)",
        )
        .await;
    while capture.changes.len() < 12 {
        capture.batch().await.unwrap();
    }
    let (reads, creates) = capture.changes.split_at(6);
    for create in creates {
        let read = reads.iter().find(|read| read.table.name == create.table.name).unwrap();
        assert_eq!(read.table, create.table);
    }
    let odd = creates.iter().find(|create| create.table.schema == "Odd one").unwrap();
    // Generated columns are published from version 18 on.
    let twice = if place.version().await >= 18 { ", 3.00" } else { "" };
    let expected =
        format!("create T\"x (2, 1.50, {{sad,happy}}, (1,2.50), 2024-05-17 08:00:00.123+00{twice})");
    assert_eq!(say(odd), expected);
}

#[tokio::test]
async fn partitions_are_read_through_their_table() {
    let place = Place::new(
        "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (20000);
         CREATE TABLE high (v text, id int NOT NULL); ALTER TABLE t ATTACH PARTITION high FOR VALUES FROM (20000) TO (90000);
         CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child () INHERITS (parent);
         INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2)",
        &["t", "parent"],
    )
    .await;
    place.each(&rows("t", 1, 40_000)).await;
    let mut capture = place.capture().await;
    while capture.changes.len() < 40_001 {
        capture.batch().await.unwrap();
    }
    assert_eq!(reads(&capture, "t"), (1..=40_000).collect::<Vec<_>>());
    assert_eq!(reads(&capture, "parent"), [1], "a child is a table of its own");
}

#[tokio::test]
async fn columns_and_rows_that_are_not_published_are_not_read() {
    let table = "CREATE TABLE t (id int PRIMARY KEY, secret text, v text);
                 INSERT INTO t VALUES (1, 's', 'a'), (2, 's', 'b')";
    let mut place = Place::new(table, &["t"]).await;
    if place.version().await < 15 {
        return; // which publishes whole tables only
    }
    place.each("CREATE PUBLICATION part FOR TABLE t (id, v) WHERE (id > 1)").await;
    place.config.publication = Some("part".to_owned());
    let mut capture = place.capture().await;
    assert_eq!(capture.take(1).await, ["read t (2, b)"]);
    place.each("INSERT INTO t VALUES (3, 's', 'c')").await;
    assert_eq!(capture.take(1).await, ["create t (3, c)"]);
}

/// A table of several pieces: each of its rows once, and its rows stay on their pages until all are read.
#[tokio::test]
async fn a_large_table_is_read_in_pieces_and_not_rewritten_meanwhile() {
    let place = Place::new(TABLE, &["t", "u"]).await;
    place.each(&format!("{};{}", rows("t", 1, 200_000), rows("u", 1, 1))).await;
    let pages = place.query("SELECT (pg_relation_size('t') / 8192)::text").await[0].parse::<u64>().unwrap();
    assert!(pages > 2 * 2048, "{pages} pages");
    let mut capture = place.capture().await;
    capture.batch().await.unwrap();
    let rewrite = async |place: &Place| {
        place
            .session()
            .await
            .query("BEGIN; SET lock_timeout = '100ms'; LOCK TABLE t IN ACCESS EXCLUSIVE MODE; ROLLBACK")
            .await
            .is_ok()
    };
    assert!(!rewrite(&place).await, "the table is being read");
    capture.until(|state| is_read(state, "public.t")).await;
    place.wait_for("the table to be free", async |place| rewrite(place).await).await;
    capture.until(|state| is_read(state, "public.u")).await;
    assert_eq!(reads(&capture, "t"), (1..=200_000).collect::<Vec<_>>());
    assert_eq!(reads(&capture, "u"), [1]);
}

/// A rewrite is not seen by older snapshots as it should be: rows seem gone, or have moved.
#[tokio::test]
async fn a_table_that_is_rewritten_before_it_is_read_is_read_in_a_later_snapshot() {
    let tables = "CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE emptied (LIKE a INCLUDING ALL);
        CREATE TABLE packed (LIKE a INCLUDING ALL); CREATE TABLE same (LIKE a INCLUDING ALL);
        CREATE TABLE split (id int PRIMARY KEY, v varchar(300)) PARTITION BY RANGE (id);
        CREATE TABLE low PARTITION OF split FOR VALUES FROM (-9) TO (50);
        CREATE TABLE high PARTITION OF split FOR VALUES FROM (50) TO (900);
        CREATE TABLE typed (id int PRIMARY KEY, v text)";
    let names = ["a", "emptied", "packed", "same", "split", "typed"];
    let mut place = Place::new(tables, &names).await;
    place.config.snapshot_workers = 1;
    place.each(&rows("a", 1, 50_000)).await;
    for name in &names[1..] {
        place.each(&rows(name, 1, 100)).await;
    }
    let mut capture = place.capture().await;
    capture.batch().await.unwrap();
    assert!(reads(&capture, "a").len() < 40_000, "the other tables are not read yet");
    place
        .each(
            "ALTER TABLE typed ALTER id TYPE bigint; TRUNCATE emptied; INSERT INTO emptied VALUES (7, 'x');
             DELETE FROM packed WHERE id < 50; VACUUM FULL packed; CLUSTER high USING high_pkey;
             ALTER TABLE same ALTER v SET DEFAULT 'z'; UPDATE same SET v = 'y' WHERE id = 1",
        )
        .await;
    capture.until(|state| names.iter().all(|name| is_read(state, &format!("public.{name}")))).await;
    let count = |table| reads(&capture, table).len();
    assert_eq!((count("a"), count("same"), count("typed"), count("packed")), (50_000, 100, 100, 51));
    assert_eq!(reads(&capture, "emptied"), [7]);
    assert_eq!(reads(&capture, "split"), (1..=100).collect::<Vec<_>>());
    assert_eq!(capture.connector.status().state, SourceState::Streaming);
    for name in &names[1..] {
        check(&place, &mut capture, name).await;
    }
}

/// The state of a table as the changes leave it must be the table, and no key may move backwards.
async fn check(place: &Place, capture: &mut Capture, table: &str) {
    use std::collections::BTreeMap;
    place.each(&format!("INSERT INTO {table} VALUES (-1, 'the end')")).await;
    let end = format!("create {table} (-1, the end)");
    while capture.changes.last().is_none_or(|last| say(last) != end) {
        capture.batch().await.unwrap();
    }
    let mut replayed: BTreeMap<String, String> = BTreeMap::new();
    for change in capture.changes.iter().filter(|change| change.table.name == table) {
        if let (Op::Delete, Some(before)) = (change.op, &change.before) {
            replayed.remove(&crate::capture::value(before.value(0)));
        }
        if let Some(after) = &change.after {
            replayed.insert(crate::capture::value(after.value(0)), crate::capture::value(after.value(1)));
        }
    }
    let stored =
        place.query(&format!("SELECT id || ' ' || v FROM {table} ORDER BY id::text COLLATE \"C\"")).await;
    let replayed: Vec<String> = replayed.iter().map(|(id, v)| format!("{id} {v}")).collect();
    assert_eq!(replayed, stored);
}

#[tokio::test]
async fn a_restart_in_the_middle_reads_the_unfinished_tables_again_and_no_key_moves_backwards() {
    let mut place = Place::new(TABLE, &["t", "u"]).await;
    place.config.snapshot_workers = 1;
    place.each(&format!("{};{}", rows("t", 1, 20_000), rows("u", 1, 50_000))).await;
    let mut capture = place.capture().await;
    // Until t is read, and something of u.
    while reads(&capture, "u").is_empty() || capture.state().snapshots.len() != 1 {
        capture.batch().await.unwrap();
    }
    capture.confirm().await;
    let first = capture.changes.iter().find(|change| change.table.name == "u").unwrap().transaction.clone();
    capture.source = None;
    place.wait_for("the slot to be free", async |place| !place.is_active().await).await;
    place.each("DELETE FROM u WHERE id < 100; UPDATE u SET v = 'changed' WHERE id < 200; INSERT INTO u VALUES (60000, 'new'); DELETE FROM t WHERE id < 10").await;
    capture.open().await.unwrap();
    let before = capture.changes.len();
    // The second snapshot begins when transactions of others end.
    capture.until(|state| state.snapshots.len() == 2).await;
    check(&place, &mut capture, "u").await;
    check(&place, &mut capture, "t").await;
    let again = &capture.changes[before..];
    assert!(
        again.iter().all(|change| change.op != Op::Read || change.table.name == "u"),
        "t was read already"
    );
    let second = again.iter().find(|change| change.op == Op::Read).unwrap().transaction.clone();
    assert_ne!(first.id, second.id);
    let deletes = again.iter().position(|change| change.op == Op::Delete).unwrap();
    let read = again.iter().position(|change| change.op == Op::Read).unwrap();
    assert!(deletes < read, "what happened before the second snapshot comes before it");
    assert_eq!(again.iter().filter(|change| change.op == Op::Read).count(), 50_000 - 99 + 1);
    let slots = "SELECT count(*)::text FROM pg_replication_slots WHERE temporary";
    place.wait_for("the temporary slot to go", async |place| place.query(slots).await == ["0"]).await;
}

#[tokio::test]
async fn a_snapshot_under_load_ends_in_the_tables_as_they_are() {
    let place = Place::new(TABLE, &["t"]).await;
    place.each(&rows("t", 1, 5000)).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let load = {
        let (mut session, stop) = (place.session().await, stop.clone());
        tokio::spawn(async move {
            let mut number = 0;
            while !stop.is_cancelled() {
                number += 1;
                let id = number * 37 % 6000;
                let sql = format!(
                    "DELETE FROM t WHERE id = {id}; INSERT INTO t VALUES ({id}, '{number}'); UPDATE t SET v = '{number}' WHERE id = {}; DELETE FROM t WHERE id = {}",
                    (id + 1) % 6000,
                    (id + 2) % 6000
                );
                session.query(&sql).await.unwrap();
            }
        })
    };
    let mut capture = place.capture().await;
    while capture.checkpoint.is_none() || capture.state().snapshots.is_empty() {
        capture.batch().await.unwrap();
    }
    // Again and again, while changes go on.
    for _ in 0..3 {
        let requests = Requests::new(capture.data.path(), &place.names.source);
        let request = SnapshotRequest::new(vec!["public.t".into()]);
        requests.write(&request).unwrap();
        capture
            .until(|state| state.request.as_ref() == Some(&request.id) && is_read(state, "public.t"))
            .await;
        capture.confirm().await;
        assert_eq!(requests.read().unwrap(), None);
    }
    stop.cancel();
    load.await.unwrap();
    check(&place, &mut capture, "t").await;
}

#[tokio::test]
async fn a_table_that_is_added_later_is_read_at_its_place_in_the_stream() {
    let mut place = Place::new(TABLE, &["t"]).await;
    place.each("INSERT INTO t VALUES (1, 'a'); INSERT INTO u VALUES (1, 'a'), (2, 'b')").await;
    let mut capture = place.capture().await;
    assert_eq!(capture.take(1).await, ["read t (1, a)"]);
    capture.until(|state| is_read(state, "public.t")).await;
    capture.source = None;
    place.wait_for("the slot to be free", async |place| !place.is_active().await).await;
    place.each("INSERT INTO t VALUES (2, 'b'); UPDATE u SET v = 'c' WHERE id = 1").await;
    place.config.tables.push("u".to_owned());
    capture.reopen_as(&place).await.unwrap();
    place.each("INSERT INTO u VALUES (3, 'd')").await;
    let changes = capture.take(4).await;
    assert_eq!(changes[0], "create t (2, b)");
    let mut read = changes[1..3].to_vec();
    read.sort();
    assert_eq!((read[0].as_str(), read[1].as_str()), ("read u (1, c)", "read u (2, b)"));
    assert_eq!(changes[3], "create u (3, d)");
    assert!(is_read(&capture.state(), "public.u"));
    // Taken out and put back: its changes in between are missing, so it is read again.
    place.config.tables.pop();
    capture.reopen_as(&place).await.unwrap();
    place.each("DELETE FROM u WHERE id = 2; INSERT INTO t VALUES (3, 'c')").await;
    assert_eq!(capture.take(1).await, ["create t (3, c)"]);
    place.config.tables.push("u".to_owned());
    capture.reopen_as(&place).await.unwrap();
    let mut read = capture.take(2).await;
    read.sort();
    assert_eq!(read, ["read u (1, c)", "read u (3, d)"]);
}

#[tokio::test]
async fn a_snapshot_waits_for_a_transaction_that_is_running() {
    let mut place = Place::new(TABLE, &["t"]).await;
    place.config.snapshot = SnapshotMode::Never;
    let mut capture = place.capture().await;
    let mut session = place.session().await;
    session.query("BEGIN; INSERT INTO t VALUES (1, 'running')").await.unwrap();
    let requests = Requests::new(capture.data.path(), &place.names.source);
    requests.write(&SnapshotRequest::new(Vec::new())).unwrap();
    let slots = format!(
        "SELECT count(*)::text FROM pg_replication_slots WHERE temporary AND database = '{}'",
        place.database.name()
    );
    place.wait_for("the temporary slot", async |place| place.query(&slots).await == ["1"]).await;
    session.query("INSERT INTO t VALUES (2, 'too'); COMMIT").await.unwrap();
    let changes = capture.take(4).await;
    assert_eq!(
        changes,
        ["create t (1, running)", "create t (2, too)", "read t (1, running)", "read t (2, too)"]
    );
}

#[tokio::test]
async fn never_means_never_and_always_means_at_every_start() {
    let mut place = Place::new(TABLE, &["t"]).await;
    place.each("INSERT INTO t VALUES (1, 'a')").await;
    place.config.snapshot = SnapshotMode::Never;
    let mut capture = place.capture().await;
    place.each("INSERT INTO t VALUES (2, 'b')").await;
    assert_eq!(capture.take(1).await, ["create t (2, b)"]);
    place.config.snapshot = SnapshotMode::Always;
    for _ in 0..2 {
        capture.reopen_as(&place).await.unwrap();
        assert_eq!(capture.take(2).await, ["read t (1, a)", "read t (2, b)"]);
        capture.until(|state| is_read(state, "public.t")).await;
        // Opened again in the same run: it is no start.
        capture.open().await.unwrap();
        place.each("INSERT INTO t VALUES (3, 'c'); DELETE FROM t WHERE id = 3").await;
        assert_eq!(capture.take(2).await, ["create t (3, c)", "delete t (3, absent)"]);
    }
}

#[tokio::test]
async fn rows_that_a_policy_hides_are_an_error_not_missing() {
    let place = Place::new(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2);
         ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY part ON t USING (id > 1)",
        &["t"],
    )
    .await;
    let place = place.user(true).await;
    let grant = format!(
        "GRANT SELECT ON t TO {user}; GRANT CREATE ON DATABASE {name} TO {user}; ALTER TABLE t OWNER TO {user}; ALTER TABLE t FORCE ROW LEVEL SECURITY",
        user = place.config.url.user,
        name = place.database.name()
    );
    place.database.execute(&grant).await.unwrap();
    let error = place.closed().open().await.unwrap_err();
    assert!(error.to_string().contains("row level security"), "{error}");
}
