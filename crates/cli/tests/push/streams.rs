//! Streams of a push that come later than it.

use axum::http::StatusCode;
use axum::response::IntoResponse;

use crate::world::{Asked, World};

/// An outbox's stream is there when its first row is; what the others have is not kept back until then.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_there_yet_holds_up_no_other() {
    let world = World::new(|_, _| StatusCode::NO_CONTENT.into_response()).await;
    world.publish(&[("a", ""), ("a", "")]).await;
    let running = world.run_with(&["later", "orders"], "").await;
    let of = |asked: &[Asked], name: &str| {
        asked.iter().filter(|asked| asked.headers["headwater-stream"] == name).count()
    };
    world.until("what is there has come", |asked| of(asked, "orders") == 2).await;
    world.stream("later").await;
    world.publish_to("later", &[("b", "")]).await;
    world.publish(&[("a", "")]).await;
    let asked =
        world.until("both have come", |asked| of(asked, "orders") == 3 && of(asked, "later") == 1).await;
    running.stop().await;
    let numbers: Vec<i64> =
        asked.iter().flat_map(Asked::events).map(|(_, n)| n).filter(|n| *n != 2).collect();
    assert_eq!(numbers, [0, 1, 3], "each once and in order");
}
