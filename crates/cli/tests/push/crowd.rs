//! A key in trouble that has far more events than may be in memory: the others go on.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use axum::response::IntoResponse;

use crate::world::{Asked, World};

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
    let parked = world.parked(&running).await;
    assert_eq!((parked.len(), parked[0].waiting), (1, 639));
    running.stop().await;
}
