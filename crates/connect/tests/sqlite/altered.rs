//! Tables that change their definition.

use headwater_connect::settings::SnapshotMode;
use headwater_connect::sqlite::removal_script;
use headwater_core::{Change, Op};
use headwater_testkit::suites::source::{Reading, describe};

use crate::tools::Shop;

fn names(change: &Change) -> Vec<&str> {
    change.table.columns.iter().map(|column| column.name.as_str()).collect()
}

/// Waits until the open source has made triggers for the definition `version` of a table.
async fn made(shop: &Shop, reading: &mut Reading, table: &str, version: i64) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let sql = format!(
        "select exists (select 1 from headwater_table where name = '{table}' and version = {version})"
    );
    while !shop.one::<bool>(&sql) {
        assert!(std::time::Instant::now() < deadline, "no definition {version} of {table}");
        reading.next_within(std::time::Duration::from_millis(5), 1000).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_column_is_captured_and_rows_written_meanwhile_are_read_again() {
    let shop =
        Shop::new("create table t (id integer primary key, a); insert into t values (1, 'one'), (2, 'two')");
    let mut reading = shop.read(shop.config(&["t"]), None).await;
    shop.read_all(&mut reading, 1).await;
    reading.confirm().await;
    let checkpoint = reading.checkpoint.clone();
    drop(reading);
    // Nobody sees to the triggers: they do not know b.
    shop.execute("alter table t add column b; update t set b = 'new' where id = 1");
    let mut reading = shop.read(shop.config(&["t"]), checkpoint.as_ref()).await;
    shop.execute("update t set b = 'newer' where id = 2");
    shop.read_all(&mut reading, 2).await;
    let told: Vec<String> = reading.changes.iter().map(describe).collect();
    assert_eq!(told, ["update t 1|one -> 1|one", "read t 1|one|new", "update t 2|two|NULL -> 2|two|newer"]);
    assert_eq!(names(&reading.changes[0]), ["id", "a"]);
    assert_eq!(names(&reading.changes[2]), ["id", "a", "b"]);
    // And while it is open.
    shop.execute("alter table t add column c");
    made(&shop, &mut reading, "t", 3).await;
    shop.execute("update t set c = 3 where id = 2");
    shop.read_all(&mut reading, 3).await;
    let last = reading.changes.last().unwrap();
    assert_eq!(describe(last), "update t 2|two|newer|NULL -> 2|two|newer|3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renamed_columns_and_tables() {
    let shop = Shop::new("create table t (id integer primary key, a)");
    let mut reading = shop.read(shop.config(&["*"]), None).await;
    shop.execute("insert into t values (1, 'x')");
    shop.execute("alter table t rename column a to b");
    shop.execute("update t set b = 'y'");
    made(&shop, &mut reading, "t", 2).await;
    shop.execute("update t set b = 'z'");
    shop.read_all(&mut reading, 1).await;
    let last = reading.changes.iter().rfind(|change| change.op == Op::Update).unwrap();
    assert_eq!((describe(last).as_str(), names(last)), ("update t 1|y -> 1|z", vec!["id", "b"]));
    shop.execute("alter table t rename to u");
    made(&shop, &mut reading, "u", 1).await;
    shop.execute("update u set b = 'u'");
    shop.read_all(&mut reading, 2).await;
    while reading.next_within(std::time::Duration::from_millis(50), 1000).await {}
    let told: Vec<String> = reading.changes.iter().map(describe).collect();
    assert!(told.contains(&"update u 1|z -> 1|u".to_owned()), "{told:?}");
    assert!(told.iter().any(|text| text.starts_with("read u 1|")), "a new table is read whole: {told:?}");
}

/// The way many tools alter a table: make another, copy, drop, rename. The triggers go with the old one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_was_made_anew_is_read_again() {
    let shop =
        Shop::new("create table t (id integer primary key, a); insert into t values (1, 'a'), (2, 'b')");
    let mut reading = shop.read(shop.config(&["t"]), None).await;
    shop.read_all(&mut reading, 1).await;
    while reading.next_within(std::time::Duration::from_millis(50), 1000).await {}
    let first = reading.changes.iter().find(|change| change.op == Op::Read).unwrap().transaction.id.clone();
    shop.execute(
        "begin; create table new_t (id integer primary key, a, b default 7);
         insert into new_t (id, a) select id, upper(a) from t; drop table t; alter table new_t rename to t; commit;
         update t set a = 'unseen' where id = 2;",
    );
    made(&shop, &mut reading, "t", 2).await;
    shop.read_all(&mut reading, 2).await;
    while reading.next_within(std::time::Duration::from_millis(50), 1000).await {}
    let reads: Vec<_> = reading
        .changes
        .iter()
        .filter(|change| change.op == Op::Read && change.transaction.id != first)
        .collect();
    let told: Vec<String> = reads.iter().map(|read| describe(read)).collect();
    assert_eq!(told, ["read t 1|A|7", "read t 2|unseen|7"]);
}

/// A setting against reading what was there before does not excuse what was missed since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_was_made_anew_is_read_whatever_the_setting() {
    let anew = "begin; create table new_t (id integer primary key, a); insert into new_t select * from t;
                drop table t; alter table new_t rename to t; commit;";
    let shop = Shop::new("create table t (id integer primary key, a); insert into t values (1, 'old')");
    let never = || {
        let mut config = shop.config(&["t"]);
        config.snapshot = SnapshotMode::Never;
        config
    };
    let mut reading = shop.read(never(), None).await;
    assert_eq!(until_quiet(&mut reading).await, [""; 0]);
    shop.execute(&format!("{anew} insert into t values (2, 'unseen')"));
    made(&shop, &mut reading, "t", 2).await;
    shop.read_all(&mut reading, 1).await;
    let told = until_quiet(&mut reading).await;
    assert!(told.ends_with(&["read t 1|old".to_owned(), "read t 2|unseen".to_owned()]), "{told:?}");
    // And while nobody is there, before and after there was a checkpoint.
    for (version, checkpoint) in [(3, None), (4, reading.checkpoint.clone())] {
        drop(reading);
        shop.execute(&format!("{anew} insert into t values ({version}, 'unseen')"));
        reading = shop.read(never(), checkpoint.as_ref()).await;
        shop.read_all(&mut reading, version).await;
        let told = until_quiet(&mut reading).await;
        assert!(told.contains(&format!("read t {version}|unseen")), "{told:?}");
    }
}

/// A crash between making triggers anew and storing a checkpoint does not forget that there was a gap.
#[tokio::test]
async fn a_gap_is_remembered_until_the_table_was_read() {
    let shop = Shop::new("create table t (id integer primary key, a)");
    let mut reading = shop.read(shop.config(&["t"]), None).await;
    shop.read_all(&mut reading, 1).await;
    while reading.next_within(std::time::Duration::from_millis(50), 1000).await {}
    let checkpoint = reading.checkpoint.clone();
    drop(reading);
    shop.execute("drop trigger headwater_insert_t; insert into t values (1, 'unseen')");
    drop(shop.read(shop.config(&["t"]), checkpoint.as_ref()).await);
    let mut reading = shop.read(shop.config(&["t"]), checkpoint.as_ref()).await;
    shop.read_all(&mut reading, 2).await;
    while reading.next_within(std::time::Duration::from_millis(50), 1000).await {}
    let told: Vec<String> = reading.changes.iter().map(describe).collect();
    assert!(told.contains(&"read t 1|unseen".to_owned()), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_table_ends_quietly_and_a_new_one_begins() {
    let shop =
        Shop::new("create table t (id integer primary key, a); create table other (id integer primary key)");
    let mut reading = shop.read(shop.config(&["t", "other"]), None).await;
    shop.execute("insert into t values (1, 'last words'); drop table t; insert into other values (1)");
    shop.read_all(&mut reading, 1).await;
    let told: Vec<String> = reading.changes.iter().map(describe).collect();
    assert_eq!(told, ["create t 1|last words", "create other 1"]);
    let checkpoint = reading.checkpoint.clone();
    drop(reading);
    let mut reading = shop.read(shop.config(&["t", "other"]), checkpoint.as_ref()).await;
    shop.execute("create table t (id integer primary key, z)");
    made(&shop, &mut reading, "t", 2).await;
    shop.execute("insert into t values (2, 'back')");
    shop.read_all(&mut reading, 2).await;
    assert!(reading.changes.iter().any(|change| describe(change) == "create t 2|back"));
}

/// Triggers made after Headwater's run before them; Headwater's are then made anew, to run first again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headwaters_triggers_stay_the_newest() {
    let shop = Shop::new("create table t (id integer primary key, a, touched)");
    let mut reading = shop.read(shop.config(&["t"]), None).await;
    shop.execute(
        "create trigger touch after update of a on T begin update t set touched = 1 where id = new.id; end",
    );
    let overtaken =
        "select max(rowid) filter (where name = 'touch') > min(rowid) filter (where name like 'headwater%_t')
                     from sqlite_schema where type = 'trigger'";
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while shop.one::<bool>(overtaken) {
        assert!(std::time::Instant::now() < deadline, "the triggers were not made anew");
        reading.next_within(std::time::Duration::from_millis(5), 1000).await;
    }
    shop.execute("insert into t values (1, 'a', 0); update t set a = 'b'");
    shop.read_all(&mut reading, 1).await;
    let told: Vec<String> = reading.changes.iter().map(describe).collect();
    assert_eq!(told, ["create t 1|a|0", "update t 1|a|0 -> 1|b|0", "update t 1|b|0 -> 1|b|1"]);
}

/// SQLite itself refuses to drop a column that a trigger names, and says which trigger. A migration begins
/// with what `headwater init --remove --tables t --print` prints.
#[tokio::test]
async fn a_column_can_be_dropped_after_its_triggers() {
    let shop = Shop::new("create table t (id integer primary key, a, b)");
    let mut reading = shop.read(shop.config(&["t"]), None).await;
    let error = shop.conn.execute("alter table t drop column b", []).unwrap_err().to_string();
    assert!(error.contains("trigger headwater_"), "{error}");
    let removal = removal_script(&shop.path, &["t".into()]).unwrap();
    shop.execute(&format!(
        "begin; {removal} alter table t drop column b; insert into t values (1, 'a'); commit"
    ));
    shop.read_all(&mut reading, 1).await;
    let told = until_quiet(&mut reading).await;
    assert!(told.contains(&"read t 1|a".to_owned()), "{told:?}");
    shop.execute("delete from t");
    shop.read_all(&mut reading, 2).await;
    assert!(reading.described().contains(&"delete t 1|a".to_owned()));
}

/// The triggers that stood did not know the index, so they did not note what REPLACE displaced by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_read_again_when_rows_may_have_been_displaced_by_a_new_unique_index() {
    let shop = Shop::new("create table t (id integer primary key, a, b)");
    let mut reading = shop.read(shop.config(&["t"]), None).await;
    shop.execute("insert into t values (1, 'x', 1), (2, 'y', 1)");
    shop.read_all(&mut reading, 1).await;
    shop.execute("begin; create unique index i on t (a); replace into t values (3, 'x', 3); commit");
    made(&shop, &mut reading, "t", 2).await;
    shop.read_all(&mut reading, 2).await;
    let told = until_quiet(&mut reading).await;
    assert!(told.ends_with(&["read t 2|y|1".to_owned(), "read t 3|x|3".to_owned()]), "{told:?}");
    // From now on they know it, and it is quiet.
    shop.execute("replace into t values (4, 'y', 4)");
    shop.read_all(&mut reading, 3).await;
    let told = until_quiet(&mut reading).await;
    assert!(told.ends_with(&["delete t 2|y|1".to_owned(), "create t 4|y|4".to_owned()]), "{told:?}");
    // While nobody is there; a check says what is known and what is not.
    let checkpoint = reading.checkpoint.clone();
    drop(reading);
    shop.execute("create unique index j on t (b); replace into t values (5, 'z', 4)");
    let findings = shop.connector(shop.config(&["t"])).check().await.unwrap().findings;
    let unknown = "which rows it displaced is not known";
    assert!(findings.iter().any(|finding| finding.message.contains(unknown)), "{findings:?}");
    let mut reading = shop.read(shop.config(&["t"]), checkpoint.as_ref()).await;
    shop.read_all(&mut reading, 4).await;
    let told = until_quiet(&mut reading).await;
    assert!(told.ends_with(&["read t 3|x|3".to_owned(), "read t 5|z|4".to_owned()]), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_nothing_was_written_under_yet_is_no_reason_to_read_again() {
    let shop = Shop::new("create table t (id integer primary key, a)");
    let mut reading = shop.read(shop.config(&["t"]), None).await;
    shop.execute("insert into t values (1, 'x'), (2, 'y')");
    shop.read_all(&mut reading, 1).await;
    let reads = |told: &[String]| told.iter().filter(|text| text.starts_with("read t")).count();
    let before = reads(&until_quiet(&mut reading).await);
    shop.execute("create unique index i on t (a)");
    made(&shop, &mut reading, "t", 2).await;
    shop.execute("replace into t values (3, 'x'); drop index i");
    made(&shop, &mut reading, "t", 3).await;
    shop.read_all(&mut reading, 2).await;
    let told = until_quiet(&mut reading).await;
    assert_eq!(reads(&told), before, "{told:?}");
    assert!(told.ends_with(&["delete t 1|x".to_owned(), "create t 3|x".to_owned()]), "{told:?}");
}

/// Everything read so far, in words, once nothing comes any more.
async fn until_quiet(reading: &mut Reading) -> Vec<String> {
    while reading.next_within(std::time::Duration::from_millis(50), 1000).await {}
    reading.described()
}
