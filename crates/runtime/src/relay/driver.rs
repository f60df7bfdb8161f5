//! One relay's loop: leases, claims, settling.

mod leasing;
mod reaching;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_core::ports::{Claim, ClaimLimit, Claimed, ClaimedRow, Lane, Lease, Settled};
use headwater_core::{Error, Kind, Result};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::RelayTask;
use super::held::{Held, Stage};
use super::lane::{Done, Report, What, Work};
use super::pace::Pace;
use super::rows::Blocked;
use crate::pipeline::Backoff;
use reaching::Reaching;

/// Rows of a lane that may be on their way, in batches.
const AHEAD: usize = 4;

/// How often a lane with blocked keys asks whether they still are.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What becomes of rows is written down together, so often at most: each time waits for the database's disk.
const TOGETHER: Duration = Duration::from_millis(10);

/// How often old rows are looked for.
const CLEAN: Duration = Duration::from_secs(10);

/// How long the database may take for an answer, in leases. One that has vanished gives none: it is asked again over
/// another connection.
const PATIENCE: u32 = 3;

/// How long a look may take at the most. Each that was given up may have been merely long, as where an old transaction
/// keeps what was published: the next has twice the time.
const LONGEST_LOOK: Duration = Duration::from_mins(10);

/// A question to the store that is under way, if one is.
type Asking<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// What is asked of the store and tried again: each at its own distances, as one may be refused while others are not.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Leases,
    Rows,
    Settling,
}

/// One relay at work.
pub struct Driver {
    task: RelayTask,
    relay: String,
    lanes: BTreeMap<Lane, Held>,
    /// Leases whose lane failed, and when to run it again.
    resting: BTreeMap<Lane, (Lease, Instant, Backoff)>,
    /// Lanes that are given back once they are idle, with their epochs: what was said of them had no answer, and may
    /// arrive as long as the epoch is the same, when other things are true.
    doubtful: BTreeMap<Lane, u64>,
    reports: (mpsc::UnboundedSender<Report>, mpsc::UnboundedReceiver<Report>),
    runs: u64,
    /// What is to be written down, in order.
    queue: Vec<Settled>,
    /// How many rows of a lane are in the queue, or are being written down.
    unwritten: BTreeMap<Lane, usize>,
    settling: Asking<(Vec<Settled>, Result<Vec<Lane>>)>,
    claiming: Asking<(Vec<Claim>, Result<Claimed>)>,
    /// How many lanes had been run when it began: what it read is not for later ones.
    claimed_at: u64,
    /// How long a look may take now.
    look_patience: Duration,
    leasing: Asking<Result<Vec<Lease>>>,
    /// It was said with that that this relay leaves, and as one that leaves it is answered.
    left: bool,
    /// What is given back with that, with the epochs.
    releasing: Vec<(Lane, u64)>,
    cleaning: Asking<Result<u64>>,
    reaching: Reaching,
    pace: Pace,
    look_at: Instant,
    /// Nothing that comes is looked for before: looks that take long are to leave the database time for others.
    soonest: Instant,
    looked: Instant,
    /// There may be rows that came after the last look began.
    news: bool,
    /// The last look found that there is more.
    hungry: bool,
    turn: usize,
    renew_at: Instant,
    /// When the renewal began that is under way, if one is.
    renewing: Option<Instant>,
    /// When to look for lanes that are free.
    share_at: Instant,
    /// Until when the leases are ours, by our own clock.
    ours_until: Instant,
    clean_at: Instant,
    settle_at: Instant,
    backoffs: [Backoff; 3],
    stopping: Option<Instant>,
}

impl Driver {
    /// A relay that holds nothing yet.
    pub fn new(task: RelayTask) -> Self {
        let relay = leasing::own_name(task.relay.name.as_deref());
        let now = Instant::now();
        let look_patience = task.relay.lease.saturating_mul(PATIENCE);
        let pace = Pace::new(task.relay.poll);
        let backoffs = [(); 3].map(|()| Backoff::new(task.settings.retry_max));
        let reaching = Reaching::new(now, task.settings.retry_max);
        Self {
            task,
            relay,
            lanes: BTreeMap::new(),
            resting: BTreeMap::new(),
            doubtful: BTreeMap::new(),
            reports: mpsc::unbounded_channel(),
            runs: 0,
            queue: Vec::new(),
            unwritten: BTreeMap::new(),
            settling: None,
            claiming: None,
            claimed_at: 0,
            look_patience,
            leasing: None,
            left: false,
            releasing: Vec::new(),
            cleaning: None,
            reaching,
            pace,
            look_at: now,
            soonest: now,
            looked: now,
            news: false,
            hungry: false,
            turn: 0,
            renew_at: now,
            renewing: None,
            share_at: now,
            ours_until: now,
            clean_at: now + CLEAN,
            settle_at: now,
            backoffs,
            stopping: None,
        }
    }

    /// Runs until `stop`, and until what is on its way has arrived then.
    pub async fn run(mut self, stop: CancellationToken) -> Result<()> {
        self.task.board.connecting();
        loop {
            let now = Instant::now();
            if self.stopping.is_none() && stop.is_cancelled() {
                self.stopping = Some(now + self.task.settings.drain_timeout);
            }
            if let Some(until) = self.stopping
                && (self.is_idle() || now >= until)
            {
                return self.end().await;
            }
            self.start(now);
            let sleep = self.wake_at(now).saturating_duration_since(now);
            tokio::select! {
                biased;
                Some(report) = self.reports.1.recv() => self.heard(report),
                (queue, lost) = ready(&mut self.settling) => self.settled(queue, lost)?,
                leases = ready(&mut self.leasing) => self.leased(leases)?,
                (claims, claimed) = ready(&mut self.claiming) => self.claimed(&claims, claimed)?,
                cleaned = ready(&mut self.cleaning) => self.cleaned(cleaned),
                reached = ready(&mut self.reaching.asking) => self.reached(reached),
                () = stop.cancelled(), if self.stopping.is_none() => {}
                news = self.task.store.wait(sleep) => self.told(news),
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.settling.is_none() && self.lanes.values().all(Held::can_go)
    }

    /// Starts whatever is due and not under way.
    fn start(&mut self, now: Instant) {
        while let Ok(report) = self.reports.1.try_recv() {
            self.heard(report);
        }
        if now >= self.ours_until && !(self.lanes.is_empty() && self.resting.is_empty()) {
            tracing::warn!(source = %self.task.name, "the leases of this relay could not be renewed in time");
            self.lanes.clear();
            self.resting.clear();
            self.show();
        }
        self.lanes.values_mut().for_each(|held| held.advance(now));
        self.start_lanes(now);
        self.start_reaching(now);
        self.start_leasing(now);
        self.start_settling(now);
        self.start_claiming(now);
        if self.cleaning.is_none() && now >= self.clean_at && self.stopping.is_none() {
            let (store, retention, patience) =
                (Arc::clone(&self.task.store), self.task.relay.retention, self.patience());
            self.cleaning = Some(Box::pin(in_time(patience, async move { store.clean(retention).await })));
        }
    }

    /// When something is due next.
    fn wake_at(&self, now: Instant) -> Instant {
        let mut at = now + Duration::from_secs(1);
        let mut sooner = |then: Instant, free: bool| {
            if free && then < at {
                at = then
            }
        };
        sooner(self.renew_at, self.leasing.is_none() && self.asks_for_lanes());
        sooner(self.share_at, self.leasing.is_none() && self.asks_for_lanes() && self.stopping.is_none());
        sooner(self.reaching.at, self.reaching.is_due() && self.stopping.is_none());
        sooner(self.look_at, self.claiming.is_none() && !self.is_leaving());
        sooner(self.settle_at, self.settling.is_none() && !self.queue.is_empty());
        sooner(self.clean_at, self.cleaning.is_none() && self.stopping.is_none());
        for (lease, at, _) in self.resting.values() {
            sooner(*at, self.may_begin(lease));
        }
        if let Some(until) = self.stopping {
            sooner(until, true);
        }
        at.max(now)
    }

    fn start_settling(&mut self, now: Instant) {
        if self.settling.is_some() || self.queue.is_empty() || now < self.settle_at {
            return;
        }
        let (store, relay, queue) =
            (Arc::clone(&self.task.store), self.relay.clone(), std::mem::take(&mut self.queue));
        let patience = self.patience();
        self.settle_at = now + TOGETHER;
        self.settling = Some(Box::pin(async move {
            let lost = in_time(patience, store.settle(&relay, &queue)).await;
            (queue, lost)
        }));
    }

    fn patience(&self) -> Duration {
        self.task.relay.lease.saturating_mul(PATIENCE)
    }

    /// How many bytes may be claimed now: all that is claimed and not settled has its bound (invariant 7).
    fn room(&self) -> usize {
        let most = self.task.settings.in_flight_bytes as usize;
        let known: usize = self.lanes.values().map(|held| held.bytes).sum();
        most.saturating_sub(known).min(most / 4)
    }

    fn start_claiming(&mut self, now: Instant) {
        if self.claiming.is_some() || now < self.look_at || self.is_leaving() {
            return;
        }
        let all = self.pace.is_from_beginning(now);
        let retries = self.pace.retries(now);
        let most = self.task.relay.batch * AHEAD;
        let mut claims: Vec<Claim> =
            self.lanes.values().filter_map(|held| held.claim(all, retries, most)).collect();
        let bytes = self.room();
        if claims.is_empty() || bytes == 0 {
            self.pace.found_nothing();
            self.look_at = now + self.pace.pause();
            return;
        }
        // Each lane is the first in turn: the limit in bytes may be reached before the last.
        self.turn += 1;
        let turn = self.turn % claims.len();
        claims.rotate_left(turn);
        let limit = ClaimLimit { rows: self.task.relay.batch, bytes };
        let (store, patience) = (Arc::clone(&self.task.store), self.look_patience);
        (self.looked, self.claimed_at, self.news) = (now, self.runs, false);
        self.claiming = Some(Box::pin(async move {
            let claimed = in_time(patience, store.claim(&claims, limit)).await;
            (claims, claimed)
        }));
    }
}

/// What is done with answers.
impl Driver {
    /// The store has waited.
    fn told(&mut self, news: bool) {
        if news {
            self.news = true;
            self.look_soon();
        }
    }

    /// There may be something to find now.
    fn look_soon(&mut self) {
        self.look_at = self.look_at.min(self.soonest.max(Instant::now()));
    }

    fn heard(&mut self, report: Report) {
        let held = self.lanes.get_mut(&report.lane).filter(|held| held.run == report.run);
        match report.what {
            What::Ready => {
                if let Some(held) = held {
                    tracing::debug!(source = %self.task.name, lane = report.lane, "a lane's rows are claimed now");
                    held.stage = Stage::Resuming;
                    self.look_at = Instant::now();
                }
            }
            What::Done(done) => self.done(report.lane, done),
            What::Failed(error) if held.is_some() => self.failed(report.lane, error),
            What::Failed(_) => {}
        }
        self.show();
    }

    /// Rows are durable, or have been tried in vain. That is written down whoever asked for it: a run that
    /// ended since has published them all the same.
    fn done(&mut self, lane: Lane, done: Done) {
        let (events, bytes) = &done.counted;
        self.task.board.published(&self.task.name, events, *bytes);
        if !done.settled.is_empty() {
            *self.unwritten.entry(lane).or_default() += done.settled.len();
        }
        self.queue.extend(done.settled);
        if let Some((.., backoff)) = self.resting.get_mut(&lane) {
            backoff.reset();
        }
        let Some(held) = self.lanes.get_mut(&lane) else { return };
        held.blocked = done.blocked;
        let ask_again = (done.blocked > 0).then(|| Instant::now() + ASK_AGAIN);
        held.ask_again = held.ask_again.or(ask_again);
        if done.unblocks && held.stage == Stage::Working {
            held.stage = Stage::Quiescing;
        }
    }

    fn failed(&mut self, lane: Lane, error: Error) {
        tracing::warn!(source = %self.task.name, lane, %error, "a lane begins again");
        let Some(held) = self.lanes.remove(&lane) else { return };
        let fresh = || (held.lease, Instant::now(), Backoff::new(self.task.settings.retry_max));
        let (lease, at, backoff) = self.resting.entry(lane).or_insert_with(fresh);
        (*lease, *at) = (held.lease, Instant::now() + backoff.next());
        self.reaching.doubt();
        ::metrics::counter!("headwater_retries_total", "source" => self.task.name.to_string()).increment(1);
        self.task.board.retrying(&error, backoff.attempts());
    }

    fn settled(&mut self, queue: Vec<Settled>, lost: Result<Vec<Lane>>) -> Result<()> {
        let Some(lost) = self.answer(Asked::Settling, lost)? else {
            self.doubt(&queue);
            // Before what was queued meanwhile: within a lane rows are written down in order.
            self.queue.splice(0..0, queue);
            self.settle_at = Instant::now() + self.backoff(Asked::Settling).next();
            return Ok(());
        };
        for lane in lost {
            let stale = queue.iter().filter(|one| one.lane == lane).map(|one| one.epoch).max();
            tracing::warn!(source = %self.task.name, lane, "another relay has taken the lane over");
            if self.lanes.get(&lane).is_some_and(|held| Some(held.lease.epoch) == stale) {
                self.lanes.remove(&lane);
            }
            if self.resting.get(&lane).is_some_and(|(lease, ..)| Some(lease.epoch) == stale) {
                self.resting.remove(&lane);
            }
        }
        for one in &queue {
            if let Some(rows) = self.unwritten.get_mut(&one.lane) {
                *rows = rows.saturating_sub(1);
            }
            // What was said under another epoch was not written down.
            let held = self.lanes.get_mut(&one.lane).filter(|held| held.lease.epoch == one.epoch);
            if let Some(held) = held {
                held.settled(one, self.claiming.is_some());
            }
        }
        self.unwritten.retain(|_, rows| *rows > 0);
        if self.hungry || self.news {
            // There is room again.
            self.look_soon();
        }
        self.show();
        Ok(())
    }

    /// Nobody answered this, and it will be said again. Nothing more is claimed of these lanes under their epoch.
    fn doubt(&mut self, queue: &[Settled]) {
        let named: BTreeSet<(Lane, u64)> = queue.iter().map(|one| (one.lane, one.epoch)).collect();
        for (lane, epoch) in named {
            let held = self.lanes.get_mut(&lane).map(|held| &mut held.lease);
            let resting = self.resting.get_mut(&lane).map(|(lease, ..)| lease);
            for lease in held.into_iter().chain(resting).filter(|lease| lease.epoch == epoch) {
                lease.wanted = true;
                self.doubtful.insert(lane, epoch);
            }
        }
    }

    fn claimed(&mut self, claims: &[Claim], claimed: Result<Claimed>) -> Result<()> {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.looked);
        let claimed = self.answer(Asked::Rows, claimed)?;
        self.learn(claims, now, took, claimed.is_some());
        let found = claimed.map(|claimed| self.hand_out(claims, claimed));
        self.lanes.values_mut().for_each(Held::forget);
        let Some(found) = found else {
            self.soonest = now + self.backoff(Asked::Rows).next();
            self.look_at = self.soonest;
            return Ok(());
        };
        self.hungry = found.unwrap_or(self.hungry);
        match found {
            Some(more) => self.pace.found(more, took),
            None if self.news => self.pace.found(false, took),
            None => self.pace.found_nothing(),
        }
        self.look_at = now + self.pace.pause();
        self.soonest = self.look_at.min(now + took);
        Ok(())
    }

    /// How long looks take: those from the beginning longest.
    fn learn(&mut self, claims: &[Claim], now: Instant, took: Duration, answered: bool) {
        let (least, given_up) = (self.patience(), !answered && took >= self.look_patience);
        let longest = LONGEST_LOOK.max(least);
        if given_up {
            self.look_patience = self.look_patience.saturating_mul(2).min(longest);
        } else if answered && claims.iter().any(|claim| claim.above == 0) {
            self.look_patience = took.saturating_mul(2).clamp(least, longest);
        }
        if (answered || given_up) && claims.iter().all(|claim| claim.above == 0) {
            self.pace.looked_from_beginning(now, took);
        }
    }

    /// Gives each lane its rows. Returns whether there is more, if there was anything.
    fn hand_out(&mut self, claims: &[Claim], claimed: Claimed) -> Option<bool> {
        let Claimed { table, rows, horizon, blocked, resuming, more } = claimed;
        let mut by_lane: BTreeMap<Lane, Vec<ClaimedRow>> = BTreeMap::new();
        for row in rows {
            by_lane.entry(row.lane).or_default().push(row);
        }
        let mut found = None;
        for claim in claims {
            let begun = self.lanes.get_mut(&claim.lane).filter(|held| held.run <= self.claimed_at);
            let Some(held) = begun else { continue };
            if resuming.contains(&claim.lane) {
                found = Some(true);
                continue;
            }
            if held.stage == Stage::Resuming && claim.resume {
                let ours = blocked.iter().filter(|(lane, _)| *lane == claim.lane);
                let keys: Blocked = ours.map(|(_, key)| key.clone()).collect();
                (held.blocked, held.above, held.stage) = (keys.len(), 0, Stage::Working);
                held.ask_again = (!keys.is_empty()).then(|| Instant::now() + ASK_AGAIN);
                // Nobody listens only when it has failed, of which it has told.
                held.inbox.send(Work::Blocked(keys)).ok();
            } else if held.stage != Stage::Working || claim.resume {
                continue;
            }
            let full = more.contains(&claim.lane);
            let fresh = held.take(by_lane.remove(&claim.lane).unwrap_or_default(), horizon, full);
            if claim.above == 0 && claim.retries && !full {
                held.seen_all();
            }
            if let (Some(table), false) = (&table, fresh.is_empty()) {
                let mut state = self.task.board.lock();
                state.oldest = state.oldest.or(fresh.iter().map(|row| row.created_at).min());
                drop(state);
                found = Some(found.unwrap_or(false) || full);
                held.inbox.send(Work::Rows(Arc::clone(table), fresh)).ok();
            }
        }
        found
    }

    fn cleaned(&mut self, cleaned: Result<u64>) {
        let pause = match cleaned {
            Ok(0) => CLEAN,
            Ok(_) => Duration::ZERO,
            Err(error) => {
                tracing::warn!(source = %self.task.name, %error, "old rows were not deleted; trying again");
                CLEAN
            }
        };
        self.clean_at = Instant::now() + pause;
    }

    /// An answer; `None` when the store did not give one and may give it later.
    fn answer<T>(&mut self, asked: Asked, answer: Result<T>) -> Result<Option<T>> {
        match answer {
            Ok(answer) => {
                if self.backoff(asked).attempts() > 0 {
                    // It is back, for the others as well.
                    self.backoff(asked).reset();
                    let now = Instant::now();
                    (self.look_at, self.settle_at) = (self.look_at.min(now), self.settle_at.min(now));
                }
                Ok(Some(answer))
            }
            Err(error) if error.is_retryable() => {
                tracing::warn!(source = %self.task.name, %error, "trying again");
                let attempts = self.backoff(asked).attempts();
                self.task.board.retrying(&error, attempts);
                Ok(None)
            }
            Err(error) => {
                tracing::error!(source = %self.task.name, %error, "relay failed");
                Err(error)
            }
        }
    }

    fn backoff(&mut self, asked: Asked) -> &mut Backoff {
        let [leases, rows, settling] = &mut self.backoffs;
        match asked {
            Asked::Leases => leases,
            Asked::Rows => rows,
            Asked::Settling => settling,
        }
    }

    /// Says how it is doing.
    fn show(&self) {
        let board = &self.task.board;
        board.lock().lanes = self.lanes.len() as u32;
        let opening = self.lanes.values().any(|held| held.stage == Stage::Opening);
        if opening
            || self.reaching.is_away()
            || self.resting.keys().any(|lane| !self.lanes.contains_key(lane))
        {
            return;
        }
        board.open();
        if self.lanes.values().all(|held| held.known.is_empty()) {
            let mut state = board.lock();
            (state.oldest, state.idle_at) = (None, Some(crate::clock::now()));
        }
    }
}

/// Waits for the answer to a question; for ever where there is none.
async fn ready<T>(asking: &mut Asking<T>) -> T {
    match asking {
        None => std::future::pending().await,
        Some(answer) => {
            let answer = answer.await;
            *asking = None;
            answer
        }
    }
}

/// An answer, or an error of kind `Unavailable` when it takes too long.
async fn in_time<T>(patience: Duration, answer: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| {
        let doing = format!("the database has not answered for {patience:?}");
        Err(Error::new(Kind::Unavailable, doing).hint("it is asked again over another connection"))
    };
    tokio::time::timeout(patience, answer).await.unwrap_or_else(late)
}
