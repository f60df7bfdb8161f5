//! Handlers that break their own connection, or wait in the database for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use headwater::connect::postgres::inbox::PostgresInbox;
use headwater::core::ports::{Shelf, ShelfFilter};
use headwater::{Failure, Handled, Handler, Received, StopToken};
use headwater_testkit::servers::{Postgres, Proxy};
use sqlx::Executor;
use tokio::sync::Semaphore;

use super::common::{PATIENCE, Record, Service, Tx, embedded, pool, write};

/// Says the statement that is its for the key `bad`, and writes otherwise.
#[derive(Clone, Copy)]
struct Says(&'static str);

const BREAK: &str = "SELECT pg_terminate_backend(pg_backend_pid())";

impl Handler<Tx> for Says {
    async fn handle(&self, tx: &mut Tx, event: &Received) -> Handled {
        let key = event.key().unwrap_or_default();
        write(tx, key, event.json()?).await?;
        if key == "bad" {
            tx.execute(self.0).await?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_breaks_its_connection_is_parked_like_any_other() {
    let mut service = Service::new().await;
    let running = service.run(service.builder().attempts(3).concurrency(1), Says(BREAK));
    service.publish(&["a", "bad", "b"], 5).await;
    service.effects(10).await;
    service.until("SELECT count(*) FROM headwater_parked", 5).await;
    let parked = service.parked().await;
    assert_eq!((parked.len(), parked[0].attempts), (1, 3), "{parked:?}");
    assert!(parked[0].error.as_deref().unwrap().contains("terminating"), "{parked:?}");
    // Let go, it breaks the connection again: in the backlog this time.
    service.database.execute("UPDATE headwater_parked SET error = NULL").await.unwrap();
    assert_eq!(service.inbox().retry(&ShelfFilter::default()).await.unwrap(), 1);
    let again = "SELECT count(*) FROM headwater_parked \
         WHERE state = 'parked' AND attempts = 3 AND error LIKE '%terminating%'";
    service.until(again, 1).await;
    running.stop().await.unwrap();
}

/// Waits in the middle until it is told to go on.
#[derive(Clone)]
struct Waits(Arc<AtomicU32>, Arc<Semaphore>);

impl Handler<Tx> for Waits {
    async fn handle(&self, tx: &mut Tx, event: &Received) -> Handled {
        self.0.fetch_add(1, Ordering::Relaxed);
        drop(self.1.acquire().await?);
        write(tx, event.key().unwrap_or_default(), event.json()?).await?;
        Ok(())
    }
}

/// The database is back before the handler notices: with one attempt, an outage that counted would park.
#[tokio::test(flavor = "multi_thread")]
async fn a_short_outage_in_the_middle_of_a_handler_counts_for_nothing() {
    let server = Postgres::start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let bus = headwater::connect::embedded::EmbeddedBus::open(dir.path(), embedded()).await.unwrap();
    let database = server.create_database().await.unwrap();
    let mut service = Service::on(dir, Arc::new(bus), database).await;
    let handler = Waits(Arc::default(), Arc::new(Semaphore::new(0)));
    let running = service.run(service.builder().attempts(1), handler.clone());
    service.publish(&["a"], 1).await;
    until(|| handler.0.load(Ordering::Relaxed) == 1).await;
    server.kill();
    server.restart().await.unwrap();
    handler.1.add_permits(1);
    service.check().await;
    assert_eq!(service.parked().await, []);
    running.stop().await.unwrap();
}

/// The server has moved: connections that are open say nothing for ever, new ones are fine.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_moves_without_a_word_is_found_again() {
    let server = Postgres::shared().await.unwrap();
    let proxy = Proxy::start(("127.0.0.1", server.port())).await.unwrap();
    let mut service = Service::new().await;
    let inbox = PostgresInbox::new(pool(&service.database.url_through(&proxy), 6).await);
    let handler = Waits(Arc::default(), Arc::new(Semaphore::new(0)));
    let builder = service.builder().inbox(inbox).attempts(1).handler_timeout(Duration::from_secs(1));
    let running = service.run(builder.concurrency(2), handler.clone());
    service.publish(&["a"], 1).await;
    until(|| handler.0.load(Ordering::Relaxed) == 1).await;
    proxy.abandon();
    handler.1.add_permits(1);
    service.publish(&["a", "b", "c"], 3).await;
    service.check().await;
    assert_eq!(service.parked().await, [], "it was not the event");
    running.stop().await.unwrap();
}

/// Its table of cursors is locked for ever, and nothing bounds the wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_says_nothing_does_not_hold_up_a_stop() {
    let mut service = Service::new().await;
    let mut holder = service.database.connect().await.unwrap();
    holder.execute("BEGIN; LOCK TABLE headwater_cursor").await.unwrap();
    service.publish(&["a"], 1).await;
    let running = service.run(service.builder().drain_timeout(Duration::from_millis(100)), Record::default());
    let waits = "SELECT (count(*) > 0)::int::bigint FROM pg_stat_activity \
         WHERE datname = current_database() AND wait_event_type = 'Lock'";
    service.until(waits, 1).await;
    running.stop().await.unwrap();
}

async fn until(level: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !level() {
        assert!(Instant::now() < deadline, "it never came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn is_given_up(statement: &'static str) {
    let mut service = Service::new().await;
    let lock = "CREATE TABLE locked (id int PRIMARY KEY); INSERT INTO locked VALUES (1)";
    service.database.execute(lock).await.unwrap();
    let mut holder = service.database.connect().await.unwrap();
    holder.execute("BEGIN; SELECT * FROM locked FOR UPDATE").await.unwrap();
    let timeout = Duration::from_secs(2);
    let builder = service.builder().attempts(2).concurrency(1).handler_timeout(timeout);
    let running = service.run(builder, Says(statement));
    service.publish(&["a", "bad", "b"], 3).await;
    service.effects(6).await;
    service.until("SELECT count(*) FROM headwater_parked", 3).await;
    let parked = service.parked().await;
    assert_eq!(parked[0].error.as_deref(), Some("the handler took longer than 2s, and was given up"));
    service.publish(&["a", "b"], 3).await;
    service.effects(12).await;
    running.stop().await.unwrap();
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
         AND pid <> pg_backend_pid() AND (state = 'active' OR state LIKE 'idle in transaction%') \
         AND backend_type = 'client backend'";
    service.until(open, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_never_ends_is_given_up() {
    is_given_up("SELECT pg_sleep(3600)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_waits_for_a_lock_is_given_up() {
    is_given_up("UPDATE locked SET id = 2").await;
}

/// A trigger that the server runs at the end: of a COMMIT it bounds nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_never_comes_is_given_up() {
    let mut service = Service::new().await;
    let hangs = "CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN IF NEW.key = 'bad' THEN PERFORM pg_sleep(3600); END IF; RETURN NULL; END $$; \
         CREATE CONSTRAINT TRIGGER hangs AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED \
             FOR EACH ROW EXECUTE FUNCTION hang()";
    service.database.execute(hangs).await.unwrap();
    let timeout = Duration::from_secs(2);
    let builder = service.builder().attempts(2).concurrency(1).handler_timeout(timeout);
    let running = service.run(builder, Record::default());
    service.publish(&["a", "bad", "b"], 3).await;
    service.effects(6).await;
    service.until("SELECT count(*) FROM headwater_parked", 3).await;
    let parked = service.parked().await;
    assert!(parked[0].error.as_deref().unwrap().contains("statement timeout"), "{parked:?}");
    // Let go, it hangs in the backlog.
    service.database.execute("UPDATE headwater_parked SET error = NULL").await.unwrap();
    assert_eq!(service.inbox().retry(&ShelfFilter::default()).await.unwrap(), 1);
    let again =
        "SELECT count(*) FROM headwater_parked WHERE state = 'parked' AND error LIKE '%statement timeout%'";
    service.until(again, 1).await;
    running.stop().await.unwrap();
}

/// Ends the transaction by itself.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_handler_rolls_back_is_not_lost() {
    let mut service = Service::new().await;
    let builder = service.builder().attempts(2).concurrency(1).batch(1);
    let running = service.run(builder, Says("ROLLBACK"));
    service.publish(&["a", "bad", "b"], 3).await;
    service.effects(6).await;
    service.until("SELECT count(*) FROM headwater_parked", 3).await;
    let parked = service.parked().await;
    assert!(parked[0].error.as_deref().unwrap().contains("ended the transaction"), "{parked:?}");
    running.stop().await.unwrap();
}

/// Counts how many of it run at once.
#[derive(Clone, Default)]
struct Counts {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    fails: Arc<AtomicU32>,
}

impl Handler<Tx> for Counts {
    async fn handle(&self, tx: &mut Tx, event: &Received) -> Handled {
        if self.fails.load(Ordering::Relaxed) > 0 {
            return Err(Failure::park("not yet"));
        }
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        let slow = tx.execute("SELECT pg_sleep(0.02)").await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        slow?;
        write(tx, event.key().unwrap_or_default(), event.json()?).await?;
        Ok(())
    }
}

/// What was set aside shares the connections of what arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_of_one_more_than_the_concurrency_is_enough() {
    let mut service = Service::new().await;
    service.pool = pool(service.database.url(), 3).await;
    let handler = Counts::default();
    handler.fails.store(1, Ordering::Relaxed);
    let running = service.run(service.builder().concurrency(2).batch(1), handler.clone());
    service.publish(&["a", "b", "c", "d"], 20).await;
    service.until("SELECT count(*) FROM headwater_parked", 80).await;
    handler.fails.store(0, Ordering::Relaxed);
    service.publish(&["e", "f", "g", "h"], 20).await;
    assert_eq!(service.inbox().retry(&ShelfFilter::default()).await.unwrap(), 4);
    service.check().await;
    running.stop().await.unwrap();
    assert_eq!(handler.most.load(Ordering::SeqCst), 2);
}

/// Whoever drops the future has ended the consumer.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_handled_after_the_future_is_dropped() {
    let mut service = Service::new().await;
    let record = Record::default();
    record.fail("bad", 0);
    let consumer = service.builder().attempts(1).build().unwrap();
    let run = consumer.run(record.clone(), StopToken::new());
    service.publish(&["a", "bad"], 3).await;
    tokio::select! {
        ended = run => panic!("{ended:?}"),
        () = service.until("SELECT count(*) FROM headwater_parked", 3) => {}
    }
    // No task has the handler any more.
    until(|| Arc::strong_count(&record.failed) == 1).await;
    record.mend();
    assert_eq!(service.inbox().retry(&ShelfFilter::default()).await.unwrap(), 1);
    assert_eq!(service.count("SELECT count(*) FROM effect WHERE key = 'bad'").await, 0);
}
