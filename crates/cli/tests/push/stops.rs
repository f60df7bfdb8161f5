//! A stop while requests hang.

use axum::http::StatusCode;
use axum::response::IntoResponse;

use crate::world::World;

/// What is on its way is waited for. Nothing else begins: it would be cut off, and might have taken effect all the same.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_stop_no_request_begins_and_what_waits_is_as_it_was() {
    let world = World::new(|_, _| StatusCode::NO_CONTENT.into_response()).await;
    world.hang(|_| true);
    let keys: Vec<String> = (0..8).map(|n| format!("key{n}")).collect();
    world.publish(&keys.iter().map(|key| (key.as_str(), "")).collect::<Vec<_>>()).await;
    // One try that fails would park it.
    let settings = "concurrency = 2\ntimeout = \"2s\"\nattempts = 1";
    let running = world.run(settings).await;
    world.until("two hang", |_| world.hung() == 2).await;
    running.stop().await;
    assert_eq!(world.until("", |_| true).await.len(), 2, "requests began after the stop");
    world.hang(|_| false);
    let running = world.run(settings).await;
    let asked = world.until("all have come", |asked| asked.len() >= 10).await;
    assert!(world.parked(&running).await.is_empty());
    running.stop().await;
    let mut first: Vec<i64> = asked[2..].iter().map(|asked| asked.events()[0].1).collect();
    first.sort_unstable();
    assert_eq!(first, (0..8).collect::<Vec<_>>());
}
