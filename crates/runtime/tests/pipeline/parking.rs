//! What is set aside, what waits behind it, and how it goes on.

use headwater_core::ports::{HoldsBack, ParkedStore};
use headwater_core::{Identity, Kind, Op};
use headwater_testkit::faults::{Call, Fault};
use headwater_testkit::memory::MemorySource;

use crate::common::{Running, World, all_orders, change, eventually, insert, orders, story, stream};

fn key(key: &str) -> HoldsBack {
    HoldsBack::Key(key.as_bytes().to_vec().into())
}

#[tokio::test(start_paused = true)]
async fn what_is_rejected_holds_back_its_key_and_nothing_else() {
    let world = World::new(2);
    world.bus.reject_larger_than(Some(2000));
    let large = "x".repeat(5000);
    world.source.commit([
        insert(1, 1, "a"),
        insert(2, 2, "a"),
        insert(3, 1, &large),
        insert(4, 1, "after"),
        insert(5, 2, "b"),
    ]);
    let running = world.run(all_orders());
    let all = |at| move |confirmed: headwater_core::Checkpoint| confirmed.position.numbers()[0] == at;
    eventually("all is confirmed", || world.source.confirmed().is_some_and(all(5))).await;
    assert_eq!(story(&world.bus.events()), ["1 create", "2 create", "2 create"]);
    let parked = world.parked.all();
    assert_eq!(parked.len(), 2);
    assert!(parked[0].reason.contains("larger than 2000"), "{}", parked[0].reason);
    assert_eq!(parked[1].reason, format!("waits behind {}", parked[0].id));

    // After a restart the key still waits.
    running.kill().await;
    let running = world.run(all_orders());
    world.source.commit([insert(6, 1, "later"), insert(7, 3, "c")]);
    eventually("all is confirmed", || world.source.confirmed().is_some_and(all(7))).await;
    assert_eq!(world.parked.all().len(), 3);
    let status = running.runtime.status().await;
    assert_eq!((status.sources[0].parked, status.streams[0].parked), (Some(3), Some(3)));

    // It still cannot go; then it can, in order, and what comes then follows.
    let error = running.runtime.release("orders", &key("1")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Contract);
    world.source.commit([insert(8, 1, "still waiting")]);
    eventually("all is confirmed", || world.source.confirmed().is_some_and(all(8))).await;
    assert_eq!(world.parked.all().len(), 4, "a release that failed lets nothing pass");
    world.bus.reject_larger_than(None);
    assert_eq!(running.runtime.release("orders", &key("1")).await.unwrap(), 4);
    world.source.commit([insert(9, 1, "last")]);
    eventually("all is confirmed", || world.source.confirmed().is_some_and(all(9))).await;
    let status = running.runtime.status().await;
    running.stop().await;
    assert_eq!(world.parked.all(), []);
    let events = world.bus.events();
    let published = (status.sources[0].events, status.streams[0].events);
    assert_eq!(
        published,
        (events.len() as u64 - 3, events.len() as u64 - 3),
        "with those that were released"
    );
    let notes: Vec<_> = events
        .iter()
        .filter(|event| event.key.as_deref() == Some(b"1"))
        .map(|event| String::from_utf8(event.payload.clone().unwrap().to_vec()).unwrap())
        .collect();
    let marks = ["\"a\"", "xxx", "\"after\"", "\"later\"", "\"still waiting\"", "\"last\""];
    assert_eq!(notes.len(), marks.len());
    for (note, mark) in notes.iter().zip(marks) {
        assert!(note.contains(mark), "{note} has {mark}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_parked_by_its_key() {
    let (world, table) = (World::new(3), orders(Identity::Key));
    world.source.commit([
        change(1, Op::Create, &table, None, Some(&["1", "9", "!", "a"])),
        change(2, Op::Create, &table, None, Some(&["2", "9", "open", "a"])),
        change(3, Op::Delete, &table, Some(&["1", "?", "?", "?"]), None),
    ]);
    let running = world.run(all_orders());
    eventually("the second arrives", || world.count() == 1).await;
    eventually("two are parked", || world.parked.all().len() == 2).await;
    running.stop().await;
    assert_eq!(story(&world.bus.events()), ["2 create"]);
    assert!(world.parked.all().iter().all(|parked| parked.holds == key("1")));
}

#[tokio::test(start_paused = true)]
async fn a_condition_that_cannot_be_decided_parks_its_key() {
    let (world, table) = (World::new(4), orders(Identity::Key));
    world.source.commit([
        change(1, Op::Update, &table, None, Some(&["1", "9", "~", "a"])),
        change(2, Op::Update, &table, None, Some(&["2", "9", "open", "a"])),
    ]);
    let config = stream("from = 'shop.orders'\ncolumns = '*'\nwhere = 'after.state == \"open\"'");
    let running = world.run(config);
    eventually("one is parked", || world.parked.all().len() == 1).await;
    eventually("the other arrives", || world.count() == 1).await;
    running.stop().await;
    let parked = world.parked.all();
    assert!(parked[0].reason.contains("column state"), "{}", parked[0].reason);
}

/// Orders without the column `note`, which the stream's contract names.
pub fn without_note(at: u64, id: &str) -> headwater_core::Change {
    let table = crate::common::table("orders", &["id", "customer", "state"], Identity::Key);
    change(at, Op::Create, &table, None, Some(&[id, "1", "open"]))
}

#[tokio::test(start_paused = true)]
async fn a_broken_contract_stops_its_stream_and_no_other_and_goes_on_in_order_when_mended() {
    let world = World::new(5);
    let both = |columns: &str| {
        let orders = stream(&format!("from = 'shop.orders'\ncolumns = {columns}\npartitions = 4"));
        Running::start(world.builder().stream("orders", orders).stream("everything", all_orders()))
    };
    world.source.commit([
        insert(1, 1, "a"),
        without_note(2, "1"),
        without_note(3, "2"),
        insert(4, 1, "back"),
    ]);
    let running = both("['id', 'note']");
    let count = |name: &str| world.bus.events().iter().filter(|event| *event.stream == *name).count();
    eventually("the other stream has all", || count("everything") == 4).await;
    eventually("three are held", || world.parked.all().len() == 3).await;
    assert_eq!(count("orders"), 1);
    let status = running.runtime.status().await;
    let stopped =
        |name: &str| status.streams.iter().find(|stream| stream.name == name).unwrap().stopped.clone();
    assert_eq!(stopped("everything"), None);
    let why = stopped("orders").unwrap();
    assert!(why.contains("note") && why.contains("hint"), "{why}");
    running.stop().await;

    // Started again with the same contract it stays stopped.
    let running = both("['id', 'note']");
    world.source.commit([insert(5, 2, "more")]);
    eventually("the new one is held too", || world.parked.all().len() == 4).await;
    assert_eq!(count("orders"), 1);
    running.kill().await;

    let running = both("['id', 'state']");
    eventually("the held ones went on", || count("orders") == 5).await;
    assert_eq!(world.parked.all(), []);
    world.source.commit([insert(6, 2, "new")]);
    eventually("and so do new ones", || count("orders") == 6).await;
    let status = running.runtime.status().await;
    assert!(status.streams.iter().all(|stream| stream.stopped.is_none()));
    running.stop().await;
    let ours = world.bus.events().into_iter().filter(|event| &*event.stream == "orders");
    let places: Vec<u64> = ours.map(|event| event.position.numbers()[0]).collect();
    assert_eq!(places, [1, 2, 3, 4, 5, 6]);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_cannot_be_read_stops_the_stream() {
    let (world, table) = (World::new(6), orders(Identity::Key));
    world.source.commit([
        insert(1, 1, "a"),
        change(2, Op::Create, &table, None, Some(&["!", "9", "open", "a"])),
        insert(3, 1, "b"),
    ]);
    let running = world.run(all_orders());
    eventually("two are held", || world.parked.all().len() == 2).await;
    assert_eq!(story(&world.bus.events()), ["1 create"]);
    let status = running.runtime.status().await;
    assert!(status.streams[0].stopped.as_ref().unwrap().contains("key cannot be read"));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_update_of_a_table_without_identity_stops_the_stream_and_says_what_to_do() {
    let (world, mut table) = (World::new(7), (*orders(Identity::Nothing)).clone());
    table.columns.iter_mut().for_each(|column| column.key = false);
    world.source.commit([change(1, Op::Update, &table.into(), None, Some(&["1", "9", "open", "a"]))]);
    let running = world.run(all_orders());
    eventually("it is held", || world.parked.all().len() == 1).await;
    running.stop().await;
    assert!(world.parked.all()[0].reason.contains("REPLICA IDENTITY FULL"));
}

#[tokio::test(start_paused = true)]
async fn a_changed_partition_count_stops_its_stream() {
    let world = World::new(8);
    world.bus.set_partitions("orders", 5);
    world.source.commit([insert(1, 1, "a")]);
    let running = world.run(all_orders());
    eventually("it is held", || world.parked.all().len() == 1).await;
    assert_eq!(world.count(), 0);
    running.stop().await;
    world.bus.set_partitions("orders", 4);
    let running = world.run(all_orders());
    eventually("it goes on", || world.count() == 1).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_parked_store_stops_confirming_until_there_is_room() {
    let (world, table) = (World::new(9), orders(Identity::Key));
    world.parked.set_budget(Some(10));
    world
        .source
        .commit([insert(1, 1, "a"), change(2, Op::Create, &table, None, Some(&["2", "9", "!", "a"]))]);
    let running = world.run(all_orders());
    eventually("the good one arrives", || world.count() == 1).await;
    let mut status = running.runtime.status().await;
    while status.sources[0].error.is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        status = running.runtime.status().await;
    }
    assert!(status.sources[0].error.as_ref().unwrap().contains("full"), "{:?}", status.sources[0].error);
    assert!(running.runtime.not_ready()[0].contains("nothing more is confirmed"));
    assert!(world.source.confirmed().is_none_or(|at| at.position.numbers()[0] < 2));
    world.parked.set_budget(None);
    eventually("all is confirmed", || {
        world.source.confirmed().is_some_and(|at| at.position.numbers()[0] == 2)
    })
    .await;
    assert_eq!(running.runtime.not_ready(), [""; 0]);
    running.stop().await;
    assert_eq!(world.count(), 1, "nothing was published twice");
}

/// A release is what makes room: it must not wait behind what waits for room.
#[tokio::test(start_paused = true)]
async fn a_release_makes_room_in_a_full_parked_store() {
    let world = World::new(11);
    world.bus.reject_larger_than(Some(2000));
    let large = "x".repeat(5000);
    world.source.commit([insert(1, 1, &large), insert(2, 2, "a")]);
    let running = world.run(all_orders());
    eventually("the first is parked", || world.parked.all().len() == 1).await;
    world.parked.set_budget(Some(6000));
    world.source.commit([insert(3, 1, "waits"), insert(4, 3, &large), insert(5, 2, "b")]);
    let mut status = running.runtime.status().await;
    while status.sources[0].error.is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        status = running.runtime.status().await;
    }
    world.source.commit([insert(6, 1, "later"), insert(7, 2, "c")]);
    // What cannot go on changes nothing.
    let release = || {
        let (runtime, of_1) = (&running.runtime, key("1"));
        let released = async move { runtime.release("orders", &of_1).await };
        async { tokio::time::timeout(std::time::Duration::from_secs(60), released).await.expect("it waits") }
    };
    let error = release().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Contract);
    world.bus.reject_larger_than(Some(6000));
    assert_eq!(release().await.unwrap(), 1);
    eventually("all is confirmed", || {
        world.source.confirmed().is_some_and(|at| at.position.numbers()[0] == 7)
    })
    .await;
    assert_eq!(running.runtime.status().await.sources[0].error, None);
    running.stop().await;
    assert_eq!(world.parked.all(), []);
    for (key, expected) in [("1", vec![1, 3, 6]), ("2", vec![2, 5, 7]), ("3", vec![4])] {
        let mut places: Vec<u64> = Vec::new();
        for event in world.bus.events().iter().filter(|event| event.key.as_deref() == Some(key.as_bytes())) {
            let place = event.position.numbers()[0];
            if !places.contains(&place) {
                places.push(place);
            }
        }
        assert_eq!(places, expected, "key {key}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_with_a_parked_change_moves_the_checkpoint_only_when_it_is_parked() {
    let (world, table) = (World::new(10), orders(Identity::Key));
    world.faults.inject(Call::Park, Fault::HoldResponse);
    world.source.commit([change(1, Op::Create, &table, None, Some(&["2", "9", "!", "a"]))]);
    let running = world.run(all_orders());
    eventually("it is being parked", || world.faults.suffered() == 1).await;
    assert_eq!(world.bus.stored("shop"), None);
    world.faults.let_go();
    eventually("then the checkpoint moves", || world.bus.stored("shop").is_some()).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_goes_on_in_part_loses_nothing() {
    let (world, table) = (World::new(11), orders(Identity::Key));
    let large = "x".repeat(5000);
    let row = |at, id: &str, state: &str| change(at, Op::Create, &table, None, Some(&[id, "9", state, "a"]));
    world.source.commit([
        without_note(1, "1"),
        row(2, "1", "open"),
        row(3, "1", &large),
        row(4, "!", "open"),
        row(5, "2", "open"),
    ]);
    // All of it is held, and no checkpoint says so: it will be read again.
    world.faults.inject(Call::Park, Fault::HoldResponse);
    let columns = |columns: &str| stream(&format!("from = 'shop.orders'\ncolumns = {columns}"));
    let running = world.run(columns("['id', 'note']"));
    eventually("all are held", || world.parked.all().len() == 5).await;
    running.kill().await;
    world.faults.stop();

    // Mended, two can go; the third is parked by its key, and the fourth holds the stream still.
    world.bus.reject_larger_than(Some(2000));
    let running = world.run(columns("['id', 'state']"));
    let done = || world.source.confirmed().is_some_and(|at| at.position.numbers()[0] == 5);
    eventually("all is confirmed", done).await;
    let places = || world.bus.events().iter().map(|event| event.position.numbers()[0]).collect::<Vec<_>>();
    assert_eq!(places(), [1, 2, 1, 2], "what was published and is read again is published again");
    assert_eq!(world.parked.all().len(), 3);
    world.bus.reject_larger_than(None);
    let error = running.runtime.release("orders", &key("1")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Contract);
    assert_eq!(world.parked.all().len(), 3, "nothing goes before the stream does: {error}");
    running.stop().await;
}

/// What the bus rejects is found after what cannot be shaped, though it may stand before it.
#[tokio::test(start_paused = true)]
async fn nothing_overtakes_what_is_rejected_before_something_that_cannot_be_shaped() {
    let (mut world, table) = (World::new(12), orders(Identity::Key));
    world.source = MemorySource::of_whole_batches("shop");
    world.bus.reject_larger_than(Some(2000));
    let bad = |at| change(at, Op::Create, &table, None, Some(&["1", "9", "!", "a"]));
    world.source.commit([
        insert(1, 2, "a"),
        insert(5, 1, &"x".repeat(5000)),
        insert(7, 1, "b"),
        bad(10),
        insert(11, 1, "c"),
    ]);
    let running = world.run(all_orders());
    eventually("all is confirmed", || {
        world.source.confirmed().is_some_and(|at| at.position.numbers()[0] == 11)
    })
    .await;
    running.stop().await;
    assert_eq!(story(&world.bus.events()), ["2 create"]);
    let waiting = world.parked.list("shop", "orders", &key("1"), usize::MAX).await.unwrap();
    let places: Vec<u64> = waiting.iter().map(|one| one.position.numbers()[0]).collect();
    assert_eq!(places, [5, 7, 10, 11]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_with_other_partitions_takes_nothing_even_of_what_comes_again() {
    let mut world = World::new(13);
    world.source = MemorySource::of_whole_batches("shop");
    world.source.commit([insert(1, 1, "a"), without_note(2, "1")]);
    // The second is held, and no checkpoint says so: both will be read again.
    world.faults.inject(Call::Park, Fault::HoldResponse);
    let columns = |columns: &str| stream(&format!("from = 'shop.orders'\ncolumns = {columns}"));
    let running = world.run(columns("['id', 'note']"));
    eventually("it is held", || world.parked.all().len() == 1).await;
    running.kill().await;
    world.faults.stop();
    world.bus.set_partitions("orders", 5);
    let running = world.run(columns("['id', 'state']"));
    eventually("both are held", || world.parked.all().len() == 2).await;
    running.stop().await;
    assert_eq!(world.count(), 1, "nothing goes where its key does not belong");
    world.bus.set_partitions("orders", 8);
    let running = world.run(columns("['id', 'state']"));
    eventually("they go on", || world.parked.all().is_empty()).await;
    running.stop().await;
    let places: Vec<u64> = world.bus.events().iter().map(|event| event.position.numbers()[0]).collect();
    assert_eq!(places, [1, 1, 2]);
}
