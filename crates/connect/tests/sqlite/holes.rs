//! Databases that are not what they were: noticed, said, and repaired only when asked.

use headwater_connect::requests::{Requests, SnapshotRequest};
use headwater_connect::settings::SnapshotMode;
use headwater_core::ports::Source;
use headwater_core::{Checkpoint, Error, Kind, Op};
use rusqlite::Connection;

use crate::tools::Shop;

/// A database with ten rows, a copy of it made then, and a checkpoint twenty rows later.
async fn with_copy() -> (Shop, std::path::PathBuf, Checkpoint) {
    let shop = Shop::new("create table t (id integer primary key, a)");
    let mut reading = shop.read(shop.config(&["t"]), None).await;
    for id in 0..10 {
        shop.execute(&format!("insert into t values ({id}, 'a')"));
    }
    shop.read_all(&mut reading, 1).await;
    let copy = shop.dir.path().join("copy.db");
    shop.execute(&format!("vacuum into '{}'", copy.display()));
    for id in 10..20 {
        shop.execute(&format!("insert into t values ({id}, 'a')"));
    }
    shop.read_all(&mut reading, 2).await;
    reading.confirm().await;
    let checkpoint = reading.checkpoint.clone().unwrap();
    (shop, copy, checkpoint)
}

fn put_back(shop: &mut Shop, copy: &std::path::Path) {
    shop.conn = Connection::open_in_memory().unwrap();
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", shop.path.display()));
    }
    std::fs::rename(copy, &shop.path).unwrap();
    shop.conn = Connection::open(&shop.path).unwrap();
}

#[tokio::test]
async fn an_older_copy_is_a_hole() {
    let (mut shop, copy, checkpoint) = with_copy().await;
    put_back(&mut shop, &copy);
    let error = shop.refusal(shop.config(&["t"]), Some(&checkpoint)).await;
    assert_eq!(error.kind(), Kind::Hole, "{error}");
    assert!(error.to_string().contains("headwater snapshot --source test"), "{error}");
}

#[tokio::test]
async fn an_older_copy_that_went_on_is_a_hole() {
    let (mut shop, copy, checkpoint) = with_copy().await;
    put_back(&mut shop, &copy);
    for id in 100..200 {
        shop.execute(&format!("insert into t values ({id}, 'other')"));
    }
    let error = shop.refusal(shop.config(&["t"]), Some(&checkpoint)).await;
    assert_eq!(error.kind(), Kind::Hole, "{error}");
}

#[tokio::test]
async fn another_database_is_a_hole_and_a_request_repairs_it() {
    let (_, _, checkpoint) = with_copy().await;
    let shop = Shop::new("create table t (id integer primary key, a); insert into t values (1, 'new')");
    let error = shop.refusal(shop.config(&["t"]), Some(&checkpoint)).await;
    assert_eq!(error.kind(), Kind::Hole, "{error}");
    let requests = Requests::new(shop.dir.path(), "test");
    // Every table may have a hole: to read one of them repairs nothing.
    requests.write(&SnapshotRequest::new(vec!["t".into()])).unwrap();
    let error = shop.refusal(shop.config(&["t"]), Some(&checkpoint)).await;
    assert!(error.kind() == Kind::Hole && error.to_string().contains("without --table"), "{error}");
    requests.write(&SnapshotRequest::new(Vec::new())).unwrap();
    let mut reading = shop.read(shop.config(&["t"]), Some(&checkpoint)).await;
    reading.checkpoint = None;
    while !reading.changes.iter().any(|change| change.op == Op::Read) {
        reading.next(1000).await;
    }
    assert!(reading.changes.iter().all(|change| change.position > checkpoint.position));
    assert!(requests.read().unwrap().is_some(), "done before it is durable");
    reading.confirm().await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while requests.read().unwrap().is_some() {
        assert!(std::time::Instant::now() < deadline, "the request was never done");
        reading.next_within(std::time::Duration::from_millis(5), 1000).await;
    }
}

/// `headwater snapshot` on a source that runs, for one of its tables.
#[tokio::test]
async fn a_request_reads_a_table_again() {
    let shop = Shop::new(
        "create table t (id integer primary key); create table u (id integer primary key);
                          insert into t values (1), (2); insert into u values (1)",
    );
    for snapshot in [SnapshotMode::Initial, SnapshotMode::Never] {
        let mut config = shop.config(&["t", "u"]);
        config.snapshot = snapshot;
        let mut reading = shop.read(config, None).await;
        while reading.next_within(std::time::Duration::from_millis(50), 1000).await {}
        let before = reading.changes.len();
        let request = SnapshotRequest::new(vec!["main.t".into()]);
        Requests::new(shop.dir.path(), "test").write(&request).unwrap();
        while reading.changes.len() < before + 2 {
            reading.next(1000).await;
        }
        while reading.next_within(std::time::Duration::from_millis(700), 1000).await {}
        let again = &reading.changes[before..];
        assert!(again.iter().all(|read| read.op == Op::Read && read.table.name == "t"));
        assert_eq!(again.len(), 2, "read once, though the request is still there");
    }
}

#[tokio::test]
async fn a_request_for_what_is_not_captured_disturbs_no_snapshot() {
    let shop = Shop::new(
        "create table t (id integer primary key); insert into t values (1), (2), (3);
         create table other (id integer primary key)",
    );
    let requests = Requests::new(shop.dir.path(), "test");
    let mut reading = shop.read(shop.config(&["t"]), None).await;
    while reading.changes.is_empty() {
        reading.next(1).await;
    }
    let checkpoint = reading.checkpoint.clone();
    drop(reading);
    let request = SnapshotRequest::new(vec!["nosuch.t".into(), "other".into()]);
    requests.write(&request).unwrap();
    let mut reading = shop.read(shop.config(&["t"]), checkpoint.as_ref()).await;
    shop.read_all(&mut reading, 1).await;
    while reading.next_within(std::time::Duration::from_millis(50), 1000).await {}
    assert_eq!(reading.described()[..2], ["read t 2", "read t 3"], "the snapshot goes on");
    reading.confirm().await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while requests.read().unwrap().is_some() {
        assert!(std::time::Instant::now() < deadline, "the request was never done");
        reading.next_within(std::time::Duration::from_millis(5), 1000).await;
    }
}

#[tokio::test]
async fn always_is_at_every_start() {
    let shop = Shop::new("create table t (id integer primary key); insert into t values (1), (2)");
    let mut config = shop.config(&["t"]);
    config.snapshot = SnapshotMode::Always;
    let mut checkpoint = None;
    for _ in 0..2 {
        let mut reading = shop.read(config.clone(), checkpoint.as_ref()).await;
        while reading.next_within(std::time::Duration::from_millis(50), 1000).await {}
        assert_eq!(reading.changes.len(), 2);
        checkpoint = reading.checkpoint.clone();
    }
}

/// SQLite would go on reading a file that nobody else can see any more.
#[tokio::test]
async fn a_file_that_is_replaced_while_it_is_read_is_noticed() {
    let shop = Shop::new("create table t (id integer primary key)");
    let mut source = shop.connector(shop.config(&["t"])).open(None).await.unwrap();
    while tokio::time::timeout(std::time::Duration::from_millis(50), source.next(1000)).await.is_ok() {}
    let other = shop.dir.path().join("other.db");
    Connection::open(&other).unwrap().execute_batch("create table t (id integer primary key)").unwrap();
    std::fs::rename(&other, &shop.path).unwrap();
    let patience = std::time::Duration::from_secs(20);
    let error = tokio::time::timeout(patience, source.next(1000)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(error.to_string().contains("replaced"), "{error}");
}

/// Applications that reset their own counters often delete all of them.
#[tokio::test]
async fn counters_that_were_reset_are_no_hole() {
    let (shop, _, checkpoint) = with_copy().await;
    shop.execute("delete from sqlite_sequence");
    let mut reading = shop.read(shop.config(&["t"]), Some(&checkpoint)).await;
    shop.execute("insert into t values (100, 'after'); delete from sqlite_sequence");
    shop.read_all(&mut reading, 3).await;
    assert_eq!(reading.described(), ["create t 100|after"]);
}

/// Puts a copy in place of what the file holds, as `sqlite3 shop.db '.restore copy.db'`: the file stays.
fn restore(shop: &Shop, copy: &std::path::Path) {
    let output = std::process::Command::new("sqlite3")
        .args(["-bail", "-cmd", ".timeout 10000"])
        .arg(&shop.path)
        .arg(format!(".restore '{}'", copy.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Reads until it fails, or for as long as nothing comes.
async fn failure(source: &mut dyn Source) -> Error {
    let patience = std::time::Duration::from_secs(20);
    loop {
        match tokio::time::timeout(patience, source.next(1000)).await.unwrap() {
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

/// What is changed in the copy gets ids that were read already: it would never arrive.
#[tokio::test]
async fn a_copy_that_is_restored_in_place_while_it_is_read_is_noticed() {
    let (shop, copy, checkpoint) = with_copy().await;
    let mut source = shop.connector(shop.config(&["t"])).open(Some(&checkpoint)).await.unwrap();
    restore(&shop, &copy);
    shop.execute("insert into t values (100, 'after'), (101, 'after')");
    let error = failure(source.as_mut()).await;
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(error.to_string().contains("replaced by another copy"), "{error}");
    drop(source);
    let error = shop.refusal(shop.config(&["t"]), Some(&checkpoint)).await;
    assert_eq!(error.kind(), Kind::Hole, "{error}");
}

/// The copy was made before Headwater was installed: installing anew would hide what is missing.
#[tokio::test]
async fn a_copy_without_triggers_that_is_restored_in_place_is_noticed() {
    let shop = Shop::new("create table t (id integer primary key, a)");
    let copy = shop.dir.path().join("copy.db");
    shop.execute(&format!("vacuum into '{}'", copy.display()));
    let mut reading = shop.read(shop.config(&["t"]), None).await;
    shop.read_all(&mut reading, 1).await;
    reading.confirm().await;
    let checkpoint = reading.checkpoint.clone().unwrap();
    drop(reading);
    let mut source = shop.connector(shop.config(&["t"])).open(Some(&checkpoint)).await.unwrap();
    restore(&shop, &copy);
    let error = failure(source.as_mut()).await;
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert_eq!(shop.one::<i64>("select count(*) from sqlite_schema where name like 'headwater%'"), 0);
    drop(source);
    let error = shop.refusal(shop.config(&["t"]), Some(&checkpoint)).await;
    assert_eq!(error.kind(), Kind::Hole, "{error}");
}

#[tokio::test]
async fn one_source_at_a_time() {
    let shop = Shop::new("create table t (id integer primary key)");
    let first = shop.read(shop.config(&["t"]), None).await;
    let error = shop.refusal(shop.config(&["t"]), None).await;
    assert_eq!(error.kind(), Kind::Busy, "{error}");
    drop(first);
    drop(shop.read(shop.config(&["t"]), None).await);
}

#[tokio::test]
async fn what_is_confirmed_is_pruned_and_the_application_writes_meanwhile() {
    let shop = Shop::new("create table t (id integer primary key, a)");
    let mut reading = shop.read(shop.config(&["t"]), None).await;
    shop.execute(
        "with recursive n (i) as (select 1 union all select i + 1 from n where i < 20000)
                  insert into t select i, 'a' from n",
    );
    shop.read_all(&mut reading, 1).await;
    assert_eq!(shop.one::<i64>("select count(*) from headwater_change"), 20_001);
    reading.confirm().await;
    shop.conn.busy_timeout(std::time::Duration::from_millis(500)).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    for id in 20_001.. {
        assert!(std::time::Instant::now() < deadline, "never pruned");
        // Fails when the lock is held for longer than the application waits.
        shop.execute(&format!("insert into t values ({id}, 'b')"));
        if shop.one::<i64>("select count(*) from headwater_change where id < 20001") == 0 {
            break;
        }
    }
    // The last confirmed change stays: a copy of the database is recognised by it.
    assert_eq!(shop.one::<i64>("select min(id) from headwater_change"), 20_001);
}

/// A reader that holds a transaction keeps the log from being emptied, and the file of the log grows.
#[tokio::test]
async fn nothing_is_held_while_a_batch_is_on_its_way() {
    let shop = Shop::new("create table t (id integer primary key, a)");
    shop.execute("insert into t values (1, 'read'), (2, 'read')");
    let mut reading = shop.read(shop.config(&["t"]), None).await;
    let emptied = || {
        let all = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        shop.conn.query_row("pragma wal_checkpoint(truncate)", [], all).unwrap()
    };
    shop.conn.busy_timeout(std::time::Duration::ZERO).unwrap();
    shop.execute("insert into t values (3, 'changed'), (4, 'changed')");
    for _ in 0..4 {
        // Of the snapshot, then of the changes, one at a time.
        reading.next(1).await;
        assert_eq!(emptied(), (0, 0, 0), "busy, frames in the log, frames moved");
    }
}
