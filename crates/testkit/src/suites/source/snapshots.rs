//! Reading whole tables while changes go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use headwater_core::ports::SourceState;
use headwater_core::{Checkpoint, Op};
use tokio::sync::watch;

use super::tools::{BUDGET, PATIENCE, Reading, Replica, with_tables};
use super::{Database, Factory, Session};

async fn populate(session: &mut dyn Session, rows: u64) {
    session
        .execute(&format!(
            "with recursive n (i) as (select 1 union all select i + 1 from n where i < {rows})
             insert into item select i, 'a row that takes some room in a batch', 1 from n"
        ))
        .await;
}

/// Someone who writes over the table until told to stop: updates, deletes, inserts, moved keys. `size`
/// only rises.
struct Disturbance {
    stop: Arc<AtomicBool>,
    made: watch::Receiver<u64>,
    writer: Option<tokio::task::JoinHandle<()>>,
}

/// A test that fails must not leave a writer behind that nobody can stop.
impl Drop for Disturbance {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Disturbance {
    async fn start(database: &dyn Database, rows: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (tell, made) = watch::channel(0);
        let writer = tokio::spawn(Self::write(database.session().await, rows, stop.clone(), tell));
        Self { stop, made, writer: Some(writer) }
    }

    async fn write(
        mut session: Box<dyn Session>,
        rows: u64,
        stop: Arc<AtomicBool>,
        tell: watch::Sender<u64>,
    ) {
        let mut step = 2;
        while !stop.load(Ordering::Relaxed) {
            let id = step * 7919 % rows + 1;
            let (new, moved) = (1_000_000 + step, 100_000_000 + step);
            session
                .execute(&format!(
                    "begin; update item set size = {step} where id = {id}; commit;
                     delete from item where id = {};
                     insert into item values ({new}, 'new', {step});
                     update item set id = {moved}, size = {step} where id = {};",
                    id + 1,
                    id + 2,
                ))
                .await;
            step += 1;
            tell.send_modify(|made| *made += 1);
        }
    }

    /// Waits until something was written since the last time.
    async fn step(&mut self) {
        self.made.changed().await.expect("the writer writes");
    }

    /// Stops.
    async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let writer = self.writer.take().expect("stopped once");
        writer.await.expect("the writer writes");
    }
}

/// Every row, as op read, with positions before the stream's.
pub async fn a_snapshot_reads_what_is_there(factory: &dyn Factory) {
    let database = factory.database().await;
    let mut session = with_tables(&*database, false).await;
    populate(&mut *session, 500).await;
    let connector = database.connector(&["item", "marker"], true).await;
    let mut reading = Reading::open(&connector, None).await;
    session.execute("insert into item values (1000, 'later', 1); insert into marker values (1)").await;
    let mut seen = false;
    while connector.status().state != SourceState::Streaming {
        reading.next(2000).await;
        let shown = connector.status().snapshot;
        seen |= shown.iter().any(|table| table.table.ends_with("item") && table.rows > 0 && !table.done);
    }
    assert!(seen, "status never showed the table on its way");
    reading.until(1).await;
    let reads: Vec<_> = reading.changes.iter().filter(|change| change.op == Op::Read).collect();
    assert!((500..=501).contains(&reads.len()), "{} reads", reads.len());
    assert!(reads.iter().all(|read| read.before.is_none() && read.transaction.id == reads[0].transaction.id));
    let mut replica = Replica::default();
    replica.apply(&reading.changes);
    replica.compare(&mut *session).await;
}

/// Nothing to read is still read to its end.
pub async fn an_empty_table_has_a_snapshot_too(factory: &dyn Factory) {
    let database = factory.database().await;
    let mut session = with_tables(&*database, false).await;
    let connector = database.connector(&["item", "marker"], true).await;
    let mut reading = Reading::open(&connector, None).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while connector.status().state != SourceState::Streaming {
        assert!(tokio::time::Instant::now() < deadline, "the snapshot of nothing has no end");
        reading.next_within(Duration::from_millis(50), BUDGET).await;
    }
    session.execute("insert into item values (1, 'a', 1); insert into marker values (1)").await;
    reading.until(1).await;
    assert_eq!(reading.described(), ["create item 1|a|1"]);
}

/// Under constant writing: what arrives, applied in order, is the table, and no key ever goes back.
pub async fn a_snapshot_and_its_stream_have_no_hole(factory: &dyn Factory) {
    const ROWS: u64 = 3000;
    let database = factory.database().await;
    let mut session = with_tables(&*database, true).await;
    populate(&mut *session, ROWS).await;
    let connector = database.connector(&["item", "marker"], true).await;
    let mut disturbance = Disturbance::start(&*database, ROWS).await;
    let mut reading = Reading::open(&connector, None).await;
    while connector.status().state != SourceState::Streaming {
        disturbance.step().await;
        reading.next(4000).await;
    }
    disturbance.stop().await;
    session.execute("insert into marker values (1)").await;
    reading.until(1).await;
    assert!(reading.changes.iter().filter(|change| change.op == Op::Read).count() as u64 > ROWS / 2);
    let mut replica = Replica::default();
    replica.apply(&reading.changes);
    replica.compare(&mut *session).await;
}

/// A source that goes on from a checkpoint behind its snapshot takes no other one.
pub async fn a_snapshot_is_taken_once(factory: &dyn Factory) {
    let database = factory.database().await;
    let mut session = with_tables(&*database, false).await;
    populate(&mut *session, 100).await;
    let connector = database.connector(&["item", "marker"], true).await;
    let mut reading = Reading::open(&connector, None).await;
    session.execute("insert into marker values (1)").await;
    reading.until(1).await;
    while connector.status().state != SourceState::Streaming {
        reading.next(BUDGET).await;
    }
    reading.confirm().await;
    let checkpoint = reading.checkpoint.clone();
    drop(reading);
    session.execute("insert into item values (1000, 'b', 1); insert into marker values (2)").await;
    let connector = database.connector(&["item", "marker"], true).await;
    let mut reading = Reading::open(&connector, checkpoint.as_ref()).await;
    reading.until(2).await;
    assert_eq!(reading.described(), ["create item 1000|b|1"]);
}

/// Restarted again and again in the middle, while others write: no hole, and no key goes back.
pub async fn a_snapshot_goes_on_after_a_restart(factory: &dyn Factory) {
    const ROWS: u64 = 2000;
    let database = factory.database().await;
    let mut session = with_tables(&*database, true).await;
    populate(&mut *session, ROWS).await;
    let disturbance = Disturbance::start(&*database, ROWS).await;
    let mut replica = Replica::default();
    let mut checkpoint: Option<Checkpoint> = None;
    for restart in 0.. {
        let connector = database.connector(&["item", "marker"], true).await;
        let mut reading = Reading::open(&connector, checkpoint.as_ref()).await;
        // The first ones stop early, the last one reads to the end.
        let mut batches = 0;
        while connector.status().state != SourceState::Streaming && (batches < 3 || restart > 5) {
            reading.next(4000).await;
            batches += 1;
        }
        let through = connector.status().state == SourceState::Streaming;
        // Every other one dies before anything of it was published: all of that comes again.
        if restart % 2 == 1 || through {
            replica.apply(&reading.new_changes(checkpoint.as_ref()));
            reading.confirm().await;
            checkpoint = reading.checkpoint.clone();
        }
        if through {
            break;
        }
    }
    disturbance.stop().await;
    session.execute("insert into marker values (1)").await;
    let connector = database.connector(&["item", "marker"], true).await;
    let mut reading = Reading::open(&connector, checkpoint.as_ref()).await;
    reading.until(1).await;
    replica.apply(&reading.new_changes(checkpoint.as_ref()));
    replica.compare(&mut *session).await;
}

/// A source that streams, restarted with one more table.
pub async fn a_table_that_is_added_later_is_read_too(factory: &dyn Factory) {
    let database = factory.database().await;
    let mut session = with_tables(&*database, false).await;
    populate(&mut *session, 100).await;
    let connector = database.connector(&["marker"], true).await;
    let mut reading = Reading::open(&connector, None).await;
    session.execute("insert into marker values (1)").await;
    reading.until(1).await;
    while connector.status().state != SourceState::Streaming {
        reading.next(BUDGET).await;
    }
    reading.confirm().await;
    let checkpoint = reading.checkpoint.clone();
    drop(reading);
    session.execute("update item set size = 2 where id = 1").await;
    let connector = database.connector(&["item", "marker"], true).await;
    let mut reading = Reading::open(&connector, checkpoint.as_ref()).await;
    session.execute("update item set size = 3 where id = 2").await;
    while connector.status().state != SourceState::Streaming {
        reading.next(BUDGET).await;
    }
    session.execute("update item set size = 4 where id = 3; insert into marker values (2)").await;
    reading.until(2).await;
    let mut replica = Replica::default();
    replica.apply(&reading.changes);
    replica.compare(&mut *session).await;
}
