//! A key in trouble that has far more events than may be in memory: the others go on.

use std::time::Duration;

use super::common::{Record, Service};

/// How many events may be read and not handled.
const ROOM: usize = 160;

async fn others_go_on(order: impl AsyncFnOnce(&mut Service)) {
    let mut service = Service::new().await;
    let record = Record::default();
    record.fail("bad", 0);
    record.fail("worse", 0);
    // It is tried again in a while, and by then it would have filled the room.
    let wait = Duration::from_secs(4);
    let builder = service.builder().buffer(ROOM, 1 << 30).backoff(wait, wait).attempts(u32::MAX);
    order(&mut service).await;
    let running = service.run(builder, record.clone());
    service.effects(3 * 20).await;
    // The first of each alone was tried; all others were behind it.
    service.until("SELECT count(*) FROM effect WHERE key IN ('bad', 'worse')", 0).await;
    assert!(!service.parked().await.is_empty(), "it is in memory");
    record.mend();
    service.check().await;
    running.stop().await.unwrap();
}

/// Nothing else was read, and so nothing else succeeded.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_fills_the_room_alone_is_set_aside() {
    others_go_on(async |service| {
        service.publish(&["bad"], 10 * ROOM).await;
        service.publish(&["a", "b", "c"], 20).await;
    })
    .await;
}

/// Others have succeeded before the room was full.
#[tokio::test(flavor = "multi_thread")]
async fn two_keys_that_fill_the_room_are_set_aside() {
    others_go_on(async |service| {
        service.publish(&["a", "bad", "worse"], 10).await;
        service.publish(&["bad", "worse"], 5 * ROOM).await;
        service.publish(&["a"], 10).await;
        service.publish(&["b", "c"], 20).await;
    })
    .await;
}
