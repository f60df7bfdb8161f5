//! The lanes that a relay holds.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use headwater_core::EventId;
use headwater_core::ports::{Claim, ClaimedRow, Lease, Settled};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::lane::{Unsettled, Work};

/// How far a lane is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Its writer is being opened.
    Opening,
    /// Nothing is on its way, and which keys are blocked is to be asked.
    Resuming,
    /// Its rows are claimed.
    Working,
    /// No more is claimed until nothing is on its way; then it resumes.
    Quiescing,
}

/// A row that was claimed and is not settled.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// Its event's id.
    pub id: EventId,
    /// About how much memory it takes.
    pub bytes: usize,
}

/// A lane that is being worked.
pub struct Held {
    /// The lease.
    pub lease: Lease,
    /// Which run of the lane.
    pub run: u64,
    /// How far it is.
    pub stage: Stage,
    /// Rows that were claimed and are not settled.
    pub known: HashMap<i64, Known>,
    /// Their bytes.
    pub bytes: usize,
    /// Those of them that were settled while a claim was under way, which may have read them before.
    pub gone: Vec<i64>,
    /// Everything up to this sequence was claimed, and nothing can come there any more.
    pub above: i64,
    /// What is published and not settled.
    pub unsettled: Unsettled,
    /// Whether some of that is from before this run.
    pub inherited: bool,
    /// How many keys are blocked.
    pub blocked: usize,
    /// When to ask again which keys are blocked: a person may have decided something.
    pub ask_again: Option<Instant>,
    /// Where its work goes.
    pub inbox: mpsc::UnboundedSender<Work>,
    /// Its task; ends with it.
    pub _task: AbortOnDropHandle<()>,
}

impl Held {
    /// What to claim of it now, if anything: `all` from the beginning.
    pub fn claim(&self, all: bool, retries: bool, most: usize) -> Option<Claim> {
        let lane = self.lease.lane;
        match self.stage {
            Stage::Resuming if !self.lease.wanted => {
                Some(Claim { lane, above: 0, known: Vec::new(), retries: true, resume: true })
            }
            Stage::Working if self.known.len() < most && !self.lease.wanted => {
                let above = if all { 0 } else { self.above };
                let known = self.known.keys().copied().filter(|sequence| *sequence > above).collect();
                Some(Claim { lane, above, known, retries, resume: false })
            }
            _ => None,
        }
    }

    /// Takes rows that were claimed: those that are not known yet. The next claim begins where nothing can
    /// come any more, and where this one ended if there is `more`.
    pub fn take(&mut self, rows: Vec<ClaimedRow>, horizon: i64, more: bool) -> Vec<ClaimedRow> {
        let last = rows.iter().filter(|row| !row.again).map(|row| row.sequence).max();
        self.above = if more { horizon.min(last.unwrap_or(self.above)) } else { horizon };
        let mut fresh = rows;
        let known = |row: &ClaimedRow| Known { id: row.id, bytes: row.row.size() };
        fresh.retain(|row| self.known.insert(row.sequence, known(row)).is_none());
        self.bytes += fresh.iter().map(|row| row.row.size()).sum::<usize>();
        fresh
    }

    /// All that waits was seen: what an earlier run published and nobody claims any more is settled.
    pub fn seen_all(&mut self) {
        if std::mem::take(&mut self.inherited) {
            let known: HashSet<EventId> = self.known.values().map(|known| known.id).collect();
            self.unsettled.with(|unsettled| unsettled.retain(|id| known.contains(id)));
        }
    }

    /// A row is settled. One that a claim under way may bring again stays known until it has been heard.
    pub fn settled(&mut self, settled: &Settled, claiming: bool) {
        self.unsettled.with(|unsettled| unsettled.remove(&settled.id));
        self.gone.push(settled.sequence);
        if !claiming {
            self.forget();
        }
    }

    /// No claim is under way: what is settled cannot come again.
    pub fn forget(&mut self) {
        for sequence in self.gone.drain(..) {
            self.bytes -= self.known.remove(&sequence).map_or(0, |known| known.bytes);
        }
    }

    /// Goes on to the next stage when nothing is on its way, or when it is time to ask again.
    pub fn advance(&mut self, now: Instant) {
        if self.stage == Stage::Working && self.ask_again.is_some_and(|at| now >= at) {
            self.stage = Stage::Quiescing;
        }
        if self.stage == Stage::Quiescing && self.known.is_empty() {
            self.stage = Stage::Resuming;
        }
    }

    /// Whether another relay could have it now. Not while its writer is being opened: that cannot be called off, and
    /// might fence the other's.
    pub fn can_go(&self) -> bool {
        self.known.is_empty() && self.stage != Stage::Opening
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(stage: Stage) -> Held {
        Held {
            lease: Lease { lane: 3, epoch: 1, wanted: false },
            run: 1,
            stage,
            known: HashMap::new(),
            bytes: 0,
            gone: Vec::new(),
            above: 7,
            unsettled: Unsettled::default(),
            inherited: true,
            blocked: 0,
            ask_again: None,
            inbox: mpsc::unbounded_channel().0,
            _task: AbortOnDropHandle::new(tokio::spawn(async {})),
        }
    }

    /// What an earlier run published and did not settle may be a row that was tried again: it is to be seen, or nobody
    /// would know any more that it is on the bus.
    #[tokio::test]
    async fn whoever_resumes_sees_all_that_waits() {
        let claim = held(Stage::Resuming).claim(false, false, 100).unwrap();
        assert_eq!((claim.above, claim.retries, claim.resume), (0, true, true));
        assert!(held(Stage::Opening).claim(true, true, 100).is_none());
    }

    #[tokio::test]
    async fn a_lane_goes_when_it_is_idle_and_its_writer_is_there() {
        for stage in [Stage::Resuming, Stage::Working, Stage::Quiescing] {
            assert!(held(stage).can_go());
        }
        assert!(!held(Stage::Opening).can_go());
    }

    #[tokio::test]
    async fn of_what_is_to_be_given_back_nothing_is_claimed() {
        for stage in [Stage::Resuming, Stage::Working] {
            let mut held = held(stage);
            assert!(held.claim(true, true, 100).is_some());
            held.lease.wanted = true;
            assert!(held.claim(true, true, 100).is_none());
        }
    }
}
