//! What each replica identity gives, and values that the server does not send.

use headwater_connect::settings::SnapshotMode;
use headwater_core::Identity;

use crate::support::Place;

async fn place(sql: &str) -> Place {
    let mut place = Place::new(sql, &["public.*"]).await;
    place.config.snapshot = SnapshotMode::Never;
    place
}

const WORK: &str =
    "INSERT INTO t VALUES (1, 'a', 'x'); UPDATE t SET v = 'b'; UPDATE t SET id = 2; DELETE FROM t";

/// The changes of [`WORK`], the identity, and the key columns.
async fn worked(sql: &str, count: usize) -> (Vec<String>, Identity, Vec<String>) {
    let place = place(sql).await;
    let mut capture = place.capture().await;
    place.each(WORK).await;
    while capture.changes.len() < count {
        capture.batch().await.unwrap();
    }
    let table = capture.changes[0].table.clone();
    let key = table.key_columns().map(|at| table.columns[at].name.clone()).collect();
    (capture.take(count).await, table.identity, key)
}

#[tokio::test]
async fn the_default_identity_gives_the_old_key_where_it_matters() {
    let (changes, identity, key) = worked("CREATE TABLE t (id int PRIMARY KEY, v text, w text)", 4).await;
    let expected = [
        "create t (1, a, x)",
        "update t (1, b, x)",
        "update t (1, absent, absent) (2, b, x)",
        "delete t (2, absent, absent)",
    ];
    assert_eq!((changes.as_slice(), identity), (&expected.map(str::to_owned)[..], Identity::Key));
    assert_eq!(key, ["id"]);
}

#[tokio::test]
async fn the_full_identity_gives_the_old_row_and_the_primary_key_is_the_key() {
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v text, w text); ALTER TABLE t REPLICA IDENTITY FULL";
    let (changes, identity, key) = worked(sql, 4).await;
    let expected = [
        "create t (1, a, x)",
        "update t (1, a, x) (1, b, x)",
        "update t (1, b, x) (2, b, x)",
        "delete t (2, b, x)",
    ];
    assert_eq!((changes.as_slice(), identity), (&expected.map(str::to_owned)[..], Identity::Full));
    assert_eq!(key, ["id"]);
}

#[tokio::test]
async fn an_index_identity_gives_its_columns_and_they_are_the_key() {
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v text, w text NOT NULL UNIQUE);
        ALTER TABLE t REPLICA IDENTITY USING INDEX t_w_key";
    let (changes, identity, key) = worked(sql, 4).await;
    // The primary key changed, but the identity did not.
    let expected =
        ["create t (1, a, x)", "update t (1, b, x)", "update t (2, b, x)", "delete t (absent, absent, x)"];
    assert_eq!((changes.as_slice(), identity), (&expected.map(str::to_owned)[..], Identity::Key));
    assert_eq!(key, ["w"]);
}

#[tokio::test]
async fn without_an_identity_there_are_inserts() {
    for (sql, key) in [
        (
            "CREATE TABLE t (id int PRIMARY KEY, v text, w text); ALTER TABLE t REPLICA IDENTITY NOTHING",
            vec!["id"],
        ),
        ("CREATE TABLE t (id int, v text, w text)", vec![]),
    ] {
        let (changes, identity, keys) = worked(sql, 1).await;
        assert_eq!((changes, identity), (vec!["create t (1, a, x)".to_owned()], Identity::Nothing));
        assert_eq!(keys, key);
    }
}

#[tokio::test]
async fn a_table_without_a_key_but_with_full_identity_has_its_old_rows() {
    let sql = "CREATE TABLE t (id int, v text, w text); ALTER TABLE t REPLICA IDENTITY FULL";
    let (changes, identity, key) = worked(sql, 4).await;
    assert_eq!(changes[3], "delete t (2, b, x)");
    assert_eq!((identity, key.len()), (Identity::Full, 0));
}

#[tokio::test]
async fn a_large_value_that_was_not_touched_is_unchanged_and_never_made_up() {
    let sql = "CREATE TABLE t (id int PRIMARY KEY, n int, large text); ALTER TABLE t ALTER large SET STORAGE EXTERNAL;
        INSERT INTO t VALUES (1, 1, repeat('x', 10000))";
    let place = place(sql).await;
    let mut capture = place.capture().await;
    place
        .each("UPDATE t SET n = 2; ALTER TABLE t REPLICA IDENTITY FULL; UPDATE t SET n = 3; DELETE FROM t")
        .await;
    let large = "x".repeat(10_000);
    let expected = [
        "update t (1, 2, unchanged)".to_owned(),
        format!("update t (1, 2, {large}) (1, 3, {large})"),
        format!("delete t (1, 3, {large})"),
    ];
    assert_eq!(capture.take(3).await, expected);
}

#[tokio::test]
async fn partitions_are_changes_of_their_table() {
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v text, w text) PARTITION BY RANGE (id);
        CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (10);
        CREATE TABLE high (w text, id int NOT NULL, v text); ALTER TABLE t ATTACH PARTITION high FOR VALUES FROM (10) TO (20)";
    let place = place(sql).await;
    let mut capture = place.capture().await;
    place.each("INSERT INTO t VALUES (1, 'a', 'x'), (11, 'b', 'y'); UPDATE t SET id = 12 WHERE id = 1; TRUNCATE t").await;
    let expected = [
        "create t (1, a, x)",
        "create t (11, b, y)",
        // A row that moves between partitions is a delete and an insert, for the server too.
        "delete t (1, absent, absent)",
        "create t (12, a, x)",
        "truncate t",
    ];
    assert_eq!(capture.take(5).await, expected);
}
