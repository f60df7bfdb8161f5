//! Answers that take their time.

use std::collections::HashSet;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use headwater_runtime::Phase;

use crate::common::PATIENCE;
use crate::world::World;

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
async fn a_push_whose_only_event_is_parked_is_in_no_trouble() {
    let world = World::new(|_, _| StatusCode::UNPROCESSABLE_ENTITY.into_response()).await;
    world.publish(&[("a", "")]).await;
    let running = world.run("").await;
    let deadline = Instant::now() + PATIENCE;
    while world.parked(&running).await.is_empty() {
        assert!(Instant::now() < deadline, "it is not parked");
    }
    running.says(Phase::Streaming, None).await;
    running.stop().await;
}
