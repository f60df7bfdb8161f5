//! Keys in trouble that take what the others need: the others go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use axum::response::IntoResponse;
use bytes::Bytes;
use headwater_core::ports::{Shelf, ShelfFilter, ShelfState, Shelved};

use crate::world::{Asked, World, waiting};

/// What fills an event: 64 of them fill the room of a push.
const FILLING: usize = 128 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_fails_with_ten_times_the_room_holds_up_no_other() {
    let world = World::new(|_, asked| match asked.events()[0] {
        (ref key, 0) if key == "hot" => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        _ => StatusCode::NO_CONTENT.into_response(),
    })
    .await;
    let filling = "x".repeat(FILLING);
    for _ in 0..10 {
        world.publish(&[("hot", filling.as_str()); 64]).await;
    }
    let others = ["a", "b", "c", "d", "e", "f"];
    for _ in 0..10 {
        world.publish(&others.map(|key| (key, ""))).await;
    }
    let running = world.run("retry_max = \"5s\"").await;
    let fine = |asked: &[Asked]| {
        let mut keys: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for (key, n) in asked.iter().flat_map(Asked::events).filter(|(key, _)| key != "hot") {
            keys.entry(key).or_default().push(n);
        }
        keys
    };
    let came =
        world.until("all others have come", |asked| fine(asked).values().flatten().count() == 60).await;
    for (at, key) in (640..).zip(others) {
        assert_eq!(fine(&came)[key], (0..10).map(|n| at + 6 * n).collect::<Vec<i64>>(), "{key}");
    }
    let hot = |asked: &Asked| asked.events().into_iter().filter(|(key, _)| key == "hot").all(|(_, n)| n == 0);
    assert!(came.iter().all(hot), "something of it overtook its first");
    let parked = world.until_parked(&running, "all of it is", |parked| waiting(parked) >= 639).await;
    assert_eq!((parked.len(), parked[0].waiting), (1, 639));
    running.stop().await;
}

/// Keys whose requests hang when they are tried again: there is always room for the others beside them.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_hang_take_half_of_the_requests_at_most() {
    let hangs = |asked: &Asked| asked.events()[0].0.starts_with("hang");
    let world = World::new(move |_, asked| match hangs(asked) {
        true => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        false => StatusCode::NO_CONTENT.into_response(),
    })
    .await;
    // More keys than lanes.
    let keys: Vec<String> = (0..70).map(|n| format!("hang{n}")).collect();
    world.publish(&keys.iter().map(|key| (key.as_str(), "")).collect::<Vec<_>>()).await;
    // None of them is given up before the test is over.
    let _running = world.run("concurrency = 4\ntimeout = \"10m\"\nretry_max = \"100ms\"").await;
    // Who comes again has had an answer: no first try hangs.
    let tries = |asked: &[Asked], n: i64| asked.iter().filter(|asked| asked.events()[0].1 == n).count();
    world.until("all are tried again", |asked| (0..70).all(|n| tries(asked, n) > 1)).await;
    world.hang(hangs);
    world.until("some hang", |_| world.hung() >= 2).await;
    let keys: Vec<String> = (0..40).map(|n| format!("fine{n}")).collect();
    for round in 1..=50 {
        world.publish(&keys.iter().map(|key| (key.as_str(), "")).collect::<Vec<_>>()).await;
        let of_it = |(_, n): &(String, i64)| *n >= 70 + 40 * (round - 1);
        let fine = |asked: &[Asked]| asked.iter().flat_map(Asked::events).filter(of_it).count() >= 28;
        // Two lanes of 32 have one that hangs.
        world.until("most others have come", fine).await;
    }
    assert_eq!(world.hung(), 2, "of 4 requests");
}

/// The others wait for a request that hangs in their lane, and not for all those that are to be tried again.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_hang_in_every_lane_hold_up_the_others_for_one_request_at_the_most() {
    let hangs = |asked: &Asked| asked.events()[0].0.starts_with("hang");
    let world = World::new(move |_, asked| match hangs(asked) {
        true => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        false => StatusCode::NO_CONTENT.into_response(),
    })
    .await;
    let keys: Vec<String> = (0..200).map(|n| format!("hang{n}")).collect();
    world.publish(&keys.iter().map(|key| (key.as_str(), "")).collect::<Vec<_>>()).await;
    let _running = world.run("concurrency = 4\ntimeout = \"1s\"\nretry_max = \"100ms\"").await;
    let tries = |asked: &[Asked], n: i64| asked.iter().filter(|asked| asked.events()[0].1 == n).count();
    world.until("all are tried again", |asked| (0..200).all(|n| tries(asked, n) > 1)).await;
    world.hang(hangs);
    world.until("some hang", |_| world.hung() >= 2).await;
    let before = world.hung();
    let keys: Vec<String> = (0..40).map(|n| format!("fine{n}")).collect();
    world.publish(&keys.iter().map(|key| (key.as_str(), "")).collect::<Vec<_>>()).await;
    let all = |asked: &[Asked]| asked.iter().filter(|asked| !hangs(asked)).count() == keys.len();
    world.until("all others have come", all).await;
    // Two at a time: of 32 lanes each would have had one.
    assert!(world.hung() - before <= 12, "{} hung meanwhile", world.hung() - before);
}

/// What goes on behind an event that was dropped is tried for the first time, and was set aside all the same.
#[tokio::test(flavor = "multi_thread")]
async fn tries_again_and_what_was_set_aside_take_half_of_the_requests_together() {
    let is = |asked: &Asked, what: &str| asked.events()[0].0.starts_with(what);
    let world = World::new(move |_, asked| match () {
        () if is(asked, "again") => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        () if is(asked, "aside") => StatusCode::UNPROCESSABLE_ENTITY.into_response(),
        () => StatusCode::NO_CONTENT.into_response(),
    })
    .await;
    let keys = ["again0", "again1", "again2", "aside0", "aside1", "aside2"];
    world.publish(&keys.map(|key| (key, ""))).await;
    world.publish(&keys.map(|key| (key, ""))).await;
    let running = world.run("concurrency = 4\ntimeout = \"10m\"\nretry_max = \"100ms\"").await;
    let refused = |parked: &&Shelved| parked.state == ShelfState::Parked && parked.waiting == 1;
    let three = |parked: &[Shelved]| parked.iter().filter(refused).count() >= 3;
    world.until_parked(&running, "they are set aside", three).await;
    let tries = |asked: &[Asked], n: i64| asked.iter().filter(|asked| asked.events()[0].1 == n).count();
    world.until("all are tried again", |asked| (0..3).all(|n| tries(asked, n) > 1)).await;
    world.hang(|asked| asked.events()[0].0.starts_with('a'));
    world.until("some hang", |_| world.hung() >= 2).await;
    for parked in world.parked(&running).await.iter().filter(refused) {
        let one = ShelfFilter { id: Some(parked.id), ..ShelfFilter::default() };
        assert_eq!(Shelf::drop(&*running.shelf, &one).await.unwrap(), 1);
    }
    let (keys, began) = ((0..40).map(|n| format!("fine{n}")).collect::<Vec<_>>(), Instant::now());
    // What is set aside is looked for each second.
    for round in 0.. {
        world.publish(&keys.iter().map(|key| (key.as_str(), "")).collect::<Vec<_>>()).await;
        let of_it = |(_, n): &(String, i64)| *n >= 12 + 40 * round;
        let fine = |asked: &[Asked]| asked.iter().flat_map(Asked::events).filter(of_it).count() >= 15;
        world.until("most others have come", fine).await;
        if began.elapsed() > Duration::from_secs(3) {
            break;
        }
    }
    assert_eq!(world.hung(), 2, "of 4 requests");
}

/// The same of keys that were set aside, however many there are.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_set_aside_and_hangs_leaves_room_for_what_arrives() {
    let hangs = |asked: &Asked| asked.events()[0].0.starts_with("hang");
    let world = World::new(move |_, asked| match hangs(asked) {
        true => StatusCode::UNPROCESSABLE_ENTITY.into_response(),
        false => StatusCode::NO_CONTENT.into_response(),
    })
    .await;
    let keys: Vec<String> = (0..40).map(|n| format!("hang{n}")).collect();
    world.publish(&keys.iter().map(|key| (key.as_str(), "")).collect::<Vec<_>>()).await;
    // More keys than lanes, and two requests at a time.
    let running = world.run("concurrency = 2\ntimeout = \"2s\"").await;
    world.until_parked(&running, "they are set aside", |parked| parked.len() >= keys.len()).await;
    world.hang(hangs);
    assert_eq!(running.shelf.retry(&ShelfFilter::default()).await.unwrap(), 40);
    world.until("they are tried again", |asked| asked.len() > 41).await;
    world.publish(&[("fine", ""); 20]).await;
    let asked = world
        .until("what arrives has come", |asked| asked.iter().filter(|asked| !hangs(asked)).count() == 20)
        .await;
    assert!(asked.iter().filter(|asked| hangs(asked)).count() < 60, "it came when they had been tried");
    running.stop().await;
}

/// Nor do they keep a key from being tried again that has failed once, where there is one request for both.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_set_aside_and_hangs_leaves_room_for_tries_again() {
    let is = |asked: &Asked, what: &str| asked.events()[0].0.starts_with(what);
    let failed = AtomicBool::new(false);
    let world = World::new(move |_, asked| match () {
        () if is(asked, "hang") => StatusCode::UNPROCESSABLE_ENTITY.into_response(),
        () if is(asked, "once") && !failed.swap(true, Ordering::SeqCst) => {
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
        () => StatusCode::NO_CONTENT.into_response(),
    })
    .await;
    let keys: Vec<String> = (0..40).map(|n| format!("hang{n}")).collect();
    world.publish(&keys.iter().map(|key| (key.as_str(), "")).collect::<Vec<_>>()).await;
    let running = world.run("concurrency = 2\ntimeout = \"500ms\"\nretry_max = \"1s\"").await;
    world.until_parked(&running, "they are set aside", |parked| parked.len() >= keys.len()).await;
    world.hang(|asked| asked.events()[0].0.starts_with("hang"));
    assert_eq!(running.shelf.retry(&ShelfFilter::default()).await.unwrap(), 40);
    world.until("they are tried again", |_| world.hung() >= 2).await;
    let before = world.hung();
    world.publish(&[("once", "")]).await;
    world
        .until("it is tried again", |asked| asked.iter().filter(|asked| is(asked, "once")).count() == 2)
        .await;
    let meanwhile = world.hung() - before;
    assert!(meanwhile <= 20, "{meanwhile} hung meanwhile");
    running.stop().await;
}

/// Nor does one with much behind it that goes, with answers that take no time to speak of.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_queue_that_goes_quickly_leaves_turns_to_tries_again() {
    const BEHIND: usize = 1000;
    let is = |asked: &Asked, what: &str| asked.events()[0].0 == what;
    let refuses = Arc::new(AtomicBool::new(true));
    let (refusing, failed) = (Arc::clone(&refuses), AtomicBool::new(false));
    let world = World::new(move |_, asked| match () {
        () if refusing.load(Ordering::SeqCst) => StatusCode::UNPROCESSABLE_ENTITY.into_response(),
        () if is(asked, "once") && !failed.swap(true, Ordering::SeqCst) => {
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
        () => StatusCode::NO_CONTENT.into_response(),
    })
    .await;
    world.publish(&[("long", ""); BEHIND]).await;
    // One request for both.
    let running = world.run("concurrency = 2").await;
    let all = |parked: &[Shelved]| waiting(parked) >= BEHIND as u64 - 1;
    world.until_parked(&running, "they are set aside", all).await;
    refuses.store(false, Ordering::SeqCst);
    world.slow(Duration::from_millis(20));
    assert_eq!(running.shelf.retry(&ShelfFilter::default()).await.unwrap(), 1);
    world.until("they go", |asked| asked.len() >= 5).await;
    world.publish(&[("once", "")]).await;
    let asked = world
        .until("it is tried again", |asked| asked.iter().filter(|asked| is(asked, "once")).count() >= 2)
        .await;
    let first = asked.iter().position(|asked| is(asked, "once")).unwrap();
    let second = asked.iter().rposition(|asked| is(asked, "once")).unwrap();
    assert!(second - first <= 40, "{} others between its two tries", second - first);
    running.stop().await;
}

/// A key that was let go and has much behind it is not the only one that goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_queue_that_goes_keeps_no_other_key_from_going() {
    const BEHIND: usize = 60;
    let refuses = Arc::new(AtomicBool::new(true));
    let refusing = Arc::clone(&refuses);
    let world = World::new(move |_, _| match refusing.load(Ordering::SeqCst) {
        true => StatusCode::UNPROCESSABLE_ENTITY.into_response(),
        false => StatusCode::NO_CONTENT.into_response(),
    })
    .await;
    world.publish(&[("long", "")]).await;
    world.publish(&[("short", "")]).await;
    world.publish(&[("long", ""); BEHIND]).await;
    let running = world.run("concurrency = 2").await;
    let all = |parked: &[Shelved]| waiting(parked) >= BEHIND as u64;
    world.until_parked(&running, "they are set aside", all).await;
    refuses.store(false, Ordering::SeqCst);
    world.slow(Duration::from_millis(100));
    let of = |key: &'static str| ShelfFilter {
        key: Some(Bytes::from_static(key.as_bytes())),
        ..ShelfFilter::default()
    };
    assert_eq!(running.shelf.retry(&of("long")).await.unwrap(), 1);
    world.until("the long one goes", |asked| asked.len() >= 5).await;
    assert_eq!(running.shelf.retry(&of("short")).await.unwrap(), 1);
    let asked = world.until("all have come", |asked| asked.len() >= 2 + 2 + BEHIND).await;
    running.stop().await;
    let place = asked.iter().rposition(|asked| asked.events()[0].0 == "short").unwrap();
    assert!(place < 2 + BEHIND, "it came behind the long one: {place}");
    let long: Vec<i64> =
        asked[2..].iter().flat_map(Asked::events).filter(|(key, _)| key == "long").map(|(_, n)| n).collect();
    assert!(long.is_sorted(), "{long:?}");
}
