//! Answers that take their time.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use headwater_core::ports::{ShelfFilter, Shelved};
use headwater_runtime::Phase;

use crate::world::{World, waiting};

/// Says 200, and something more in pieces.
fn in_pieces(pieces: usize) -> Response {
    let piece = async |_| {
        tokio::time::sleep(Duration::from_millis(10)).await;
        Ok::<_, Infallible>(Bytes::from_static(b"{}"))
    };
    Response::new(Body::from_stream(futures::stream::iter(0..pieces).then(piece)))
}

/// A connection for each event would cost a handshake each, and an endpoint its answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_used_again_when_the_answer_comes_in_pieces() {
    let world = World::new(|_, _| in_pieces(3)).await;
    world.publish(&[("a", ""); 20]).await;
    let running = world.run("").await;
    let asked = world.until("all have come", |asked| asked.len() == 20).await;
    running.stop().await;
    let peers: HashSet<_> = asked.iter().map(|asked| asked.peer).collect();
    // One may be given up by a machine that is busy.
    assert!(peers.len() <= 4, "{peers:?}");
}

/// It is delivered when the endpoint has said so, whatever else it still says.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_never_ends_is_an_answer() {
    let world = World::new(|_, _| in_pieces(usize::MAX)).await;
    world.publish(&[("a", ""); 3]).await;
    let running = world.run("timeout = \"10m\"").await;
    let asked = world.until("all have come", |asked| asked.len() == 3).await;
    running.stop().await;
    assert_eq!(asked.iter().map(|asked| asked.events()[0].1).collect::<Vec<_>>(), [0, 1, 2]);
}

/// What is parked is no trouble of the push any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_push_whose_events_are_all_parked_is_in_no_trouble() {
    let failed = Mutex::new(HashSet::new());
    let world =
        World::new(move |_, asked| match failed.lock().unwrap().insert(asked.events()[0].0.clone()) {
            true => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            false => StatusCode::UNPROCESSABLE_ENTITY.into_response(),
        })
        .await;
    let keys = ["a", "b", "c", "d"];
    for _ in 0..300 {
        world.publish(&keys.map(|key| (key, ""))).await;
    }
    let running = world.run("").await;
    world.until_parked(&running, "all are parked", |parked| waiting(parked) >= 4 * 299).await;
    running.says(Phase::Streaming, None).await;
    running.stop().await;
}

/// Others that fail are, all the same.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_parked_says_nothing_of_others_that_fail() {
    let world = World::new(|_, asked| match &*asked.events()[0].0 {
        "later" => (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "3600")]).into_response(),
        _ => StatusCode::UNPROCESSABLE_ENTITY.into_response(),
    })
    .await;
    world.publish(&[("later", "")]).await;
    let running = world.run("").await;
    running.says(Phase::Retrying, Some("503")).await;
    world.publish(&[("never", "")]).await;
    // What is behind it comes to the shelf when it is there: by then it was said.
    world.publish(&[("never", "")]).await;
    world.until_parked(&running, "it is parked", |parked| waiting(parked) > 0).await;
    let report = running.report();
    assert_eq!(report.phase, Phase::Retrying, "{report:?}");
    assert!(report.error.as_ref().is_some_and(|error| error.contains("503")), "{report:?}");
    running.stop().await;
}

/// What is tried again and parked then waits for room, and leaves what is set aside its turns to make some.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_shelf_drains_while_what_was_tried_again_waits_for_room() {
    let mended = Arc::new(AtomicBool::new(false));
    let is_mended = Arc::clone(&mended);
    let tries = AtomicUsize::new(0);
    let mut world = World::new(move |_, asked| match &*asked.events()[0].0 {
        "first" if is_mended.load(Ordering::SeqCst) => StatusCode::NO_CONTENT.into_response(),
        "second" if tries.fetch_add(1, Ordering::SeqCst) == 0 => {
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
        _ => StatusCode::UNPROCESSABLE_ENTITY.into_response(),
    })
    .await;
    world.budget = 1;
    world.publish(&[("first", "")]).await;
    // One try again at a time.
    let running = world.run("concurrency = 2").await;
    world.until_parked(&running, "the first is parked", |parked| !parked.is_empty()).await;
    world.publish(&[("second", "")]).await;
    running.says(Phase::Retrying, Some("no more events")).await;
    mended.store(true, Ordering::SeqCst);
    assert_eq!(running.shelf.retry(&ShelfFilter::default()).await.unwrap(), 1);
    let second = |one: &Shelved| one.key.as_deref() == Some(b"second");
    let alone = |parked: &[Shelved]| !parked.is_empty() && parked.iter().all(second);
    world.until_parked(&running, "the second is there, and the first gone", alone).await;
    running.stop().await;
}
