//! Which lanes a relay holds, and which of them run.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_core::ports::{Lane, Lease, LeaseAsk};
use headwater_core::{Error, Kind, Result};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::{Asked, Driver, in_time};
use crate::pipeline::Backoff;
use crate::relay::held::{Held, Stage};
use crate::relay::lane::{LaneTask, Unsettled};
use crate::relay::rows::Patience;

/// How often it is looked for lanes that are free, and whether another relay waits for some.
const LOOK: Duration = Duration::from_millis(250);

/// An answer about leases may always take so long.
const LEAST: Duration = Duration::from_secs(1);

impl Driver {
    /// Renews the leases when that is due, gives back what is wanted and idle, and looks in between for lanes that are
    /// free: whoever stops, and whoever begins, is not waited for until the next renewal.
    pub(super) fn start_leasing(&mut self, now: Instant) {
        if self.leasing.is_some() || !self.asks_for_lanes() {
            return;
        }
        let release = self.to_release();
        let renew = now >= self.renew_at || !release.is_empty();
        if !renew && (now < self.share_at || self.stopping.is_some()) {
            return;
        }
        for (lane, _) in &release {
            self.lanes.remove(lane);
            self.resting.remove(lane);
        }
        self.releasing.clone_from(&release);
        let (ttl, leaving) = (self.task.relay.lease, self.is_leaving());
        self.left = leaving;
        let ask = LeaseAsk { relay: self.relay.clone(), ttl, release, renew, leaving };
        let store = Arc::clone(&self.task.store);
        self.share_at = now + LOOK;
        if renew {
            self.renewing = Some(now);
            self.renew_at = now + ttl / 4;
        }
        // One that is not answered leaves time for others, over other connections.
        let patience = ttl.min((ttl / 4).max(LEAST));
        self.leasing = Some(Box::pin(in_time(patience, async move { store.lease(&ask).await })));
    }

    /// Whether it is to be given nothing, and gives back what it has.
    pub(super) fn is_leaving(&self) -> bool {
        self.stopping.is_some() || self.reaching.is_away()
    }

    /// Whether there is anything to ask about lanes: not while the bus is away and none are left.
    pub(super) fn asks_for_lanes(&self) -> bool {
        !self.reaching.is_away() || !self.lanes.is_empty() || !self.resting.is_empty()
    }

    /// What is not to be kept and nothing of which is on its way: all of it while the relay leaves, or another waits for it.
    pub(super) fn to_release(&self) -> Vec<(Lane, u64)> {
        let (working, resting) = self.idle();
        let resting = resting.filter(|lease| self.is_written(lease.lane));
        let goes = |lease: &&Lease| lease.wanted || self.is_leaving();
        working.chain(resting).filter(goes).map(|lease| (lease.lane, lease.epoch)).collect()
    }

    /// The leases of lanes that run and have nothing on its way, and of those that do not run.
    fn idle(&self) -> (impl Iterator<Item = &Lease>, impl Iterator<Item = &Lease>) {
        let working = self.lanes.values().filter(|held| held.can_go()).map(|held| &held.lease);
        let resting = self.resting.values().map(|(lease, ..)| lease);
        (working, resting.filter(|lease| !self.lanes.contains_key(&lease.lane)))
    }

    pub(super) fn leased(&mut self, leases: Result<Vec<Lease>>) -> Result<()> {
        let renewing = self.renewing.take();
        let released = std::mem::take(&mut self.releasing);
        let leases = match self.answer(Asked::Leases, leases)? {
            Some(leases) => leases,
            None => {
                // It may be done later, when something of these lanes is on its way again.
                self.doubtful.extend(released);
                self.renew_at = self.renew_at.min(Instant::now() + self.backoff(Asked::Leases).next());
                return Ok(());
            }
        };
        let now = Instant::now();
        match renewing {
            Some(asked_at) => self.ours_until = asked_at + self.task.relay.lease,
            // They may be over: only a renewal says that they are ours.
            None if now >= self.ours_until => return Ok(()),
            None => {}
        }
        let ours: HashMap<Lane, Lease> = leases.iter().map(|lease| (lease.lane, *lease)).collect();
        let same = |lane: &Lane, epoch: u64| ours.get(lane).is_some_and(|lease| lease.epoch == epoch);
        self.lanes.retain(|lane, held| same(lane, held.lease.epoch));
        self.resting.retain(|lane, (lease, ..)| same(lane, lease.epoch));
        self.doubtful.retain(|lane, epoch| same(lane, *epoch));
        for mut lease in leases {
            // Of one that leaves everything is wanted, which says nothing once it stays.
            lease.wanted = lease.wanted && !self.left || self.doubtful.contains_key(&lease.lane);
            match self.lanes.get_mut(&lease.lane) {
                Some(held) => held.lease = lease,
                None => {
                    let rest = || (lease, now, Backoff::new(self.task.settings.retry_max));
                    self.resting.entry(lease.lane).or_insert_with(rest).0 = lease;
                }
            }
        }
        self.show();
        Ok(())
    }

    /// Runs the lanes that are ours and do not run. Not before all that an earlier run of one published is written
    /// down: what it claims would come twice.
    pub(super) fn start_lanes(&mut self, now: Instant) {
        let due = self.resting.values().filter(|(lease, at, _)| now >= *at && self.may_begin(lease));
        let due: Vec<Lease> = due.map(|(lease, ..)| *lease).collect();
        for lease in due {
            let held = self.start_lane(lease);
            self.lanes.insert(lease.lane, held);
        }
    }

    /// Whether a lane may be run that is ours. Not one that is to be given back.
    pub(super) fn may_begin(&self, lease: &Lease) -> bool {
        let runs = self.lanes.contains_key(&lease.lane);
        !self.is_leaving() && !runs && !lease.wanted && self.is_written(lease.lane)
    }

    /// Whether all that was published of a lane is written down.
    fn is_written(&self, lane: Lane) -> bool {
        !self.unwritten.contains_key(&lane)
    }

    pub(super) fn start_lane(&mut self, lease: Lease) -> Held {
        self.runs += 1;
        tracing::debug!(source = %self.task.name, lane = lease.lane, epoch = lease.epoch, "a lane begins");
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

    /// Gives the lanes back: at once, unless something of one is on its way.
    pub(super) async fn end(mut self) -> Result<()> {
        if let Some(leasing) = self.leasing.take() {
            // It may be given a lane yet. What is wrong is said by what follows.
            self.leased(leasing.await).ok();
        }
        let late = self.lanes.values().any(|held| !held.known.is_empty());
        let (working, resting) = self.idle();
        let release = working.chain(resting).map(|lease| (lease.lane, lease.epoch));
        let ask = LeaseAsk {
            relay: self.relay.clone(),
            ttl: self.task.relay.lease,
            release: release.collect(),
            renew: false,
            leaving: true,
        };
        // Nothing more is published from here on.
        self.lanes.clear();
        if let Err(error) = in_time(self.task.relay.lease, self.task.store.lease(&ask)).await {
            tracing::warn!(source = %self.task.name, %error, "lanes were not given back; another relay takes them over later");
        }
        if !late {
            tracing::info!(source = %self.task.name, "stopped; everything that was claimed is published and settled");
            return Ok(());
        }
        let doing = format!("relay of {} was stopped before all that it claimed was settled", self.task.name);
        Err(Error::new(Kind::Unavailable, doing).hint("nothing is lost: it is claimed again next time"))
    }
}

/// A name that no other process has, nor had: its leases are its own.
pub(super) fn own_name(given: Option<&str>) -> String {
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let name = given.map_or_else(host, str::to_owned);
    format!("{name}-{}-{:08x}", std::process::id(), rand::random::<u32>())
}
