//! Events that share a request, when it fails.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use axum::response::IntoResponse;
use headwater_core::ports::{ShelfFilter, Shelved};

use crate::common::PATIENCE;
use crate::world::{Asked, World};

/// Far more keys than lanes, several events each, in turns.
fn many() -> Vec<(String, &'static str)> {
    (0..400).map(|n| (format!("key{}", n % 40), "")).collect()
}

async fn publish(world: &World, events: &[(String, &str)]) {
    let events: Vec<(&str, &str)> = events.iter().map(|(key, filling)| (key.as_str(), *filling)).collect();
    world.publish(&events).await;
}

/// The numbers of each key in the order in which they were taken.
fn taken(asked: &[Asked], taken: impl Fn(&Asked) -> bool) -> BTreeMap<String, Vec<i64>> {
    let mut keys: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for (key, n) in asked.iter().filter(|asked| taken(asked)).flat_map(Asked::events) {
        keys.entry(key).or_default().push(n);
    }
    keys
}

fn has(asked: &Asked, n: i64) -> bool {
    asked.events().iter().any(|(_, found)| *found == n)
}

/// What is refused for a while comes again as it was, and not before it was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_fails_for_a_while_is_made_again_as_a_whole() {
    let world = World::new(|_, asked| match has(asked, 300) {
        true => (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "1")]).into_response(),
        false => StatusCode::NO_CONTENT.into_response(),
    })
    .await;
    // Event 300 is in a request with others, as the first answers come late.
    world.slow(Duration::from_millis(150));
    publish(&world, &many()).await;
    let running = world.run("batch = 30\nconcurrency = 8\nretry_max = \"1s\"").await;
    let thrice = |asked: &[Asked]| asked.iter().filter(|asked| has(asked, 300)).count() >= 3;
    let asked = world.until("it was tried three times", thrice).await;
    running.stop().await;
    let tries: Vec<&Asked> = asked.iter().filter(|asked| has(asked, 300)).collect();
    assert!(tries[0].events().len() > 1, "it is alone");
    for pair in tries.windows(2).take(2) {
        assert_eq!(pair[0].events(), pair[1].events());
        assert_eq!(pair[0].headers["webhook-id"], pair[1].headers["webhook-id"]);
        assert!(pair[1].when - pair[0].when >= Duration::from_secs(1), "{:?}", pair[1].when - pair[0].when);
    }
}

/// An endpoint that has one request wait for an hour, and takes others, does not have a lane wait for an hour.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_to_wait_long_while_others_are_taken_is_parted() {
    let world = World::new(|_, asked| match has(asked, 300) {
        true => (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "3600")]).into_response(),
        false => StatusCode::NO_CONTENT.into_response(),
    })
    .await;
    world.slow(Duration::from_millis(150));
    publish(&world, &many()).await;
    let running = world.run("batch = 30\nconcurrency = 2").await;
    // Behind it are two of its key.
    let all = |asked: &[Asked]| taken(asked, |asked| !has(asked, 300)).values().flatten().count() >= 397;
    let asked = world.until("the others have come", all).await;
    running.stop().await;
    assert!(asked.iter().any(|asked| has(asked, 300) && asked.events().len() > 1), "it was alone");
    assert!(taken(&asked, |asked| !has(asked, 300)).values().all(|numbers| numbers.is_sorted()));
}

/// One that is refused for good is found, and nothing else waits or loses its order.
#[tokio::test(flavor = "multi_thread")]
async fn the_event_that_is_refused_is_found_and_only_its_key_waits() {
    let world = World::new(|_, asked| match has(asked, 205) {
        true => StatusCode::UNPROCESSABLE_ENTITY.into_response(),
        false => StatusCode::NO_CONTENT.into_response(),
    })
    .await;
    world.slow(Duration::from_millis(20));
    publish(&world, &many()).await;
    let running = world.run("batch = 50\nconcurrency = 1").await;
    let fine = |asked: &Asked| !has(asked, 205);
    // Of key5, what was before 205: 5, 45, 85, 125, 165.
    world
        .until("all others have come", |asked| {
            taken(asked, fine).values().map(Vec::len).sum::<usize>() >= 395
        })
        .await;
    let four = |parked: &[Shelved]| parked.first().is_some_and(|parked| parked.waiting >= 4);
    let parked = world.until_parked(&running, "four wait behind it", four).await;
    running.stop().await;
    let asked = world.until("", |_| true).await;
    let keys = taken(&asked, fine);
    for (key, found) in &keys {
        let first: i64 = key.trim_start_matches("key").parse().unwrap();
        let count = if key == "key5" { 5 } else { 10 };
        assert_eq!(*found, (0..count).map(|n| first + 40 * n).collect::<Vec<_>>(), "{key}");
    }
    assert_eq!((parked.len(), parked[0].waiting, keys.len()), (1, 4, 40));
    let refused: Vec<usize> =
        asked.iter().filter(|asked| has(asked, 205)).map(|a| a.events().len()).collect();
    assert!(refused.len() <= 7 && refused.last() == Some(&1), "by halves: {refused:?}");
    assert!(
        asked.iter().any(|asked| asked.events().len() > 10),
        "an endpoint that is slow gets batches all the same"
    );
}

/// One that the endpoint always stumbles over is found too, when others get on.
#[tokio::test(flavor = "multi_thread")]
async fn the_event_that_an_endpoint_stumbles_over_holds_up_its_key_alone() {
    let world = World::new(|_, asked| match has(asked, 205) {
        true => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        false => StatusCode::NO_CONTENT.into_response(),
    })
    .await;
    world.slow(Duration::from_millis(5));
    publish(&world, &many()).await;
    let running = world.run("batch = 50\nconcurrency = 8\nretry_max = \"50ms\"").await;
    let fine = |asked: &Asked| !has(asked, 205);
    let came = |asked: &[Asked]| asked.iter().filter(|asked| fine(asked)).flat_map(Asked::events).count();
    let (deadline, mut published) = (Instant::now() + PATIENCE, 400);
    // Of key5 four wait behind it, and it does not come itself.
    while came(&world.until("", |_| true).await) < published - 5 {
        assert!(Instant::now() < deadline, "others wait with it");
        // Others get on meanwhile.
        world.publish(&[("other", "")]).await;
        published += 1;
        let others = |asked: &[Asked]| taken(asked, fine).get("other").map_or(0, Vec::len);
        world.until("others get on", |asked| others(asked) >= published - 400).await;
    }
    running.stop().await;
    let keys = taken(&world.until("", |_| true).await, fine);
    for (key, found) in keys.iter().filter(|(key, _)| *key != "other") {
        let first: i64 = key.trim_start_matches("key").parse().unwrap();
        let expected: Vec<i64> = (0..10).map(|n| first + 40 * n).collect();
        assert!(expected.starts_with(found) && (found.len() == 10 || key == "key5"), "{key}: {found:?}");
    }
}

/// One that was set aside hangs, and no other may be tried again beside it: a request that failed once is parted when what
/// is behind it crowds, and its parts go.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_finds_no_turn_to_be_made_again_is_parted() {
    let hangs = |asked: &Asked| asked.events()[0].0 == "hangs";
    let failed = AtomicBool::new(false);
    let world = World::new(move |_, asked| match () {
        () if hangs(asked) => StatusCode::UNPROCESSABLE_ENTITY.into_response(),
        () if asked.events().len() > 1 && !failed.swap(true, Ordering::SeqCst) => {
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
        () => StatusCode::NO_CONTENT.into_response(),
    })
    .await;
    world.publish(&[("hangs", "")]).await;
    let running = world.run("batch = 10\nconcurrency = 2\ntimeout = \"10m\"\nretry_max = \"100ms\"").await;
    world.until_parked(&running, "it is set aside", |parked| !parked.is_empty()).await;
    world.hang(hangs);
    assert_eq!(running.shelf.retry(&ShelfFilter::default()).await.unwrap(), 1);
    world.until("it hangs", |_| world.hung() == 1).await;
    world.slow(Duration::from_millis(100));
    // The others come while the first of them is answered.
    let filling = "x".repeat(128 << 10);
    world.publish(&[("others", filling.as_str()); 20]).await;
    let several = |asked: &Asked| asked.events().len() > 1;
    world.until("a request of several fails", |asked| asked.iter().any(several)).await;
    // One at a time these get on meanwhile.
    let keys: Vec<String> = (0..40).map(|n| format!("fine{n}")).collect();
    world.publish(&keys.iter().map(|key| (key.as_str(), "")).collect::<Vec<_>>()).await;
    let others = |asked: &[Asked]| taken(asked, |_| true).remove("others").unwrap_or_default();
    let mut asked = world.until("they have come", |asked| others(asked).contains(&20)).await;
    assert_eq!(world.hung(), 1, "it hangs all the while");
    asked.remove(asked.iter().position(several).unwrap());
    assert_eq!(others(&asked), (1..=20).collect::<Vec<_>>());
}
