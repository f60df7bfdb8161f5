//! A key in trouble that has far more events than may be in memory: the others go on.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headwater::core::ports::{Shelf, ShelfFilter};
use headwater::{Failure, Handled, Handler, Received};

use super::common::{PATIENCE, Record, Service, Tx};

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

/// Fails, and remembers for which keys.
#[derive(Clone, Default)]
struct Fails(Arc<Mutex<BTreeSet<String>>>);

impl Handler<Tx> for Fails {
    async fn handle(&self, _: &mut Tx, event: &Received) -> Handled {
        self.0.lock().unwrap().insert(event.key().unwrap_or_default().to_owned());
        Err(Failure::retry("not yet"))
    }
}

/// More than are looked for at once, and by the next look the first of them may be tried again.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_fail_again_and_again_leave_others_their_turn() {
    let mut service = Service::new().await;
    let keys: Vec<String> = (0..150).map(|key| format!("key-{key}")).collect();
    service.publish(&keys.iter().map(String::as_str).collect::<Vec<_>>(), 1).await;
    let running = service.run(service.builder().attempts(1), Fails::default());
    service.until("SELECT count(*) FROM headwater_parked WHERE state = 'parked'", 150).await;
    running.stop().await.unwrap();
    assert_eq!(service.inbox().retry(&ShelfFilter::default()).await.unwrap(), 150);
    let (fails, wait) = (Fails::default(), Duration::from_secs(2));
    let builder = service.builder().attempts(u32::MAX).backoff(wait, wait).interval(2 * wait);
    let running = service.run(builder, fails.clone());
    let deadline = Instant::now() + PATIENCE / 3;
    while fails.0.lock().unwrap().len() < 150 {
        assert!(Instant::now() < deadline, "{}", fails.0.lock().unwrap().len());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    running.stop().await.unwrap();
}
