//! One worker: the events of its keys, each key in order, and the keys that wait to be tried again.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use headwater_core::ports::{Inbox, Trouble};
use headwater_core::{Error, Kind};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::again::Again;
use super::attempt::Ended;
use super::hold::Hold;
use super::pace::Pace;
use super::waiting::{Waiting, crowd, size};
use super::{Failure, Handle, Item, Order, Shared, Then};
use crate::metrics;
use crate::pipeline::Backoff;

/// How many events that wait behind one that is set aside are set aside at once.
const ASIDE: usize = 100;

/// How often it is asked at the least whether others were handled while what failed together waits.
const LOOK: Duration = Duration::from_secs(1);

/// One worker.
pub(super) struct Lane<I, H> {
    shared: Arc<Shared<I, H>>,
    arriving: mpsc::UnboundedReceiver<Item>,
    /// What came and was not tried; per key before what arrives, behind what waits.
    ready: VecDeque<Item>,
    /// Keys whose first event failed.
    waiting: HashMap<Order, Waiting>,
    /// What failed together, in front of `ready`.
    hold: Hold,
    pace: Pace,
    backoff: Backoff,
    again: Again,
    /// The same for what failed together: keys that wait must not keep it from its turn, nor the other way round.
    again_together: Again,
}

impl<I, H> Lane<I, H>
where
    I: Inbox,
    H: Handle<I::Transaction>,
{
    pub(super) fn new(shared: Arc<Shared<I, H>>, arriving: mpsc::UnboundedReceiver<Item>) -> Self {
        let backoff = Backoff::new(shared.settings.retry_max.min(Duration::from_secs(5)));
        let (batch, one_call) = (shared.settings.batch, shared.settings.one_call);
        let pace = if one_call { Pace::even(batch) } else { Pace::new(batch) };
        let (ready, waiting, hold) = (VecDeque::new(), HashMap::new(), Hold::default());
        let (again, again_together) = (Again::new(&shared.settings), Again::new(&shared.settings));
        Self { shared, arriving, ready, waiting, hold, pace, backoff, again, again_together }
    }

    /// Works until it is over, or nothing can arrive any more. What is begun is finished.
    pub(super) async fn run(mut self) {
        while !self.shared.halt.is_cancelled() {
            if let Some(until) = self.hold.until() {
                self.again.rest();
                self.hold_on(until).await;
                continue;
            }
            self.make_room().await;
            let due = self.due();
            if let Some((until, order)) = &due
                && *until <= Instant::now()
            {
                self.try_again(order).await;
            }
            self.fill();
            if !self.ready.is_empty() {
                self.work().await;
            } else if !self.rest(due.map(|(until, _)| until)).await {
                return;
            }
        }
    }

    /// What failed together waits, and all else behind it; while others are handled, not for long.
    async fn hold_on(&mut self, until: Instant) {
        while let Ok(item) = self.arriving.try_recv() {
            self.ready.push_back(item);
        }
        let (handled, settings) = (self.shared.watch.count(), &self.shared.settings);
        let crowds = crowd(self.ready.len(), size(&self.ready), settings);
        if let Some(events) = self.hold.part(handled, crowds, settings) {
            tracing::warn!(consumer = %self.shared.name, events, "others get on: looking for the one at fault");
            self.again_together.rest();
            return;
        }
        let wait = until.saturating_duration_since(Instant::now());
        self.shared.wait(wait.min(LOOK)).await;
    }

    /// Keys that are to wait in memory no longer go on waiting in the inbox.
    async fn make_room(&mut self) {
        let (handled, settings) = (self.shared.watch.count(), &self.shared.settings);
        let gone = self.waiting.iter().filter(|(_, waiting)| waiting.is_to_go(handled, settings));
        let gone: Vec<Order> = gone.map(|(order, _)| order.clone()).collect();
        for waiting in gone.iter().filter_map(|order| self.waiting.remove(order)).collect::<Vec<_>>() {
            let again = waiting.wait();
            self.set_aside(waiting, Some(again)).await;
        }
    }

    /// The key that may be tried again next.
    fn due(&mut self) -> Option<(Instant, Order)> {
        let first = self.waiting.iter().min_by_key(|(_, waiting)| waiting.until);
        let first = first.map(|(order, waiting)| (waiting.until, order.clone()));
        if first.as_ref().is_none_or(|(until, _)| *until > Instant::now()) {
            self.again.rest();
        }
        first.map(|(until, order)| (until.max(self.again.from()), order))
    }

    /// Takes what has arrived, as much as a transaction may hold.
    fn fill(&mut self) {
        while self.ready.len() < self.pace.next()
            && let Ok(item) = self.arriving.try_recv()
        {
            self.ready.push_back(item);
        }
    }

    /// Waits for something to do; `false` when it is over.
    async fn rest(&mut self, until: Option<Instant>) -> bool {
        // Others may have succeeded meanwhile.
        let most = Instant::now() + self.shared.settings.retry_max;
        let due = async {
            match until {
                Some(until) => tokio::time::sleep_until(until.min(most)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.shared.halt.cancelled() => false,
            () = due => true,
            item = self.arriving.recv() => {
                let over = item.is_none();
                self.ready.extend(item);
                !over
            }
        }
    }

    /// Takes from the front what is tried together next. What is behind a key that waits goes there.
    fn take(&mut self) -> Vec<Item> {
        let mut count = self.ready.len().min(self.hold.next().unwrap_or_else(|| self.pace.next()));
        if self.shared.settings.one_call
            && let Some(first) = self.ready.front()
        {
            let seat = Arc::as_ptr(&first.seat);
            count = self.ready.iter().take(count).take_while(|item| Arc::as_ptr(&item.seat) == seat).count();
        }
        let mut items = Vec::with_capacity(count);
        for mut item in self.ready.drain(..count).filter(|item| !item.seat.is_revoked()) {
            match self.waiting.get_mut(&item.order()) {
                Some(waiting) => waiting.extend([item]),
                None => {
                    item.received.attempt = self.hold.attempts() + 1;
                    items.push(item);
                }
            }
        }
        if items.len() < count {
            self.hold.gone(count - items.len());
        }
        items
    }

    /// Tries what is ready, in one transaction.
    async fn work(&mut self) {
        let mut trying = None;
        if self.hold.attempts() > 0 {
            trying = self.again_together.begin(&self.shared);
            if trying.is_none() {
                return self.hold_on(self.again_together.from()).await;
            }
        } else {
            self.again_together.rest();
        }
        let items = self.take();
        if items.is_empty() {
            return;
        }
        let began = Instant::now();
        let ended = self.shared.attempt(&items, None).await;
        self.pace.took(items.len(), began.elapsed());
        // Not while anything is set aside, which may wait for room that others make with it.
        if let Some(trying) = trying {
            self.again_together.end(trying, &self.shared);
        }
        self.tried_together(items, ended).await;
    }

    /// Events were tried in one transaction.
    async fn tried_together(&mut self, items: Vec<Item>, ended: Ended) {
        match ended {
            Ended::Done => {
                self.backoff.reset();
                self.hold.gone(items.len());
            }
            Ended::Failed(failure, _) if items.len() == 1 => {
                self.hold.gone(1);
                self.failed(self.wait_with(items), failure).await;
            }
            Ended::Failed(failure, _) if self.shared.settings.one_call => self.together(items, failure),
            Ended::Failed(_, Some(place)) => self.apart(items, place).await,
            Ended::Failed(_, None) => {
                if let Err((left, error)) = self.one_by_one(items).await {
                    self.put_back(left);
                    self.away(&error).await;
                }
            }
            Ended::Away(error) => {
                self.put_back(items);
                self.away(&error).await;
            }
            Ended::Over => {}
        }
    }

    /// They went out as one call, which failed: for a while, or because of one of them.
    fn together(&mut self, items: Vec<Item>, failure: Failure) {
        let (count, error) = (items.len(), &failure.error);
        let consumer = Arc::clone(&self.shared.name);
        self.put_back(items);
        let wait = match failure.then {
            Then::Retry(after) => {
                self.shared.watch.failed(error);
                metrics::retried(&consumer);
                let (handled, shared) = (self.shared.watch.count(), &self.shared);
                self.hold.failed(count, handled, after, &shared.settings, &shared.troubled)
            }
            Then::Park => {
                self.hold.refused(count);
                None
            }
        };
        match wait {
            Some(wait) => {
                tracing::warn!(%consumer, events = count, error, ?wait, "trying them again together")
            }
            None => tracing::warn!(%consumer, events = count, error, "looking for the one at fault"),
        }
    }

    /// One of them failed: it is to be tried alone, whatever those before it had done to the transaction, and
    /// later ones of its key behind it. The others are tried together again.
    async fn apart(&mut self, mut items: Vec<Item>, mut place: usize) {
        let mut apart: HashMap<Order, VecDeque<Item>> = HashMap::new();
        while let Some(order) = items.get(place).map(Item::order) {
            let (mut others, mut alone) = (Vec::with_capacity(items.len()), VecDeque::new());
            for (at, item) in items.into_iter().enumerate() {
                if at >= place && item.order() == order { alone.push_back(item) } else { others.push(item) }
            }
            let behind = apart.entry(order).or_default();
            alone.append(behind);
            *behind = alone;
            items = others;
            if items.is_empty() || self.shared.halt.is_cancelled() {
                break;
            }
            match self.shared.attempt(&items, None).await {
                Ended::Done => break,
                Ended::Over => return,
                Ended::Failed(_, Some(next)) => place = next,
                Ended::Failed(_, None) => match self.one_by_one(items).await {
                    Ok(()) => break,
                    Err((left, error)) => {
                        // Behind what is before them of their keys.
                        self.put_back(
                            left.into_iter().chain(apart.into_values().flatten()).collect::<Vec<_>>(),
                        );
                        return self.away(&error).await;
                    }
                },
                Ended::Away(error) => {
                    self.put_back(items.into_iter().chain(apart.into_values().flatten()).collect::<Vec<_>>());
                    return self.away(&error).await;
                }
            }
        }
        for items in apart.into_values() {
            self.keep(self.wait_with(items));
        }
    }

    /// One of them fails, so each has a transaction of its own. Returns what was not tried while the database is
    /// away.
    async fn one_by_one(&mut self, items: Vec<Item>) -> Result<(), (VecDeque<Item>, Error)> {
        let mut left = VecDeque::from(items);
        while let Some(item) = left.pop_front() {
            if let Some(waiting) = self.waiting.get_mut(&item.order()) {
                waiting.extend([item]);
                continue;
            }
            let one = std::slice::from_ref(&item);
            match self.shared.attempt(one, None).await {
                Ended::Done => self.backoff.reset(),
                Ended::Over => return Ok(()),
                Ended::Failed(failure, _) => self.failed(self.wait_with([item]), failure).await,
                Ended::Away(error) => {
                    left.push_front(item);
                    return Err((left, error));
                }
            }
        }
        Ok(())
    }

    /// Tries the first event of a key that waited.
    async fn try_again(&mut self, order: &Order) {
        let Some(trying) = self.again.begin(&self.shared) else { return };
        let Some(mut waiting) = self.waiting.remove(order) else { return };
        waiting.clear();
        let attempt = waiting.trouble.attempts.saturating_add(1);
        let Some(item) = waiting.first() else { return };
        item.received.attempt = attempt;
        let ended = self.shared.attempt(std::slice::from_ref(item), None).await;
        // Not while it is set aside, which may wait for room that others make with it.
        self.again.end(trying, &self.shared);
        match ended {
            Ended::Done => {
                self.backoff.reset();
                self.put_back(waiting.into_items().into_iter().skip(1));
                // It may have gone behind one that is parked, and not to the handler.
                self.shared.fewer_fail();
            }
            Ended::Over => {}
            Ended::Failed(failure, _) => self.failed(waiting, failure).await,
            Ended::Away(error) => {
                self.waiting.insert(order.clone(), waiting);
                self.away(&error).await;
            }
        }
    }

    fn wait_with(&self, items: impl IntoIterator<Item = Item>) -> Waiting {
        Waiting::new(items, &self.shared.troubled)
    }

    /// The first event of a key has failed once more: the key waits, here or in the inbox, or is parked.
    async fn failed(&mut self, mut waiting: Waiting, failure: Failure) {
        let attempts = waiting.trouble.attempts.saturating_add(1);
        let Some(first) = waiting.first() else { return };
        let settings = &self.shared.settings;
        let event = &first.received.record.event;
        let (stream, id, error) = (&event.stream, event.id, &failure.error);
        let after = match failure.then {
            Then::Retry(after) if attempts < settings.attempts => after,
            _ => {
                tracing::error!(consumer = %self.shared.name, %stream, %id, attempts, error, "parked");
                waiting.trouble = Trouble { attempts, error: failure.error };
                return self.set_aside(waiting, None).await;
            }
        };
        self.shared.watch.failed(error);
        tracing::warn!(consumer = %self.shared.name, %stream, %id, attempts, error, "trying again");
        metrics::retried(&self.shared.name);
        let wait = settings.wait(attempts).max(after.unwrap_or_default());
        waiting.failed(failure.error, self.shared.watch.count(), wait);
        self.keep(waiting);
    }

    /// A key waits, and what comes of it is behind.
    fn keep(&mut self, mut waiting: Waiting) {
        let Some(order) = waiting.first().map(|first| first.order()) else { return };
        match self.waiting.get_mut(&order) {
            Some(other) => other.extend(waiting.into_items()),
            None => drop(self.waiting.insert(order, waiting)),
        }
    }

    /// Sets aside the first event of a key, and then the others behind it. Those that are not written, because it is
    /// over or because the database does not take them, go on waiting here: nothing of their key passes them.
    async fn set_aside(&mut self, mut waiting: Waiting, mut again: Option<Duration>) {
        let parks = again.is_none();
        let mut some = waiting.take(1);
        while !some.is_empty() {
            if let Err(wait) = self.write_aside(&some, &waiting.trouble, again).await {
                waiting.put_back(some, wait);
                return self.keep(waiting);
            }
            // Should the first have gone meanwhile, they may be tried at once.
            waiting.trouble = Trouble { attempts: 0, error: "it waited behind one that failed".to_owned() };
            again = Some(Duration::ZERO);
            waiting.clear();
            some = waiting.take(ASIDE);
        }
        // It counts as one in trouble no longer.
        drop(waiting);
        if parks {
            self.shared.fewer_fail();
        }
    }

    /// Sets aside events of one key, in one transaction, however long the database is away. An error is how long they
    /// have to wait because it does not take them; nothing where it is over.
    async fn write_aside(
        &mut self,
        items: &[Item],
        trouble: &Trouble,
        again: Option<Duration>,
    ) -> Result<(), Duration> {
        let first = items.first().map(|first| first.received.id());
        while !self.shared.halt.is_cancelled() {
            match self.shared.attempt(items, Some((trouble, again))).await {
                Ended::Done => return Ok(()),
                Ended::Over => break,
                Ended::Failed(failure, _) => return Err(self.cannot_be_parked(&failure.error)),
                Ended::Away(error) if self.shared.is_of_the_event(&error, first).await => {
                    return Err(self.cannot_be_parked(&error.to_string()));
                }
                Ended::Away(error) => self.away(&error).await,
            }
        }
        Err(Duration::ZERO)
    }

    /// How long a key waits that cannot be parked.
    fn cannot_be_parked(&self, error: &str) -> Duration {
        tracing::error!(consumer = %self.shared.name, error, "an event cannot be parked");
        self.shared.watch.failed(error);
        self.shared.settings.retry_max
    }

    /// To be tried before all else.
    fn put_back(&mut self, items: impl IntoIterator<Item = Item, IntoIter: DoubleEndedIterator>) {
        for item in items.into_iter().rev() {
            self.ready.push_front(item);
        }
    }

    /// The database is away: waits a little.
    async fn away(&mut self, error: &Error) {
        let wait = self.backoff.next();
        self.shared.watch.failed(&error.to_string());
        if error.kind() == Kind::Full {
            self.shared.watch.full(&error.to_string());
            tracing::error!(consumer = %self.shared.name, %error, ?wait, "room is waited for");
        } else {
            tracing::warn!(consumer = %self.shared.name, %error, ?wait, "the inbox's database is waited for");
        }
        self.shared.wait(wait).await;
    }
}
