//! One relay's loop: leases, claims, settling.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_core::ports::{Claim, ClaimLimit, Claimed, ClaimedRow, Lane, Lease, LeaseAsk, Settled};
use headwater_core::{Error, Kind, Result};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::RelayTask;
use super::held::{Held, Stage};
use super::lane::{Done, LaneTask, Report, Unsettled, What, Work};
use super::pace::Pace;
use super::rows::{Blocked, Patience};
use crate::pipeline::Backoff;

/// Rows of a lane that may be on their way, in batches.
const AHEAD: usize = 4;

/// How often a lane with blocked keys asks whether they still are.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What becomes of rows is written down together, so often at most: each time waits for the database's disk.
const TOGETHER: Duration = Duration::from_millis(10);

/// How often old rows are looked for.
const CLEAN: Duration = Duration::from_secs(10);

/// A question to the store that is under way, if one is.
type Asking<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// One relay at work.
pub struct Driver {
    task: RelayTask,
    relay: String,
    lanes: BTreeMap<Lane, Held>,
    /// Leases whose lane failed, and when to run it again.
    resting: BTreeMap<Lane, (Lease, Instant, Backoff)>,
    reports: (mpsc::UnboundedSender<Report>, mpsc::UnboundedReceiver<Report>),
    runs: u64,
    /// What is to be written down, in order.
    queue: Vec<Settled>,
    settling: Asking<(Vec<Settled>, Result<Vec<Lane>>)>,
    claiming: Asking<(Vec<Claim>, Result<Claimed>)>,
    leasing: Asking<Result<Vec<Lease>>>,
    cleaning: Asking<Result<u64>>,
    pace: Pace,
    look_at: Instant,
    looked: Instant,
    /// The last look found that there is more.
    hungry: bool,
    turn: usize,
    renew_at: Instant,
    asked_at: Instant,
    /// Until when the leases are ours, by our own clock.
    ours_until: Instant,
    clean_at: Instant,
    settle_at: Instant,
    backoff: Backoff,
    stopping: Option<Instant>,
}

impl Driver {
    /// A relay that holds nothing yet.
    pub fn new(task: RelayTask) -> Self {
        let relay = own_name(task.relay.name.as_deref());
        let now = Instant::now();
        let (pace, backoff) = (Pace::new(task.relay.poll), Backoff::new(task.settings.retry_max));
        Self {
            task,
            relay,
            lanes: BTreeMap::new(),
            resting: BTreeMap::new(),
            reports: mpsc::unbounded_channel(),
            runs: 0,
            queue: Vec::new(),
            settling: None,
            claiming: None,
            leasing: None,
            cleaning: None,
            pace,
            look_at: now,
            looked: now,
            hungry: false,
            turn: 0,
            renew_at: now,
            asked_at: now,
            ours_until: now,
            clean_at: now + CLEAN,
            settle_at: now,
            backoff,
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
                () = stop.cancelled(), if self.stopping.is_none() => {}
                () = self.task.store.wait(sleep) => {
                    if Instant::now() < now + sleep {
                        self.look_at = Instant::now();
                    }
                }
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty()
            && self.settling.is_none()
            && self.lanes.values().all(|held| held.known.is_empty())
    }

    /// Starts whatever is due and not under way.
    fn start(&mut self, now: Instant) {
        if now >= self.ours_until && !self.lanes.is_empty() {
            tracing::warn!(source = %self.task.name, "the leases of this relay could not be renewed in time");
            self.lanes.clear();
            self.resting.clear();
            self.show();
        }
        self.lanes.values_mut().for_each(|held| held.advance(now));
        self.start_lanes(now);
        self.start_leasing(now);
        self.start_settling(now);
        self.start_claiming(now);
        if self.cleaning.is_none() && now >= self.clean_at && self.stopping.is_none() {
            let (store, retention) = (Arc::clone(&self.task.store), self.task.relay.retention);
            self.cleaning = Some(Box::pin(async move { store.clean(retention).await }));
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
        sooner(self.renew_at, self.leasing.is_none());
        sooner(self.look_at, self.claiming.is_none() && self.stopping.is_none());
        sooner(self.settle_at, self.settling.is_none() && !self.queue.is_empty());
        sooner(self.clean_at, self.cleaning.is_none() && self.stopping.is_none());
        let rests = |lane: &Lane| !self.lanes.contains_key(lane) && self.stopping.is_none();
        for (_, (_, at, _)) in self.resting.iter().filter(|(lane, _)| rests(lane)) {
            sooner(*at, true);
        }
        if let Some(until) = self.stopping {
            sooner(until, true);
        }
        at.max(now)
    }

    fn start_leasing(&mut self, now: Instant) {
        let release: Vec<Lane> = self.lanes.values().filter(|held| held.can_go()).map(Held::lane).collect();
        if self.leasing.is_some() || now < self.renew_at && release.is_empty() {
            return;
        }
        for lane in &release {
            self.lanes.remove(lane);
            self.resting.remove(lane);
        }
        let ask = LeaseAsk { relay: self.relay.clone(), ttl: self.task.relay.lease, release, leaving: false };
        let store = Arc::clone(&self.task.store);
        self.asked_at = now;
        self.renew_at = now + self.task.relay.lease / 4;
        self.leasing = Some(Box::pin(async move { store.lease(&ask).await }));
    }

    fn start_settling(&mut self, now: Instant) {
        if self.settling.is_some() || self.queue.is_empty() || now < self.settle_at {
            return;
        }
        let (store, relay, queue) =
            (Arc::clone(&self.task.store), self.relay.clone(), std::mem::take(&mut self.queue));
        self.settle_at = now + TOGETHER;
        self.settling = Some(Box::pin(async move {
            let lost = store.settle(&relay, &queue).await;
            (queue, lost)
        }));
    }

    /// How many bytes may be claimed now: all that is claimed and not settled has its bound (invariant 7).
    fn room(&self) -> usize {
        let most = self.task.settings.in_flight_bytes as usize;
        let known: usize = self.lanes.values().map(|held| held.bytes).sum();
        most.saturating_sub(known).min(most / 4)
    }

    fn start_claiming(&mut self, now: Instant) {
        if self.claiming.is_some() || now < self.look_at || self.stopping.is_some() {
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
        let store = Arc::clone(&self.task.store);
        self.looked = now;
        self.claiming = Some(Box::pin(async move {
            let claimed = store.claim(&claims, limit).await;
            (claims, claimed)
        }));
    }
}

/// What is done with answers.
impl Driver {
    fn leased(&mut self, leases: Result<Vec<Lease>>) -> Result<()> {
        let leases = match self.answer(leases)? {
            Some(leases) => leases,
            None => {
                self.renew_at = self.renew_at.min(Instant::now() + self.backoff.next());
                return Ok(());
            }
        };
        self.ours_until = self.asked_at + self.task.relay.lease;
        let now = Instant::now();
        let ours: HashMap<Lane, Lease> = leases.iter().map(|lease| (lease.lane, *lease)).collect();
        let same = |lane: &Lane, epoch: u64| ours.get(lane).is_some_and(|lease| lease.epoch == epoch);
        self.lanes.retain(|lane, held| same(lane, held.lease.epoch));
        self.resting.retain(|lane, (lease, ..)| same(lane, lease.epoch));
        for lease in leases {
            match self.lanes.get_mut(&lease.lane) {
                Some(held) => held.lease = lease,
                None if self.stopping.is_none() => {
                    let rest = || (lease, now, Backoff::new(self.task.settings.retry_max));
                    self.resting.entry(lease.lane).or_insert_with(rest).0 = lease;
                }
                None => {}
            }
        }
        self.show();
        Ok(())
    }

    /// Runs the lanes that are ours and do not run. Not before all that an earlier run of one published
    /// is written down: what it claims would come twice.
    fn start_lanes(&mut self, now: Instant) {
        let all_written = self.settling.is_none() && self.queue.is_empty() && self.reports.1.is_empty();
        if self.stopping.is_some() || !all_written {
            return;
        }
        let due = |(lane, (_, at, _)): (&Lane, &(Lease, Instant, Backoff))| (now >= *at).then_some(*lane);
        let due: Vec<Lane> =
            self.resting.iter().filter_map(due).filter(|lane| !self.lanes.contains_key(lane)).collect();
        for lane in due {
            if let Some((lease, ..)) = self.resting.get(&lane) {
                let held = self.start_lane(*lease);
                self.lanes.insert(lane, held);
            }
        }
    }

    fn start_lane(&mut self, lease: Lease) -> Held {
        self.runs += 1;
        let (inbox, work) = mpsc::unbounded_channel();
        let unsettled = Unsettled::default();
        let task = LaneTask {
            lane: lease.lane,
            epoch: lease.epoch,
            run: self.runs,
            source: Arc::clone(&self.task.name),
            bus: Arc::clone(&self.task.bus),
            routes: Arc::clone(&self.task.routes),
            specs: self.task.specs.clone(),
            origin: Arc::clone(&self.task.origin),
            patience: Patience { attempts: self.task.relay.attempts, longest: self.task.settings.retry_max },
            unsettled: unsettled.clone(),
            inbox: work,
            reports: self.reports.0.clone(),
        };
        Held {
            lease,
            run: self.runs,
            stage: Stage::Opening,
            known: Default::default(),
            bytes: 0,
            gone: Vec::new(),
            above: 0,
            unsettled,
            inherited: true,
            blocked: 0,
            ask_again: None,
            inbox,
            _task: AbortOnDropHandle::new(tokio::spawn(task.run())),
        }
    }

    fn heard(&mut self, report: Report) {
        let held = self.lanes.get_mut(&report.lane).filter(|held| held.run == report.run);
        match report.what {
            What::Ready => {
                if let Some(held) = held {
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
        ::metrics::counter!("headwater_retries_total", "source" => self.task.name.to_string()).increment(1);
        self.task.board.retrying(&error, backoff.attempts());
    }

    fn settled(&mut self, queue: Vec<Settled>, lost: Result<Vec<Lane>>) -> Result<()> {
        let Some(lost) = self.answer(lost)? else {
            // Before what was queued meanwhile: within a lane rows are written down in order.
            self.queue.splice(0..0, queue);
            self.settle_at = Instant::now() + self.backoff.next();
            return Ok(());
        };
        for lane in lost {
            let stale = queue.iter().find(|one| one.lane == lane).map(|one| one.epoch);
            tracing::warn!(source = %self.task.name, lane, "another relay has taken the lane over");
            if self.lanes.get(&lane).is_some_and(|held| Some(held.lease.epoch) == stale) {
                self.lanes.remove(&lane);
                self.resting.remove(&lane);
            }
        }
        for one in &queue {
            if let Some(held) = self.lanes.get_mut(&one.lane) {
                held.settled(one, self.claiming.is_some());
            }
        }
        if self.hungry {
            // There is room again.
            self.look_at = Instant::now();
        }
        self.show();
        Ok(())
    }

    fn claimed(&mut self, claims: &[Claim], claimed: Result<Claimed>) -> Result<()> {
        let now = Instant::now();
        let claimed = self.answer(claimed)?;
        let found = claimed.map(|claimed| self.hand_out(claims, claimed));
        self.lanes.values_mut().for_each(Held::forget);
        let Some(found) = found else {
            self.look_at = now + self.backoff.next();
            return Ok(());
        };
        let took = now.saturating_duration_since(self.looked);
        if claims.iter().all(|claim| claim.above == 0) {
            self.pace.looked_from_beginning(now, took);
        }
        self.hungry = found.unwrap_or(self.hungry);
        match found {
            Some(more) => self.pace.found(more, took),
            None => self.pace.found_nothing(),
        }
        self.look_at = now + self.pace.pause();
        Ok(())
    }

    /// Gives each lane its rows. Returns whether there is more, if there was anything.
    fn hand_out(&mut self, claims: &[Claim], claimed: Claimed) -> Option<bool> {
        let Claimed { table, rows, horizon, blocked, more } = claimed;
        let mut by_lane: BTreeMap<Lane, Vec<ClaimedRow>> = BTreeMap::new();
        for row in rows {
            by_lane.entry(row.lane).or_default().push(row);
        }
        let mut found = None;
        for claim in claims {
            let Some(held) = self.lanes.get_mut(&claim.lane) else { continue };
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
            if claim.above == 0 && !full {
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
    fn answer<T>(&mut self, answer: Result<T>) -> Result<Option<T>> {
        match answer {
            Ok(answer) => {
                self.backoff.reset();
                Ok(Some(answer))
            }
            Err(error) if error.is_retryable() => {
                tracing::warn!(source = %self.task.name, %error, "trying again");
                self.task.board.retrying(&error, self.backoff.attempts());
                Ok(None)
            }
            Err(error) => {
                tracing::error!(source = %self.task.name, %error, "relay failed");
                Err(error)
            }
        }
    }

    /// Says how it is doing.
    fn show(&self) {
        let board = &self.task.board;
        board.lock().lanes = self.lanes.len() as u32;
        let opening = self.lanes.values().any(|held| held.stage == Stage::Opening);
        if opening || self.resting.keys().any(|lane| !self.lanes.contains_key(lane)) {
            return;
        }
        board.open();
        if self.lanes.values().all(|held| held.known.is_empty()) {
            let mut state = board.lock();
            (state.oldest, state.idle_at) = (None, Some(crate::clock::now()));
        }
    }

    /// Gives the lanes back: at once, unless something of one is on its way.
    async fn end(mut self) -> Result<()> {
        let late: Vec<Lane> =
            self.lanes.values().filter(|held| !held.known.is_empty()).map(Held::lane).collect();
        let release =
            self.lanes.keys().chain(self.resting.keys()).copied().filter(|lane| !late.contains(lane));
        let ask = LeaseAsk {
            relay: self.relay.clone(),
            ttl: self.task.relay.lease,
            release: release.collect(),
            leaving: true,
        };
        // Nothing more is published from here on.
        self.lanes.clear();
        if let Err(error) = self.task.store.lease(&ask).await {
            tracing::warn!(source = %self.task.name, %error, "lanes were not given back; another relay takes them over later");
        }
        if late.is_empty() {
            tracing::info!(source = %self.task.name, "stopped; everything that was claimed is published and settled");
            return Ok(());
        }
        let doing = format!("relay of {} was stopped before all that it claimed was settled", self.task.name);
        Err(Error::new(Kind::Unavailable, doing).hint("nothing is lost: it is claimed again next time"))
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

/// A name that no other process has, nor had: its leases are its own.
fn own_name(given: Option<&str>) -> String {
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let name = given.map_or_else(host, str::to_owned);
    format!("{name}-{}-{:08x}", std::process::id(), rand::random::<u32>())
}
