//! Outbox rows: each is an event already.

use std::sync::Arc;

use headwater_core::ports::{HoldsBack, Parked};
use headwater_core::{Change, Column, ColumnType, Event, Identity, Op, Table, partition_of};
use headwater_runtime::{OutboxRoute, StreamConfig, TableRef};

use crate::common::{Running, World, change, eventually, stream};

fn outbox() -> Arc<Table> {
    let column = |name: &str| Column { name: name.into(), ty: ColumnType::Text, key: name == "id" };
    let columns = ["id", "aggregatetype", "aggregateid", "type", "payload"].map(column).into();
    Arc::new(Table { schema: "public".into(), name: "outbox".into(), columns, identity: Identity::Key })
}

fn add(at: u64, values: [&str; 5]) -> Change {
    change(at, Op::Create, &outbox(), None, Some(&values))
}

fn run(world: &World, template: &str, streams: &[(&str, StreamConfig)]) -> Running {
    let route = OutboxRoute {
        table: "shop.public.outbox".parse().unwrap(),
        columns: Default::default(),
        stream: template.into(),
    };
    // Messages in a log, without a table: their schema is empty, which no table's is.
    let table = TableRef { source: "shop".into(), schema: Some(String::new()), table: "messages".into() };
    let routes = [route.clone(), OutboxRoute { table, ..route }];
    let builder = headwater_runtime::Runtime::builder()
        .source("shop", Arc::new(world.source.clone()), routes)
        .bus(world.bus.clone())
        .parked(world.parked.clone());
    let with = |builder: headwater_runtime::Builder, (name, config): &(&str, StreamConfig)| {
        builder.stream(name, config.clone())
    };
    Running::start(streams.iter().fold(builder, with))
}

async fn confirmed(world: &World, at: u64) {
    eventually("all is confirmed", || {
        world.source.confirmed().is_some_and(|it| it.position.numbers()[0] == at)
    })
    .await;
}

fn payload(event: &Event) -> String {
    String::from_utf8(event.payload.clone().unwrap().to_vec()).unwrap()
}

const ID: &str = "018bcfe5-687b-7000-8000-000000000001";

#[tokio::test(start_paused = true)]
async fn rows_go_to_the_stream_of_their_type_declared_or_not() {
    let world = World::new(40);
    world.source.commit([
        add(1, [ID, "order", "o-1", "OrderPlaced", "{\"total\":5}"]),
        add(2, ["not a uuid", "customer", "c-1", "CustomerJoined", "{}"]),
        change(3, Op::Delete, &outbox(), Some(&[ID, "?", "?", "?", "?"]), None),
    ]);
    let running =
        run(&world, "{aggregatetype}.events", &[("order.events", stream("partitions = 3\nversion = 4"))]);
    confirmed(&world, 3).await;
    let status = running.runtime.status().await;
    let names: Vec<_> = status.streams.iter().map(|stream| (&*stream.name, stream.partitions)).collect();
    assert_eq!(names, [("customer.events", 8), ("order.events", 3)]);
    running.stop().await;
    let events = world.bus.events();
    assert_eq!(events.len(), 2, "the relay's own delete is no event");
    assert_eq!((&*events[0].stream, &*events[0].kind), ("order.events", "OrderPlaced"));
    assert_eq!(events[0].id.to_string(), ID);
    let versions = events.iter().map(|event| event.headers.last().unwrap().value.clone().unwrap());
    assert!(versions.eq(["4", "1"]), "the contract's version comes last: {events:?}");
    assert_eq!(events[0].key.as_deref(), Some(&b"o-1"[..]));
    assert_eq!(events[0].partition, Some(partition_of(b"o-1", 3)));
    assert!(payload(&events[0]).contains("\"total\":5"), "{}", payload(&events[0]));
    assert_eq!((&*events[1].stream, &*events[1].kind), ("customer.events", "CustomerJoined"));
}

#[tokio::test(start_paused = true)]
async fn an_id_that_is_no_uuid_is_stable() {
    let ids = async |seed| {
        let world = World::new(seed);
        world
            .source
            .commit([add(1, ["a", "order", "o-1", "A", "{}"]), add(2, ["b", "order", "o-1", "A", "{}"])]);
        let running = run(&world, "{aggregatetype}", &[]);
        confirmed(&world, 2).await;
        running.stop().await;
        world.bus.events().iter().map(|event| event.id).collect::<Vec<_>>()
    };
    let (first, again) = (ids(41).await, ids(42).await);
    assert_eq!(first, again);
    assert_ne!(first[0], first[1]);
}

#[tokio::test(start_paused = true)]
async fn a_row_for_an_impossible_stream_is_parked_by_its_key() {
    let world = World::new(43);
    world.source.commit([add(1, [ID, "or der", "o-1", "A", "{}"]), add(2, ["y", "order", "o-1", "A", "{}"])]);
    let running = run(&world, "{aggregatetype}", &[]);
    confirmed(&world, 2).await;
    running.stop().await;
    assert_eq!(parked(&world), ["or der/o-1"]);
    assert_eq!(arrived(&world), ["2 order/o-1"]);
}

/// Stream and order key of all that is parked, in order.
fn parked(world: &World) -> Vec<String> {
    let one = |parked: Parked| {
        let holds = match parked.holds {
            HoldsBack::Stream => "all".to_owned(),
            HoldsBack::Key(key) => String::from_utf8_lossy(&key).into_owned(),
            HoldsBack::Nothing => "nothing".to_owned(),
        };
        format!("{}/{holds}", parked.stream)
    };
    world.parked.all().into_iter().map(one).collect()
}

/// Place, stream and key of all events, in order.
fn arrived(world: &World) -> Vec<String> {
    let one = |event: Event| {
        let key = String::from_utf8(event.key.unwrap_or_default().to_vec()).unwrap();
        format!("{} {}/{key}", event.position.numbers()[0], event.stream)
    };
    world.bus.events().into_iter().map(one).collect()
}

#[tokio::test(start_paused = true)]
async fn nothing_overtakes_a_row_that_cannot_be_read() {
    let mut table = (*outbox()).clone();
    table.columns.push(Column { name: "headers".into(), ty: ColumnType::Jsonb, key: false });
    let table = Arc::new(table);
    let row = |at, values: [&str; 6]| change(at, Op::Create, &table, None, Some(&values));
    let world = World::new(46);
    world.source.commit([
        row(1, ["a", "order", "o-1", "A", "{}", "{}"]),
        row(2, ["b", "order", "o-1", "A", "{}", "no object"]),
        row(3, ["c", "order", "o-1", "A", "{}", "{}"]),
        row(4, ["d", "order", "o-2", "A", "!", "{}"]),
        row(5, ["e", "order", "o-2", "A", "{}", "{}"]),
        row(6, ["f", "order", "o-3", "A", "{}", "{}"]),
        row(7, ["g", "customer", "!", "A", "{}", "{}"]),
        row(8, ["h", "customer", "c-1", "A", "{}", "{}"]),
        row(9, ["i", "order", "o-3", "A", "{}", "{}"]),
        row(10, ["j", "NULL", "o-3", "A", "{}", "{}"]),
        row(11, ["k", "order", "o-3", "A", "{}", "{}"]),
    ]);
    let running = run(&world, "{aggregatetype}", &[]);
    confirmed(&world, 11).await;
    running.stop().await;
    assert_eq!(arrived(&world), ["1 order/o-1", "6 order/o-3", "9 order/o-3"]);
    // Its key waits; where that cannot be read its stream, and where that cannot be read the outbox.
    let (held, all) = ("customer/all", "shop.public.outbox/all");
    assert_eq!(parked(&world), ["order/o-1", "order/o-1", "order/o-2", "order/o-2", held, held, all, all]);
}

#[tokio::test(start_paused = true)]
async fn an_outbox_without_its_columns_holds_back_all_that_follows() {
    let world = World::new(44);
    let mut broken = (*outbox()).clone();
    broken.columns[4].name = "body".into();
    let broken = Arc::new(broken);
    let row = |at, id| change(at, Op::Create, &broken, None, Some(&[id, "order", "o-1", "A", "{}"]));
    world.source.commit([
        add(1, ["a", "order", "o-1", "A", "{}"]),
        row(2, "b"),
        add(3, ["c", "order", "o-1", "A", "{}"]),
    ]);
    let running = run(&world, "{aggregatetype}", &[]);
    confirmed(&world, 3).await;
    running.stop().await;
    assert_eq!((world.bus.events().len(), world.parked.all().len()), (1, 2), "what follows is held too");
}

#[tokio::test(start_paused = true)]
async fn a_message_in_the_log_is_an_outbox_row_without_a_table() {
    let world = World::new(45);
    let messages = Table { schema: String::new(), name: "messages".into(), ..(*outbox()).clone() };
    let row = [ID, "order", "o-1", "OrderPlaced", "{\"total\":5}"];
    world.source.commit([change(1, Op::Create, &Arc::new(messages), None, Some(&row))]);
    let running = run(&world, "{aggregatetype}", &[]);
    confirmed(&world, 1).await;
    running.stop().await;
    let events = world.bus.events();
    assert_eq!((&*events[0].stream, &*events[0].kind), ("order", "OrderPlaced"));
    assert_eq!(events[0].id.to_string(), ID);
}

#[tokio::test(start_paused = true)]
async fn what_is_held_of_a_stream_that_the_bus_will_not_have_stays_until_it_will() {
    let world = World::new(47);
    world.bus.set_partitions("order", 5);
    world.source.commit([add(1, ["a", "order", "o-1", "A", "{}"]), add(2, ["b", "order", "o-2", "A", "{}"])]);
    let running = run(&world, "{aggregatetype}", &[]);
    confirmed(&world, 2).await;
    running.stop().await;
    assert_eq!(parked(&world), ["order/all", "order/all"]);

    // The next start tries again, and the bus says no again.
    let running = run(&world, "{aggregatetype}", &[]);
    world.source.commit([add(3, ["c", "order", "o-1", "A", "{}"])]);
    confirmed(&world, 3).await;
    running.stop().await;
    assert_eq!((parked(&world).len(), arrived(&world).len()), (3, 0), "nothing is forgotten");

    world.bus.set_partitions("order", 8);
    let running = run(&world, "{aggregatetype}", &[]);
    eventually("all goes on", || world.count() == 3).await;
    running.stop().await;
    assert_eq!(arrived(&world), ["1 order/o-1", "2 order/o-2", "3 order/o-1"]);
    assert_eq!(world.parked.all(), []);
}

#[tokio::test(start_paused = true)]
async fn an_empty_aggregate_id_is_a_key_and_none_is_not() {
    let world = World::new(48);
    world.bus.reject_larger_than(Some(2000));
    let large = format!("{{\"note\":\"{}\"}}", "x".repeat(5000));
    world.source.commit([
        add(1, ["a", "order", "", "A", &large]),
        add(2, ["b", "order", "NULL", "A", &large]),
        add(3, ["c", "order", "", "A", "{}"]),
        add(4, ["d", "order", "NULL", "A", "{}"]),
    ]);
    let running = run(&world, "{aggregatetype}", &[]);
    confirmed(&world, 4).await;
    running.kill().await;
    let running = run(&world, "{aggregatetype}", &[]);
    world.source.commit([add(5, ["e", "order", "", "A", "{}"]), add(6, ["f", "order", "NULL", "A", "{}"])]);
    confirmed(&world, 6).await;
    running.stop().await;
    assert_eq!(parked(&world), ["order/", "order/nothing", "order/", "order/"]);
    let places: Vec<u64> = world.bus.events().iter().map(|event| event.position.numbers()[0]).collect();
    assert_eq!(places, [4, 6]);
}
