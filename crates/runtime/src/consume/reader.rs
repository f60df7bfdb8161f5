//! From the subscription to the workers, and cursors back to the bus.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use headwater_core::ports::{Backlog, Bus, Cursor, Delivery, SeekTo, Start, Subscribe, Subscription};
use headwater_core::{Error, Kind, Micros, Record, Result};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lane::Lane;
use super::room::Room;
use super::seat::Seat;
use super::{Handle, Item, Received, Shared, order_key};
use crate::clock;
use crate::pipeline::Backoff;

/// A subscription that has lived for so many looks without an error reads where the bus can be reached, even if no
/// partition is given to it. A bus may take most of that time to refuse.
const CALM: u32 = 20;

/// The last cursors have at least so long to be written.
const MOMENT: Duration = Duration::from_secs(1);

/// Reads until it is over; then waits for the workers, writes the last cursors and leaves the group.
pub(super) async fn run<I, H>(
    shared: Arc<Shared<I, H>>,
    bus: Arc<dyn Bus>,
    streams: Vec<Arc<str>>,
    start: Start,
) where
    I: Backlog,
    H: Handle<I::Transaction>,
{
    let (mut lanes, mut workers) = (Vec::new(), JoinSet::new());
    for _ in 0..shared.settings.concurrency {
        let (sender, arriving) = mpsc::unbounded_channel();
        let (lane, watched) = (Lane::new(Arc::clone(&shared), arriving), Arc::clone(&shared));
        workers.spawn(async move {
            // Handlers that panic are caught: this would be ours.
            if AssertUnwindSafe(lane.run()).catch_unwind().await.is_err() {
                watched.fail(Error::new(Kind::Internal, "a worker of the consumer panicked"));
            }
        });
        lanes.push(sender);
    }
    let settings = &shared.settings;
    let mut reader = Reader {
        room: Room::new(settings.max_events, settings.max_bytes),
        hasher: std::hash::RandomState::new(),
        seats: HashMap::new(),
        warned: false,
        subscription: None,
        lanes,
        shared: &shared,
    };
    let mut backoff = Backoff::new(settings.retry_max);
    while !shared.halt.is_cancelled() {
        let subscribe = Subscribe { streams: streams.clone(), group: Some(shared.name.to_string()), start };
        let Err(error) = reader.read(&*bus, subscribe, &mut backoff).await else { break };
        reader.lose();
        if !error.is_retryable() {
            shared.fail(error);
            break;
        }
        let wait = backoff.next();
        shared.watch.stuck(&error.to_string());
        tracing::warn!(consumer = %shared.name, %error, ?wait, "the bus is waited for");
        shared.wait(wait).await;
    }
    reader.end(workers).await;
}

/// Whether the bus can be reached; not asked for longer than it goes on.
async fn is_there(bus: &dyn Bus, halt: &CancellationToken) -> bool {
    halt.run_until_cancelled(bus.reach()).await.is_some_and(|reached| reached.is_ok())
}

struct Reader<'a, I, H> {
    shared: &'a Arc<Shared<I, H>>,
    subscription: Option<Box<dyn Subscription>>,
    lanes: Vec<mpsc::UnboundedSender<Item>>,
    room: Arc<Room>,
    seats: HashMap<(Arc<str>, u32), Arc<Seat>>,
    hasher: std::hash::RandomState,
    /// It was said that events are older than inbox rows.
    warned: bool,
}

impl<I, H> Reader<'_, I, H>
where
    I: Backlog,
    H: Handle<I::Transaction>,
{
    /// Subscribes and reads until it is over, or until an error.
    async fn read(&mut self, bus: &dyn Bus, subscribe: Subscribe, backoff: &mut Backoff) -> Result<()> {
        let halt = self.shared.halt.clone();
        let mut subscription = tokio::select! {
            () = halt.cancelled() => return Ok(()),
            subscription = bus.subscribe(subscribe) => subscription?,
        };
        let (began, interval) = (Instant::now(), self.shared.settings.interval);
        let mut tick = tokio::time::interval(interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let room = Arc::clone(&self.room);
        let ended = loop {
            let next = async {
                room.left().await;
                subscription.next().await
            };
            let delivery = tokio::select! {
                biased;
                () = halt.cancelled() => break Ok(()),
                _ = tick.tick() => None,
                delivery = next => match delivery {
                    Ok(delivery) => Some(delivery),
                    Err(error) => break Err(error),
                },
            };
            let shared = Arc::clone(self.shared);
            let step = async {
                match delivery {
                    None => {
                        let calm = began.elapsed() > interval.saturating_mul(CALM);
                        if calm && shared.watch.is_stuck() && is_there(bus, &halt).await {
                            shared.watch.reads();
                        }
                        self.commit(&mut *subscription).await
                    }
                    Some(delivery) => {
                        backoff.reset();
                        self.deliver(&mut *subscription, delivery).await
                    }
                }
            };
            let done = tokio::select! {
                biased;
                done = step => done,
                // The database or the bus says nothing.
                () = shared.cut_off() => break Ok(()),
            };
            if let Err(error) = done {
                break Err(error);
            }
        };
        self.subscription = Some(subscription);
        ended
    }

    async fn deliver(&mut self, subscription: &mut dyn Subscription, delivery: Delivery) -> Result<()> {
        match delivery {
            Delivery::Assigned(cursor) => self.assigned(subscription, cursor).await,
            Delivery::Revoked { stream, partition, epoch } => {
                let seat = (stream, partition);
                if self.seats.get(&seat).is_some_and(|held| held.epoch <= epoch)
                    && let Some(held) = self.seats.remove(&seat)
                {
                    held.revoke();
                }
                Ok(())
            }
            Delivery::Batch { stream, partition, epoch, records } => {
                let seat = self.seats.get(&(stream, partition)).filter(|seat| seat.epoch == epoch);
                let Some(seat) = seat.map(Arc::clone) else { return Ok(()) };
                self.shared.watch.reads();
                for record in records {
                    self.dispatch(record, &seat);
                }
                Ok(())
            }
        }
    }

    /// A partition came: it goes on where the inbox says, whatever the group's cursor.
    async fn assigned(&mut self, subscription: &mut dyn Subscription, cursor: Cursor) -> Result<()> {
        let Some(known) = self.known(&cursor).await else { return Ok(()) };
        let offset = known.unwrap_or(cursor.offset);
        if offset != cursor.offset {
            let to = SeekTo::Offset(offset);
            match subscription.seek(&cursor.stream, cursor.partition, to).await {
                // It is gone again already: that will be said.
                Err(error) if error.kind() == Kind::Busy => {}
                sought => sought?,
            }
        }
        self.shared.watch.reads();
        let seat = (Arc::clone(&cursor.stream), cursor.partition);
        if let Some(before) = self.seats.insert(seat, Seat::new(&cursor, offset)) {
            before.revoke();
        }
        Ok(())
    }

    /// What the inbox says of a partition; waits for its database. `None` when it is over.
    async fn known(&mut self, cursor: &Cursor) -> Option<Option<u64>> {
        let mut backoff = Backoff::new(self.shared.settings.retry_max);
        loop {
            let asked = self.shared.inbox.cursor(&self.shared.name, &cursor.stream, cursor.partition);
            match asked.await {
                Ok(known) => return Some(known),
                Err(error) if error.is_retryable() => {
                    self.shared.watch.stuck(&error.to_string());
                    tracing::warn!(consumer = %self.shared.name, %error, "the inbox's database is waited for");
                    if !self.shared.wait(backoff.next()).await {
                        return None;
                    }
                }
                Err(error) => {
                    self.shared.fail(error);
                    return None;
                }
            }
        }
    }

    fn dispatch(&mut self, record: Record, seat: &Arc<Seat>) {
        self.look_at_age(record.event.time);
        seat.read(record.offset);
        let key = order_key(self.shared.settings.order_by.as_ref(), &record.event);
        let room = self.room.take(record.event.size());
        let received = Received { record, attempt: 1 };
        let item = Item { received, key, seat: Arc::clone(seat), _room: room };
        let lane = self.hasher.hash_one(item.order()) as usize % self.lanes.len().max(1);
        if let Some(lane) = self.lanes.get(lane) {
            // A worker ends only when all does.
            let _ = lane.send(item);
        }
    }

    /// Events that are older than inbox rows may have been handled long ago: it is said, once.
    fn look_at_age(&mut self, time: Micros) {
        let retention = i64::try_from(self.shared.settings.retention.as_micros()).unwrap_or(i64::MAX);
        if !self.warned && time < clock::now().saturating_sub(retention) {
            self.warned = true;
            tracing::warn!(
                consumer = %self.shared.name,
                "events come that are older than inbox rows are kept: if they were handled before, they are handled \
                 again; give the consumer a longer retention"
            );
        }
    }

    /// Tells the bus how far the group has come.
    async fn commit(&mut self, subscription: &mut dyn Subscription) -> Result<()> {
        if let Err(error) = self.shared.flush(self.seats.values()).await {
            tracing::warn!(consumer = %self.shared.name, %error, "cursors are not written for now");
        }
        for seat in self.seats.values() {
            let Some(cursor) = seat.to_commit() else { continue };
            match subscription.commit(&cursor).await {
                Ok(()) => seat.committed(cursor.offset),
                // The inbox knows; the group's cursor follows when there is time.
                Err(error) if error.is_retryable() => {
                    tracing::debug!(consumer = %self.shared.name, %error, "a group's cursor stays behind");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The subscription is gone, and with it every partition.
    fn lose(&mut self) {
        self.subscription = None;
        self.seats.drain().for_each(|(_, seat)| seat.revoke());
    }

    /// What is begun is finished, and cursors are written.
    async fn end(mut self, mut workers: JoinSet<()>) {
        let finish = async { while workers.join_next().await.is_some() {} };
        tokio::select! {
            biased;
            () = finish => {}
            () = self.shared.cut_off() => {
                tracing::warn!(consumer = %self.shared.name, "handlers were cut off; their events come again");
            }
        }
        workers.shutdown().await;
        let Some(mut subscription) = self.subscription.take() else { return };
        // What is left of the time, and a moment where workers took all of it.
        let shared = self.shared;
        let over = async { tokio::join!(shared.cut_off(), tokio::time::sleep(MOMENT)) };
        let consumer = &*shared.name;
        tokio::select! {
            biased;
            committed = self.commit(&mut *subscription) => if let Err(error) = committed {
                tracing::warn!(consumer, %error, "a group's cursor stays behind");
            },
            _ = over => tracing::warn!(consumer, "a group's cursor stays behind: the bus does not answer"),
        }
    }
}
