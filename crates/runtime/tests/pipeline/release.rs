//! What is parked is tried again: it goes on when it can, and stays when it cannot.

use std::sync::Arc;

use headwater_core::ports::HoldsBack;
use headwater_core::{Change, Column, ColumnType, Identity, Kind, Op, Table};
use headwater_runtime::{OutboxRoute, Runtime, StreamConfig};
use headwater_testkit::faults::{Call, Fault};

use crate::common::{Running, World, all_orders, change, eventually, insert, orders, story, stream};
use crate::parking::without_note;

fn key(key: &str) -> HoldsBack {
    HoldsBack::Key(key.as_bytes().to_vec().into())
}

async fn confirmed(world: &World, at: u64) {
    eventually("all is confirmed", || {
        world.source.confirmed().is_some_and(|it| it.position.numbers()[0] == at)
    })
    .await;
}

/// Runs the streams on a source that has an outbox too.
fn run(world: &World, streams: &[(&str, StreamConfig)]) -> Running {
    let outbox = OutboxRoute {
        table: "shop.public.outbox".parse().unwrap(),
        columns: Default::default(),
        stream: "{aggregatetype}".into(),
    };
    let builder = Runtime::builder()
        .source("shop", Arc::new(world.source.clone()), [outbox])
        .bus(world.bus.clone())
        .parked(world.parked.clone());
    let with = |builder: headwater_runtime::Builder, (name, config): &(&str, StreamConfig)| {
        builder.stream(name, config.clone())
    };
    Running::start(streams.iter().fold(builder, with))
}

#[tokio::test(start_paused = true)]
async fn what_is_held_of_a_stream_that_left_the_config_stays_until_it_is_back() {
    let world = World::new(60);
    world.source.commit([without_note(1, "1"), insert(2, 2, "a")]);
    let orders = |columns: &str| stream(&format!("from = 'shop.orders'\ncolumns = {columns}"));
    let running = run(&world, &[("orders", orders("['id', 'note']"))]);
    confirmed(&world, 2).await;
    running.stop().await;
    assert_eq!(world.parked.all().len(), 2);
    let running = run(&world, &[("order", orders("['id', 'state']"))]);
    world.source.commit([insert(3, 3, "a")]);
    confirmed(&world, 3).await;
    let error = running.runtime.release("orders", &HoldsBack::Stream).await.unwrap_err();
    assert!(error.to_string().contains("nothing of stream orders comes of"), "{error}");
    running.stop().await;
    assert_eq!(world.parked.all().len(), 2);
    let running = run(&world, &[("orders", orders("['id', 'state']"))]);
    eventually("it goes on", || world.parked.all().is_empty()).await;
    running.stop().await;
    let ours = world.bus.events().into_iter().filter(|event| &*event.stream == "orders");
    assert_eq!(story(&ours.collect::<Vec<_>>()), ["1 create", "2 create"]);
}

fn unreadable(at: u64, id: &str, customer: &str) -> Change {
    change(at, Op::Create, &orders(Identity::Full), None, Some(&[id, customer, "!", "a"]))
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_another_now_stays_parked() {
    let world = World::new(61);
    world.source.commit([unreadable(1, "1", "9")]);
    let running = world.run(all_orders());
    confirmed(&world, 1).await;
    running.stop().await;
    let by_customer = stream("from = 'shop.orders'\ncolumns = ['id', 'note']\nkey = 'note'\npartitions = 4");
    let running = world.run(by_customer);
    let error = running.runtime.release("orders", &key("1")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Contract);
    assert!(
        error.to_string().contains("the key that it had comes of this change of public.orders"),
        "{error}"
    );
    running.stop().await;
    assert_eq!((world.parked.all().len(), world.count()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_a_new_condition_leaves_out_is_done_with() {
    let (world, table) = (World::new(62), orders(Identity::Full));
    // The second left key 3 for key 4 and entered the condition with it: to key 3 nothing happened.
    let moved = (["3", "9", "draft", "a"], ["4", "9", "open", "!"]);
    world
        .source
        .commit([unreadable(1, "1", "9"), change(2, Op::Update, &table, Some(&moved.0), Some(&moved.1))]);
    let config = |columns: &str, condition: &str| {
        stream(&format!("from = 'shop.orders'\ncolumns = {columns}\nwhere = '{condition}'\npartitions = 4"))
    };
    let undecided = "after.note != \"b\"";
    let running = world.run(config("'*'", undecided));
    confirmed(&world, 2).await;
    running.stop().await;
    let holds = world.parked.all().into_iter().map(|parked| parked.holds);
    assert_eq!(holds.collect::<Vec<_>>(), [key("1"), key("3"), key("4")]);
    let running = world.run(config("['id']", "after.id > 3"));
    for key in ["1", "3", "4"].map(key) {
        let released = running.runtime.release("orders", &key).await;
        assert!(released.is_ok(), "{released:?}");
    }
    running.stop().await;
    assert_eq!(world.parked.all(), []);
    assert_eq!(story(&world.bus.events()), ["4 create"]);
}

fn outbox(columns: [&str; 5]) -> Arc<Table> {
    let column = |name: &str| Column { name: name.into(), ty: ColumnType::Text, key: name == "id" };
    let columns = columns.map(column).into();
    Arc::new(Table { schema: "public".into(), name: "outbox".into(), columns, identity: Identity::Key })
}

#[tokio::test(start_paused = true)]
async fn an_outbox_that_goes_on_brings_nothing_else_of_its_table_and_holds_what_it_must() {
    let world = World::new(63);
    let broken = outbox(["id", "aggregatetype", "aggregateid", "type", "body"]);
    let row = |at, table: &Arc<Table>, values: [&str; 4]| {
        let [id, kind, key, body] = values;
        change(at, Op::Create, table, None, Some(&[id, kind, key, "A", body]))
    };
    world.source.commit([row(1, &broken, ["a", "order", "o-1", "{}"])]);
    let whole = outbox(["id", "aggregatetype", "aggregateid", "type", "payload"]);
    world.source.commit([
        row(2, &whole, ["b", "order", "o-1", "{}"]),
        row(3, &whole, ["c", "customer", "!", "{}"]),
        row(4, &whole, ["d", "order", "o-2", "{}"]),
    ]);
    let raw = stream("from = 'shop.public.outbox'\ncolumns = ['id']\npartitions = 1");
    let running = run(&world, &[("raw", raw.clone())]);
    confirmed(&world, 4).await;
    running.stop().await;
    assert_eq!((world.parked.all().len(), world.count()), (4, 4));
    // The column is back under its name: what was written while it was not must be mended by hand.
    let oldest = world.parked.all().remove(0);
    headwater_core::ports::ParkedStore::remove(&*world.parked, "shop", &oldest.stream, &[oldest.id])
        .await
        .unwrap();
    let running = run(&world, &[("raw", raw)]);
    eventually("the outbox goes on", || world.count() == 6).await;
    running.stop().await;
    let arrived = world.bus.events().into_iter().map(|event| format!("{}", event.stream));
    assert_eq!(arrived.skip(4).collect::<Vec<_>>(), ["order", "order"]);
    let held: Vec<_> = world.parked.all().into_iter().map(|one| (one.stream, one.holds)).collect();
    assert_eq!(held, [("customer".into(), HoldsBack::Stream)]);
}

/// Of each key the places that arrived, in order and each the first time.
fn places(world: &World, key: &str) -> Vec<u64> {
    let mut places = Vec::new();
    for event in world.bus.events().iter().filter(|event| event.key.as_deref() == Some(key.as_bytes())) {
        let place = event.position.numbers()[0];
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

#[tokio::test(start_paused = true)]
async fn every_start_and_every_reconnect_tries_each_key_again() {
    let world = World::new(64);
    world.bus.reject_larger_than(Some(2000));
    world.source.commit([
        insert(1, 1, &"x".repeat(5000)),
        insert(2, 2, &"x".repeat(8000)),
        insert(3, 1, "a"),
        insert(4, 2, "a"),
        unreadable(5, "1", "9"),
        insert(6, 1, "b"),
        insert(7, 3, "a"),
    ]);
    let running = world.run(all_orders());
    confirmed(&world, 7).await;
    running.stop().await;
    assert_eq!((world.parked.all().len(), world.count()), (6, 1));

    // What can go does, of each key up to the first that cannot.
    world.bus.reject_larger_than(Some(6000));
    let running = world.run(all_orders());
    world.source.commit([insert(8, 1, "c"), insert(9, 2, "b"), insert(10, 3, "b")]);
    confirmed(&world, 10).await;
    assert_eq!(["1", "2", "3"].map(|key| places(&world, key)), [vec![1, 3], vec![], vec![7, 10]]);
    assert_eq!(world.parked.all().len(), 6);

    world.bus.reject_larger_than(None);
    world.faults.inject(Call::Next, Fault::Reject(Kind::Unavailable));
    world.source.commit([insert(11, 2, "c")]);
    confirmed(&world, 11).await;
    running.stop().await;
    assert_eq!(["1", "2"].map(|key| places(&world, key)), [vec![1, 3], vec![2, 4, 9, 11]]);

    let running = world.run(stream("from = 'shop.orders'\ncolumns = ['id', 'note']\npartitions = 4"));
    world.source.commit([insert(12, 1, "d")]);
    confirmed(&world, 12).await;
    running.stop().await;
    assert_eq!(places(&world, "1"), [1, 3, 5, 6, 8, 12]);
    assert_eq!(world.parked.all(), []);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_waits_for_a_held_stream_goes_on_after_it() {
    let world = World::new(65);
    world.bus.reject_larger_than(Some(2000));
    world.source.commit([insert(1, 1, &"x".repeat(5000)), without_note(2, "1"), insert(3, 2, "a")]);
    let columns = |columns: &str| stream(&format!("from = 'shop.orders'\ncolumns = {columns}"));
    let running = world.run(columns("['id', 'note']"));
    confirmed(&world, 3).await;
    running.stop().await;
    world.bus.reject_larger_than(None);
    let running = world.run(columns("['id', 'note']"));
    world.source.commit([insert(4, 1, "a")]);
    confirmed(&world, 4).await;
    running.stop().await;
    assert_eq!((world.parked.all().len(), world.count()), (4, 0), "the stream is held still");
    let running = world.run(columns("['id', 'state']"));
    eventually("all goes on", || world.parked.all().is_empty()).await;
    running.stop().await;
    assert_eq!([places(&world, "1"), places(&world, "2")], [vec![1, 2, 4], vec![3]]);
}

#[tokio::test(start_paused = true)]
async fn without_a_key_each_goes_on_by_itself() {
    let world = World::new(66);
    world.bus.reject_larger_than(Some(2000));
    let row = |at: u64, bytes| {
        let payload = format!("{{\"note\":\"{}\"}}", "x".repeat(bytes));
        let table = outbox(["id", "aggregatetype", "aggregateid", "type", "payload"]);
        let id = at.to_string();
        change(at, Op::Create, &table, None, Some(&[&*id, "order", "NULL", "A", &*payload]))
    };
    world.source.commit([row(1, 8000), row(2, 5000), row(3, 10)]);
    let running = run(&world, &[]);
    confirmed(&world, 3).await;
    running.stop().await;
    world.bus.reject_larger_than(Some(6000));
    let running = run(&world, &[]);
    eventually("one goes on", || world.parked.all().len() == 1).await;
    running.stop().await;
    let places: Vec<u64> = world.bus.events().iter().map(|event| event.position.numbers()[0]).collect();
    assert_eq!(places, [3, 2]);
}
