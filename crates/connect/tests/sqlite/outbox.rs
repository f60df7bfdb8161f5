//! The outbox table, by triggers.

use std::time::{Duration, Instant};

use headwater_connect::settings::Outbox;
use headwater_connect::sqlite::outbox;
use headwater_core::ports::{LeaseAsk, OutboxStore as _};
use headwater_testkit::suites::source::describe;

use crate::tools::Shop;

/// Headwater's own layout is what is made.
#[tokio::test]
async fn an_outbox_is_made_and_its_inserts_are_captured() {
    let shop = Shop::new("create table t (id integer primary key)");
    let mut config = shop.config(&["*"]);
    config.outbox = Some(Outbox::new("outbox"));
    let mut reading = shop.read(config, None).await;
    shop.execute(
        "insert into outbox (stream, key, type, payload, created_at) values ('order', '7', 'placed', '{}', 5);
         begin; insert into t values (1);
         insert into outbox (stream, key, type, payload) values ('order', '8', 'placed', '[]');
         delete from outbox; commit;
         begin; insert into outbox (stream, type) values ('never', ''); rollback;
         update outbox set type = 'changed';",
    );
    shop.read_all(&mut reading, 1).await;
    let told: Vec<String> = reading.changes.iter().map(describe).collect();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[0].ends_with("|order|placed|7|{}|NULL|1|5|new|0|NULL|NULL|NULL"), "{}", told[0]);
    assert_eq!(told[1], "create t 1");
    assert!(told[2].contains("|order|placed|8|[]|"), "{}", told[2]);
    let id = told[2].split('|').nth(1).unwrap().to_owned();
    assert!(id.parse::<headwater_core::EventId>().is_ok(), "{id} is no id");
}

/// The widespread layout is read where the application made it, and a layout of one's own.
#[tokio::test]
async fn an_outbox_of_another_layout_is_read_and_not_made() {
    let shop = Shop::new("create table outbox (id primary key, aggregatetype, aggregateid, type, payload)");
    let mut config = shop.config(&[]);
    config.outbox = Some(Outbox::new("outbox"));
    let mut reading = shop.read(config.clone(), None).await;
    shop.execute("insert into outbox values ('e1', 'order', '7', 'placed', x'00ff'); delete from outbox");
    shop.read_all(&mut reading, 1).await;
    let told: Vec<String> = reading.changes.iter().map(describe).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("create outbox e1|order|7|placed|"), "{told:?}");
    drop(reading);
    let mut other = Outbox::new("events");
    other.columns.aggregatetype = "topic".into();
    config.outbox = Some(other);
    let error = shop.refusal(config, None).await;
    assert!(error.to_string().contains("there is no outbox \"events\""), "{error}");
    assert!(error.hint_text().unwrap().contains("make it"), "{error}");
}

/// Its rows are events: a snapshot does not repeat them, and what waits when the source first opens is sent.
#[tokio::test]
async fn events_written_before_the_first_start_are_not_lost() {
    let shop = Shop::new("create table t (id integer primary key)");
    let outbox = Outbox::new("events");
    headwater_connect::sqlite::install(&shop.path, &["t".into()], Some(&outbox)).unwrap();
    shop.execute("insert into events (stream, type) values ('order', 'a'); delete from events");
    shop.execute("insert into events (stream, type) values ('order', 'b')");
    let mut config = shop.config(&["t"]);
    config.outbox = Some(outbox);
    let mut reading = shop.read(config, None).await;
    shop.read_all(&mut reading, 1).await;
    while reading.next_within(Duration::from_millis(50), 1000).await {}
    let told: Vec<String> = reading.changes.iter().map(describe).collect();
    assert_eq!(told.iter().filter(|text| text.contains("events")).count(), 2, "{told:?}");
    assert!(told[0].contains("|order|a|") && told[1].contains("|order|b|"), "{told:?}");
}

/// What relays left, and what was written while nobody looked; not what they published.
#[tokio::test]
async fn what_no_relay_has_published_is_read_when_triggers_take_over() {
    let shop = Shop::new("");
    outbox::install(&shop.path, "outbox").unwrap();
    shop.execute(
        "insert into outbox (stream, type, state) values ('order', 'a', 'published'), ('order', 'b', 'retrying'), \
         ('order', 'c', 'waiting'), ('order', 'd', 'parked'), ('order', 'e', 'new')",
    );
    let mut config = shop.config(&[]);
    config.outbox = Some(Outbox::new("outbox"));
    let mut reading = shop.read(config, None).await;
    shop.execute("insert into outbox (stream, type) values ('order', 'f')");
    shop.read_all(&mut reading, 1).await;
    let told: Vec<String> = reading.changes.iter().map(describe).collect();
    let kinds: Vec<&str> = told.iter().map(|text| text.split('|').nth(3).unwrap()).collect();
    assert_eq!(kinds, ["b", "c", "e", "f"], "{told:?}");
}

/// What relays write down is no change of the application.
#[tokio::test]
async fn every_table_is_none_of_an_outbox() {
    let shop = Shop::new("");
    outbox::install(&shop.path, "outbox").unwrap();
    let mut reading = shop.read(shop.config(&["*"]), None).await;
    shop.execute(
        "insert into outbox (stream, type) values ('order', 'a'); update outbox_lease set epoch = 2",
    );
    shop.read_all(&mut reading, 1).await;
    assert!(reading.changes.is_empty(), "{:?}", reading.changes);
}

/// By hand, while it is read: it is made anew, and what was written before is not lost.
#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_that_is_dropped_is_made_anew() {
    let shop = Shop::new("create table t (id integer primary key)");
    let mut config = shop.config(&["t"]);
    config.outbox = Some(Outbox::new("outbox"));
    let mut reading = shop.read(config, None).await;
    shop.execute("insert into outbox (stream, type) values ('order', 'a'); drop table outbox; insert into t values (1)");
    let there = || shop.one::<i64>("select count(*) from sqlite_schema where name = 'outbox'");
    let deadline = Instant::now() + Duration::from_secs(60);
    while there() == 0 {
        assert!(Instant::now() < deadline, "it is not made");
        reading.next_within(Duration::from_millis(10), 1000).await;
    }
    shop.execute("insert into outbox (stream, type) values ('order', 'b')");
    shop.read_all(&mut reading, 1).await;
    let told: Vec<String> = reading.changes.iter().map(describe).collect();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[0].contains("|order|a|") && told[2].contains("|order|b|"), "{told:?}");
    reading.confirm().await;
    let settled = || shop.one::<i64>("select count(*) from outbox where state = 'published'");
    while settled() == 0 {
        assert!(Instant::now() < deadline, "changes are pruned and rows settled");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One at a time: a relay that was there first, and one that comes while it is read.
#[tokio::test(flavor = "multi_thread")]
async fn while_a_relay_is_at_work_nothing_is_read_by_triggers_nor_the_other_way_round() {
    let shop = Shop::new("");
    outbox::install(&shop.path, "outbox").unwrap();
    let relay = outbox::SqliteOutboxStore::new(&shop.path, "outbox");
    let ask = LeaseAsk {
        relay: "r".into(),
        ttl: Duration::from_secs(60),
        release: vec![],
        renew: true,
        leaving: false,
    };
    assert_eq!(relay.lease(&ask).await.unwrap().len(), 1);
    let mut config = shop.config(&[]);
    config.outbox = Some(Outbox::new("outbox"));
    let error = shop.refusal(config.clone(), None).await;
    assert!(error.is_retryable() && error.to_string().contains("is being emptied by a relay"), "{error}");
    relay.lease(&LeaseAsk { leaving: true, release: vec![(0, 1)], ..ask.clone() }).await.unwrap();

    let mut reading = shop.read(config, None).await;
    assert!(relay.lease(&ask).await.unwrap().is_empty(), "the source has it");
    let findings = relay.check().await.unwrap();
    assert!(findings.iter().any(|one| one.message.contains("by triggers now (log:test)")), "{findings:?}");
    shop.execute("insert into outbox (stream, type) values ('order', 'a')");
    shop.read_all(&mut reading, 1).await;
    assert_eq!(reading.changes.len(), 1, "its triggers are still there");
    drop(reading);
    let deadline = Instant::now() + Duration::from_secs(60);
    while relay.lease(&ask).await.unwrap().is_empty() {
        assert!(Instant::now() < deadline, "a source that is closed gives it back");
    }
}

/// Behind the checkpoint, and then they go.
#[tokio::test(flavor = "multi_thread")]
async fn rows_are_settled_once_their_changes_are_confirmed() {
    let shop = Shop::new("");
    let mut config = shop.config(&[]);
    config.outbox = Some(Outbox::new("outbox"));
    let mut reading = shop.read(config, None).await;
    shop.execute(
        "insert into outbox (stream, type, state, settled_at) values ('order', 'old', 'published', 5);
         insert into outbox (stream, type) values ('order', 'a'), ('order', 'b')",
    );
    shop.read_all(&mut reading, 1).await;
    let states = || -> String {
        shop.one(
            "select ifnull(group_concat(type || state, ' '), '') from (select * from outbox order by seq)",
        )
    };
    assert_eq!(states(), "oldpublished anew bnew", "nothing is confirmed");
    reading.confirm().await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while states() != "apublished bpublished" {
        assert!(Instant::now() < deadline, "{}", states());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
