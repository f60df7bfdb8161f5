//! Handlers that fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use headwater::core::ports::{Shelf, ShelfFilter, ShelfState};
use headwater::{Failure, Handled, Handler, Received, StopToken};
use headwater_testkit::suites::bus::tools;

use super::common::{PATIENCE, Record, Service, Tx, event, write};

fn key(key: &'static str) -> ShelfFilter {
    ShelfFilter { key: Some(Bytes::from_static(key.as_bytes())), ..ShelfFilter::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_parked_and_nothing_else_and_goes_on_in_order() {
    let mut service = Service::new().await;
    let record = Record::default();
    record.fail("bad", 3);
    let running = service.run(service.builder().attempts(3), record.clone());
    service.publish(&["a", "bad", "b", "c"], 30).await;
    service.effects(90 + 3).await;
    service.until("SELECT count(*) FROM headwater_parked WHERE state = 'waiting'", 26).await;
    let parked = service.parked().await;
    assert_eq!(parked.len(), 1);
    assert_eq!((parked[0].key.as_deref(), parked[0].waiting), (Some(&b"bad"[..]), 26));
    assert_eq!((parked[0].attempts, parked[0].error.as_deref()), (3, Some("no stock for 3")));
    // The cursor has gone past it.
    service.until("SELECT sum(\"offset\")::bigint FROM headwater_cursor", 120).await;
    // It still fails: it is parked again, and nothing has overtaken it.
    let shelf = service.inbox();
    assert_eq!(shelf.retry(&key("bad")).await.unwrap(), 1);
    service
        .until("SELECT count(*) FROM headwater_parked WHERE state = 'parked' AND next_try IS NULL", 1)
        .await;
    record.mend();
    service.publish(&["a", "bad"], 10).await;
    assert_eq!(shelf.retry(&key("bad")).await.unwrap(), 1);
    service.publish(&["a", "bad"], 10).await;
    service.check().await;
    assert_eq!(service.parked().await, []);
    service.publish(&["bad"], 10).await;
    service.check().await;
    running.stop().await.unwrap();
}

/// While one key waits for its next try, others go on, and no connection waits with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_waits_holds_up_nothing() {
    let mut service = Service::new().await;
    let record = Record::default();
    record.fail("bad", 0);
    let builder = service.builder().concurrency(1).backoff(PATIENCE, PATIENCE);
    let running = service.run(builder, record.clone());
    service.publish(&["bad"], 5).await;
    service.publish(&["a", "b"], 200).await;
    service.effects(400).await;
    let open = "SELECT count(*) FROM pg_stat_activity \
         WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
    service.until(open, 0).await;
    assert!(service.parked().await.is_empty(), "it is only tried again");
    running.stop().await.unwrap();
    record.mend();
    let running = service.run(service.builder(), record);
    service.check().await;
    running.stop().await.unwrap();
}

/// A stop in the middle of retries loses nothing and parks nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_fails_a_few_times_goes_in_its_place() {
    let mut service = Service::new().await;
    let record = Record::default();
    record.fail("a", 10);
    record.fail("b", 20);
    let running = service.run(service.builder().attempts(1000), record.clone());
    service.publish(&["a", "b", "c"], 50).await;
    service.effects(50 + 10 + 20).await;
    // What comes now finds its key waiting.
    service.publish(&["a", "b", "c"], 20).await;
    service.effects(70 + 10 + 20).await;
    let failed = record.failed.load(Ordering::Relaxed);
    while record.failed.load(Ordering::Relaxed) < failed + 10 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    record.mend();
    service.check().await;
    running.stop().await.unwrap();
    assert_eq!(service.count("SELECT count(*) FROM headwater_inbox").await, 210);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_parked_at_once() {
    let mut service = Service::new().await;
    let mut poison = event(&service.stream, "bad", 0);
    poison.payload = Some(Bytes::from_static(b"{\"half"));
    tools::publish(&service.bus, vec![poison], None).await;
    let running = service.run(service.builder().backoff(PATIENCE, PATIENCE), Record::default());
    service.publish(&["a"], 10).await;
    service.check().await;
    service.until("SELECT count(*) FROM headwater_parked WHERE state = 'parked' AND attempts = 1", 1).await;
    let parked = service.parked().await;
    assert!(parked[0].error.as_deref().unwrap().contains("(Placed)"), "{parked:?}");
    let shown = service.inbox().show(&ShelfFilter::default()).await.unwrap();
    assert_eq!(shown[0].record.event.payload.as_deref(), Some(&b"{\"half"[..]));
    running.stop().await.unwrap();
}

/// Waits with the first event until all have been read; stops its consumer the second time that it is asked for the
/// next one, which fails each time.
#[derive(Clone)]
struct Stops {
    stop: StopToken,
    read: Arc<AtomicU32>,
    asked: Arc<AtomicU32>,
}

impl Handler<Tx> for Stops {
    async fn handle(&self, tx: &mut Tx, event: &Received) -> Handled {
        let n = event.json()?;
        write(tx, event.key().unwrap_or_default(), n).await?;
        while self.read.load(Ordering::Relaxed) < 30 {
            tokio::task::yield_now().await;
        }
        if n != 1 {
            return Ok(());
        }
        if self.asked.fetch_add(1, Ordering::Relaxed) > 0 {
            self.stop.cancel();
        }
        Err(Failure::park("not yet"))
    }
}

/// What is behind it is no longer set aside, and does not pass it either.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_a_key_is_being_parked_keeps_its_order() {
    let mut service = Service::new().await;
    service.publish(&["bad"], 30).await;
    let stops = Stops { stop: StopToken::new(), read: Arc::default(), asked: Arc::default() };
    let read = Arc::clone(&stops.read);
    let builder = service.builder().concurrency(1).batch(2).order_by(move |event| {
        read.fetch_add(1, Ordering::Relaxed);
        event.key.clone()
    });
    let stop = stops.stop.clone();
    tools::within(builder.build().unwrap().run(stops, stop)).await.unwrap();
    assert_eq!(service.count("SELECT max(n) FROM effect").await, 0, "they have passed the one that failed");
    let running = service.run(service.builder(), Record::default());
    service.check().await;
    running.stop().await.unwrap();
}

/// Says when it is to be tried again.
#[derive(Clone)]
struct Later(Duration, Arc<AtomicU32>);

impl Handler<Tx> for Later {
    async fn handle(&self, tx: &mut Tx, event: &Received) -> Handled {
        let key = event.key().unwrap_or_default();
        write(tx, key, event.json()?).await?;
        if key == "bad" {
            self.1.fetch_add(1, Ordering::Relaxed);
            return Err(Failure::retry_after("in a while", self.0));
        }
        Ok(())
    }
}

/// Nothing has succeeded when it fails; once others do, it does not hold up the cursor.
async fn waits_in_the_inbox(wait: Duration) {
    let mut service = Service::new().await;
    let later = Later(wait, Arc::default());
    let running = service.run(service.builder().concurrency(1), later.clone());
    service.publish(&["bad"], 1).await;
    while later.1.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    service.publish(&["a", "b"], 5).await;
    service.until("SELECT count(*) FROM headwater_parked WHERE state = 'retrying' AND attempts = 1", 1).await;
    service.until("SELECT sum(\"offset\")::bigint FROM headwater_cursor", 11).await;
    assert_eq!(later.1.load(Ordering::Relaxed), 1, "it was not tried again");
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_to_wait_long_waits_in_the_inbox() {
    waits_in_the_inbox(Duration::from_secs(3600)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_to_wait_for_ever_waits_long() {
    waits_in_the_inbox(Duration::MAX).await;
}

/// The others of its worker go on; it is parked when that can be done.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_the_database_does_not_park_holds_up_its_key_alone() {
    let mut service = Service::new().await;
    let record = Record::default();
    record.fail("bad", 0);
    let refuse = "ALTER TABLE headwater_parked ADD CONSTRAINT none CHECK (event_key <> 'bad')";
    service.database.execute(refuse).await.unwrap();
    let running = service.run(service.builder().concurrency(1).attempts(1), record.clone());
    service.publish(&["bad", "a", "b"], 10).await;
    service.effects(20).await;
    // Then it breaks the connection.
    let breaks = "ALTER TABLE headwater_parked DROP CONSTRAINT none; \
         CREATE SEQUENCE broken; \
         CREATE FUNCTION breaks() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM nextval('broken'), pg_terminate_backend(pg_backend_pid()); RETURN new; END $$; \
         CREATE TRIGGER breaks BEFORE INSERT ON headwater_parked FOR EACH ROW \
         WHEN (new.event_key = 'bad') EXECUTE FUNCTION breaks()";
    service.database.execute(breaks).await.unwrap();
    service.until("SELECT is_called::int::bigint FROM broken", 1).await;
    service.publish(&["bad", "a", "b"], 10).await;
    service.effects(40).await;
    service.database.execute("DROP TRIGGER breaks ON headwater_parked").await.unwrap();
    service.until("SELECT count(*) FROM headwater_parked", 20).await;
    record.mend();
    assert_eq!(service.inbox().retry(&key("bad")).await.unwrap(), 1);
    service.check().await;
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_a_failure_like_any_other() {
    let mut service = Service::new().await;
    let record = Record::default();
    record.fail("bad", 0);
    record.panics.store(true, Ordering::Relaxed);
    let running = service.run(service.builder().attempts(2), record);
    service.publish(&["a", "bad"], 5).await;
    service.effects(5).await;
    service.until("SELECT count(*) FROM headwater_parked", 5).await;
    let parked = service.parked().await;
    assert_eq!(parked[0].error.as_deref(), Some("the handler panicked: told to panic"));
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_hangs_is_given_up() {
    let mut service = Service::new().await;
    let record = Record::default();
    record.fail("bad", 0);
    record.hangs.store(true, Ordering::Relaxed);
    let builder = service.builder().attempts(2).handler_timeout(Duration::from_millis(200));
    let running = service.run(builder, record);
    service.publish(&["a", "bad"], 5).await;
    service.effects(5).await;
    service.until("SELECT count(*) FROM headwater_parked", 5).await;
    let parked = service.parked().await;
    assert_eq!(parked[0].error.as_deref(), Some("the handler took longer than 200ms, and was given up"));
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_first_lets_the_next_go() {
    let mut service = Service::new().await;
    let record = Record::default();
    record.fail("bad", 0);
    record.fail("bad", 1);
    let running = service.run(service.builder().attempts(1), record.clone());
    service.publish(&["bad"], 3).await;
    service.until("SELECT count(*) FROM headwater_parked", 3).await;
    assert_eq!(service.inbox().drop(&key("bad")).await.unwrap(), 1);
    // The next fails as well, and is parked in its turn.
    service.until("SELECT count(*) FROM headwater_parked WHERE state = 'parked'", 1).await;
    assert_eq!(service.parked().await[0].state, ShelfState::Parked);
    record.mend();
    assert_eq!(service.inbox().retry(&key("bad")).await.unwrap(), 1);
    service.effects(2).await;
    let first = "SELECT min(n) FROM effect";
    assert_eq!(service.count(first).await, 1, "0 was dropped");
    running.stop().await.unwrap();
}
