//! The outbox table.

use headwater_connect::settings::Outbox;
use headwater_testkit::suites::source::describe;

use crate::tools::Shop;

#[tokio::test]
async fn an_outbox_is_made_and_its_inserts_are_captured() {
    let shop = Shop::new("create table t (id integer primary key)");
    let mut config = shop.config(&["*"]);
    config.outbox = Some(Outbox::new("outbox"));
    let mut reading = shop.read(config, None).await;
    shop.execute(
        "insert into outbox (id, aggregatetype, aggregateid, type, payload) values ('e1', 'order', '7', 'placed', '{}');
         begin; insert into t values (1);
         insert into outbox (aggregatetype, aggregateid, type, payload) values ('order', '8', 'placed', x'00ff');
         delete from outbox; commit;
         begin; insert into outbox (aggregatetype) values ('never'); rollback;
         update outbox set type = 'changed';",
    );
    shop.read_all(&mut reading, 1).await;
    let told: Vec<String> = reading.changes.iter().map(describe).collect();
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(told[0], "create outbox e1|order|7|placed|{}|NULL");
    assert_eq!(told[1], "create t 1");
    assert!(told[2].contains("|order|8|placed|"), "{}", told[2]);
    let id = told[2].trim_start_matches("create outbox ").split('|').next().unwrap().to_owned();
    assert!(id.parse::<headwater_core::EventId>().is_ok(), "{id} is no id");
    let columns: Vec<_> = reading.changes[0].table.columns.iter().map(|column| column.name.clone()).collect();
    assert_eq!(columns, ["id", "aggregatetype", "aggregateid", "type", "payload", "headers"]);
}

/// Its rows are events: a snapshot does not repeat them, and what waits when the source first opens is sent.
#[tokio::test]
async fn events_written_before_the_first_start_are_not_lost() {
    let shop = Shop::new("create table t (id integer primary key)");
    let outbox = Outbox::new("events");
    headwater_connect::sqlite::install(&shop.path, &["t".into()], Some(&outbox)).unwrap();
    shop.execute("insert into events (id, aggregatetype) values ('e1', 'order'); delete from events");
    let mut config = shop.config(&["t"]);
    config.outbox = Some(outbox);
    let mut reading = shop.read(config, None).await;
    shop.read_all(&mut reading, 1).await;
    while reading.next_within(std::time::Duration::from_millis(50), 1000).await {}
    let told: Vec<String> = reading.changes.iter().map(describe).collect();
    assert_eq!(told[0], "create events e1|order|NULL|NULL|NULL|NULL");
    assert_eq!(told.iter().filter(|text| text.contains("events")).count(), 1);
}
