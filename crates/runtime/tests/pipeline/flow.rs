//! Budgets, back-pressure, confirming, retrying and stopping.

use std::time::Duration;

use headwater_core::Kind;
use headwater_runtime::Phase;
use headwater_testkit::faults::{Call, Fault};

use crate::common::{World, all_orders, eventually, insert};

fn confirmed(world: &World) -> u64 {
    world.source.confirmed().map_or(0, |at| at.position.numbers()[0])
}

#[tokio::test(start_paused = true)]
async fn nothing_is_confirmed_before_it_is_durable() {
    let world = World::new(20);
    world.bus.hold();
    world.source.commit((1..=50).map(|at| insert(at, at % 5, "a")));
    let running = world.run(all_orders());
    eventually("all is accepted", || world.source.read() == 50 && world.bus.waiting().0 > 2).await;
    assert_eq!(confirmed(&world), 0);
    world.bus.flush(1);
    eventually("the first batch is confirmed", || confirmed(&world) > 0).await;
    assert_eq!(Some(confirmed(&world)), world.bus.stored("shop").map(|at| at.position.numbers()[0]));
    world.bus.let_go();
    eventually("all is confirmed", || confirmed(&world) == 50).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn reading_pauses_above_the_budget_and_goes_on_below_it() {
    let mut world = World::new(21);
    (world.settings.in_flight_bytes, world.settings.batch_bytes) = (64 << 10, 4 << 10);
    world.bus.hold();
    let note = "x".repeat(500);
    world.source.commit((1..=2000).map(|at| insert(at, at, &note)));
    let running = world.run(all_orders());
    eventually("the budget is used up", || world.bus.waiting().1 > 32 << 10).await;
    let mut last = (0, world.source.read());
    while last.0 != last.1 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        last = (last.1, world.source.read());
    }
    assert!(last.0 < 200, "{} changes were read into 64 KiB", last.0);
    let status = running.runtime.status().await;
    assert!(status.sources[0].in_flight_bytes < 96 << 10, "{}", status.sources[0].in_flight_bytes);
    assert!(status.sources[0].lag_seconds.unwrap() > 0.0);
    world.bus.let_go();
    eventually("all is confirmed", || confirmed(&world) == 2000).await;
    assert_eq!(world.count(), 2000);
    let status = running.runtime.status().await;
    assert_eq!((status.sources[0].in_flight_bytes, status.sources[0].events), (0, 2000));
    assert_eq!(status.sources[0].lag_seconds, Some(0.0));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn small_batches_go_together_when_the_bus_is_slow() {
    let world = World::new(22);
    world.faults.inject(Call::Publish, Fault::RespondSlowly(Duration::from_secs(1)));
    world.source.commit([insert(1, 1, "a")]);
    let running = world.run(all_orders());
    eventually("the bus is busy", || world.faults.suffered() == 1).await;
    world.bus.hold();
    world.source.commit((2..=500).map(|at| insert(at, at, "a")));
    eventually("the rest is accepted", || world.bus.waiting().0 > 0).await;
    assert_eq!(world.source.read(), 500);
    assert_eq!(world.bus.waiting().0, 1, "all that waited is one batch");
    world.bus.let_go();
    eventually("all is confirmed", || confirmed(&world) == 500).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn large_batches_are_shaped_elsewhere_and_keep_their_order() {
    let mut world = World::new(23);
    world.source = headwater_testkit::memory::MemorySource::new("shop", 23, 5000);
    world.source.commit((1..=50_000).map(|at| insert(at, at % 100, "a")));
    let running = world.run(all_orders());
    eventually("all is confirmed", || confirmed(&world) == 50_000).await;
    running.stop().await;
    let places: Vec<u64> = world.bus.events().iter().map(|event| event.position.numbers()[0]).collect();
    assert_eq!(places, (1..=50_000).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_may_pass_is_retried_with_growing_waits() {
    let world = World::new(24);
    for _ in 0..12 {
        world.faults.inject(Call::Open, Fault::Reject(Kind::Unavailable));
    }
    world.source.commit([insert(1, 1, "a")]);
    let began = tokio::time::Instant::now();
    let running = world.run(all_orders());
    eventually("it is retrying", || world.faults.suffered() == 1).await;
    let status = running.runtime.status().await;
    assert_eq!(status.sources[0].phase, Phase::Retrying);
    assert!(status.sources[0].error.as_ref().unwrap().contains("Open rejected"));
    let why = running.runtime.not_ready();
    assert!(why[0].contains("source shop is retrying"), "{why:?}");
    // Twelve waits drawn from 0.1 s doubling to 30 s: some minute, and far more than twelve short ones.
    let deadline = began + Duration::from_secs(600);
    while world.count() == 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(world.count(), 1);
    assert!(began.elapsed() > Duration::from_secs(5), "{:?}", began.elapsed());
    let status = running.runtime.status().await;
    assert_eq!((status.sources[0].phase, running.runtime.not_ready()), (Phase::Streaming, vec![]));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_cannot_pass_fails_the_source_and_the_run() {
    let world = World::new(25);
    world.faults.inject(Call::Open, Fault::Reject(Kind::Hole));
    let running = world.run(all_orders());
    let runtime = running.runtime;
    assert_eq!(running.task.await.unwrap().unwrap_err().kind(), Kind::Hole);
    assert_eq!(runtime.status().await.sources[0].phase, Phase::Failed);
}

#[tokio::test(start_paused = true)]
async fn one_failed_source_leaves_the_others_running() {
    let (world, other) = (World::new(26), World::new(27));
    world.faults.inject(Call::Next, Fault::Reject(Kind::Decode));
    let second = headwater_testkit::memory::MemorySource::new("second", 1, 10);
    second.commit([insert(1, 1, "a")]);
    let config =
        crate::common::stream("from = ['shop.orders', 'second.orders']\ncolumns = '*'\npartitions = 4");
    let builder =
        world.builder().source("second", std::sync::Arc::new(second), None).stream("orders", config);
    let running = crate::common::Running::start(builder);
    eventually("the other's event arrives", || world.count() == 1).await;
    let mut status = running.runtime.status().await;
    while status.sources[0].phase != Phase::Failed {
        tokio::time::sleep(Duration::from_millis(2)).await;
        status = running.runtime.status().await;
    }
    assert_eq!(status.sources[1].phase, Phase::Streaming);
    assert_eq!(running.runtime.not_ready().len(), 1);
    drop(other);
    running.stop.cancel();
    assert_eq!(running.task.await.unwrap().unwrap_err().kind(), Kind::Decode, "the end tells of it");
}

#[tokio::test(start_paused = true)]
async fn a_stop_drains_and_confirms() {
    let world = World::new(28);
    world.bus.hold();
    world.source.commit((1..=30).map(|at| insert(at, at, "a")));
    let running = world.run(all_orders());
    eventually("all is accepted", || world.source.read() == 30).await;
    running.stop.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!running.task.is_finished(), "it waits for the bus");
    world.source.commit([insert(31, 31, "a")]);
    world.bus.let_go();
    running.task.await.unwrap().unwrap();
    assert_eq!((confirmed(&world), world.source.read()), (30, 30), "and reads no more");
    assert_eq!(world.source.closed(), 1);
    assert_eq!(running.runtime.status().await.sources[0].phase, Phase::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_ever() {
    let world = World::new(29);
    world.bus.hold();
    world.source.commit([insert(1, 1, "a")]);
    let running = world.run(all_orders());
    eventually("it is accepted", || world.bus.waiting().0 == 1).await;
    let began = tokio::time::Instant::now();
    running.stop.cancel();
    let error = running.task.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("before all that it read was confirmed"), "{error}");
    assert!(began.elapsed() >= world.settings.drain_timeout);
    assert_eq!(confirmed(&world), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_it_retries_says_whether_all_is_confirmed() {
    for (call, all) in [(Call::Open, true), (Call::Publish, false)] {
        let world = World::new(31);
        world.source.commit([insert(1, 1, "a")]);
        for _ in 0..1000 {
            world.faults.inject(call, Fault::Reject(Kind::Unavailable));
        }
        let running = world.run(all_orders());
        eventually("it is retrying", || world.faults.suffered() > 2).await;
        running.stop.cancel();
        let outcome = running.task.await.unwrap();
        assert_eq!(outcome.is_ok(), all, "{outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_published_before_is_not_published_again() {
    let world = World::new(30);
    world.faults.inject(Call::Confirm, Fault::Reject(Kind::Unavailable));
    world.source.commit([insert(1, 1, "a"), insert(2, 2, "a")]);
    let running = world.run(all_orders());
    eventually("it was opened again, and confirms", || world.source.opened() == 2 && confirmed(&world) == 2)
        .await;
    world.source.commit([insert(3, 3, "a")]);
    eventually("all is confirmed", || confirmed(&world) == 3).await;
    running.stop().await;
    assert!(world.source.read() > 3, "the source read some again");
    assert_eq!(world.count(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_source_whose_task_panics_has_failed_and_says_so() {
    let world = World::new(22);
    world.source.on_confirm(|checkpoint| assert_eq!(checkpoint.source, "another", "a defect"));
    world.source.commit([insert(1, 1, "a")]);
    let running = world.run(all_orders());
    let error = running.task.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::Internal);
    let status = running.runtime.status().await;
    assert_eq!(status.sources[0].phase, Phase::Failed);
    assert!(status.sources[0].error.as_ref().unwrap().contains("a defect"), "{status:?}");
}
