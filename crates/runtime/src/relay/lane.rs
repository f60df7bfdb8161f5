//! Publishes the rows of one lane, in order.

use std::collections::HashSet;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt;
use futures::stream::{FuturesOrdered, StreamExt};
use headwater_core::ports::{Bus, ClaimedRow, Lane, Opened, Outcome, Published, Settled, Writer};
use headwater_core::{Checkpoint, Error, Event, EventId, Kind, Origin, Position, Result, StreamSpec, Table};
use serde_json::json;
use tokio::sync::mpsc;

use super::rows::{self, Blocked, Patience, Trouble};
use crate::pipeline::{Counted, count};
use crate::shape::{Routes, Shaped, Shaper};

/// How many ids a run hands on of those that earlier runs published and nobody settled since. They leave only with a look
/// that sees all that waits, which a long backlog has none of; and a broker takes a checkpoint up to a megabyte.
const INHERITED: usize = 10_000;

/// What a lane is given.
pub enum Work {
    /// Which keys are blocked now.
    Blocked(Blocked),
    /// Rows to publish, in order.
    Rows(Arc<Table>, Vec<ClaimedRow>),
}

/// What a lane says.
pub struct Report {
    /// The lane.
    pub lane: Lane,
    /// Which run of it.
    pub run: u64,
    /// What it says.
    pub what: What,
}

/// What a lane can say.
pub enum What {
    /// Whoever published for this lane before can no longer: rows may be claimed now.
    Ready,
    /// What became of rows, in their order.
    Done(Done),
    /// It cannot go on.
    Failed(Error),
}

/// What became of the rows of one batch.
pub struct Done {
    /// Of each row.
    pub settled: Vec<Settled>,
    /// What was published.
    pub counted: Counted,
    /// Whether the first row of a blocked key went: what waits behind it may go now.
    pub unblocks: bool,
    /// How many keys are blocked.
    pub blocked: usize,
}

/// The ids of rows that are on the bus, or on their way, and not settled yet. (Not their sequences: an outbox that
/// is made anew, or restored from a copy, gives these to other rows.)
#[derive(Debug, Clone, Default)]
pub struct Unsettled(Arc<Mutex<HashSet<EventId>>>);

impl Unsettled {
    /// Changes or reads it.
    pub fn with<T>(&self, work: impl FnOnce(&mut HashSet<EventId>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One run of a lane, under one lease.
pub struct LaneTask {
    /// The lane.
    pub lane: Lane,
    /// The lease's epoch.
    pub epoch: u64,
    /// Which run of it.
    pub run: u64,
    /// The source's name.
    pub source: Arc<str>,
    /// Where events go.
    pub bus: Arc<dyn Bus>,
    /// Which streams rows go to.
    pub routes: Arc<Routes>,
    /// The streams to make sure of.
    pub specs: Vec<StreamSpec>,
    /// Where rows come from.
    pub origin: Arc<Origin>,
    /// How often rows are tried.
    pub patience: Patience,
    /// What is published and not settled.
    pub unsettled: Unsettled,
    /// What it is given.
    pub inbox: mpsc::UnboundedReceiver<Work>,
    /// Where it reports.
    pub reports: mpsc::UnboundedSender<Report>,
}

type Keeping = FuturesOrdered<Pin<Box<dyn Future<Output = Result<Done>> + Send>>>;

impl LaneTask {
    /// Works until its inbox is closed, or until something fails.
    pub async fn run(self) {
        let (lane, run, reports) = (self.lane, self.run, self.reports.clone());
        let ended = AssertUnwindSafe(self.work()).catch_unwind().await;
        let panicked = |_| Err(Error::new(Kind::Internal, "a lane's task panicked; the log has its words"));
        if let Err(error) = ended.unwrap_or_else(panicked) {
            // Nobody listens only when the relay has ended.
            reports.send(Report { lane, run, what: What::Failed(error) }).ok();
        }
    }

    async fn work(mut self) -> Result<()> {
        let mut publishing = self.open().await?;
        self.report(What::Ready);
        let mut keeping = Keeping::new();
        loop {
            tokio::select! {
                biased;
                Some(done) = keeping.next(), if !keeping.is_empty() => self.report(What::Done(done?)),
                // How much may be on its way is the driver's to bound.
                work = self.inbox.recv() => match work {
                    Some(Work::Blocked(keys)) => publishing.blocked = keys,
                    Some(Work::Rows(table, rows)) => {
                        keeping.push_back(publishing.publish(&table, rows).await?);
                    }
                    None => break,
                },
            }
        }
        while let Some(done) = keeping.next().await {
            self.report(What::Done(done?));
        }
        Ok(())
    }

    fn report(&self, what: What) {
        // Nobody listens only when the relay has ended.
        self.reports.send(Report { lane: self.lane, run: self.run, what }).ok();
    }

    /// Opens the writer, which ends every earlier one of this lane, and makes sure of the streams.
    async fn open(&self) -> Result<Publishing> {
        let writes_as = format!("{}/{}", self.source, self.lane);
        let Opened { writer, checkpoint } = self.bus.writer(&writes_as).await?;
        let already = checkpoint.as_ref().map(|checkpoint| published(&checkpoint.state)).unwrap_or_default();
        let inherited: Vec<EventId> = already.iter().take(INHERITED).copied().collect();
        if inherited.len() < already.len() {
            tracing::warn!(
                source = %self.source, lane = self.lane, left_out = already.len() - inherited.len(),
                "more events are published and not settled than are remembered: should this relay end before they are, the \
                 oldest come again, with the same ids"
            );
        }
        self.unsettled.with(|unsettled| unsettled.extend(&inherited));
        let mut publishing = Publishing {
            lane: self.lane,
            epoch: self.epoch,
            writes_as,
            writer,
            bus: Arc::clone(&self.bus),
            shaper: Shaper::new(Arc::clone(&self.routes)),
            origin: Arc::clone(&self.origin),
            patience: self.patience,
            unsettled: self.unsettled.clone(),
            batches: checkpoint.map_or(0, |checkpoint| checkpoint.position.numbers()[0]),
            already: already.into_iter().collect(),
            inherited,
            blocked: Blocked::new(),
            broken: Vec::new(),
        };
        for spec in &self.specs {
            publishing.ensure(spec).await?;
        }
        Ok(publishing)
    }
}

/// What a lane needs to publish.
struct Publishing {
    lane: Lane,
    epoch: u64,
    writes_as: String,
    writer: Box<dyn Writer>,
    bus: Arc<dyn Bus>,
    shaper: Shaper,
    origin: Arc<Origin>,
    patience: Patience,
    unsettled: Unsettled,
    /// How many batches were published; with the epoch, the checkpoint's position.
    batches: u64,
    /// Rows that an earlier run published, as its last checkpoint says.
    already: HashSet<EventId>,
    /// Those of them that are handed on, the newest first.
    inherited: Vec<EventId>,
    blocked: Blocked,
    /// Streams that the bus will not have, and why.
    broken: Vec<(StreamSpec, String)>,
}

impl Publishing {
    /// Makes sure of a stream. One that the bus will not have is remembered: its rows are tried again
    /// until it will.
    async fn ensure(&mut self, spec: &StreamSpec) -> Result<()> {
        match self.bus.ensure(spec).await {
            Err(error) if !error.is_retryable() => {
                tracing::error!(stream = %spec.name, %error, "stream stopped");
                self.broken.push((spec.clone(), error.to_string()));
                Ok(())
            }
            ensured => ensured.map(drop),
        }
    }

    /// Publishes what can go of some rows; the future ends when that is durable.
    async fn publish(
        &mut self,
        table: &Arc<Table>,
        rows: Vec<ClaimedRow>,
    ) -> Result<Pin<Box<dyn Future<Output = Result<Done>> + Send>>> {
        if rows.iter().any(|row| row.again) {
            for (spec, _) in std::mem::take(&mut self.broken) {
                self.ensure(&spec).await?;
            }
        }
        let mut shaped = self.shaper.shape(rows::batch(&rows, table, &self.origin, self.epoch));
        for spec in std::mem::take(&mut shaped.new_streams) {
            self.ensure(&spec).await?;
        }
        let mut troubles = self.troubles(&rows, &shaped);
        let places = shaped.origins.iter().map(|origin| origin.change);
        let mut events: Vec<(u32, Event)> = places.zip(shaped.events).collect();
        loop {
            let (outcomes, more) =
                rows::outcomes(&rows, &troubles, &self.already, &self.blocked, self.patience);
            events.retain(|(at, _)| matches!(outcomes.get(*at as usize), Some(None)));
            let ids: Vec<EventId> =
                events.iter().filter_map(|(at, _)| rows.get(*at as usize)).map(|row| row.id).collect();
            let (places, going): (Vec<u32>, Vec<Event>) = std::mem::take(&mut events).into_iter().unzip();
            let counted = count(&going);
            if going.is_empty() {
                let done = self.done(rows, outcomes, more, counted);
                return Ok(Box::pin(std::future::ready(Ok(done))));
            }
            let checkpoint = self.checkpoint(&ids);
            match self.writer.publish(going, Some(checkpoint)).await? {
                Published::Accepted(accepted) => {
                    self.unsettled.with(|unsettled| unsettled.extend(ids));
                    let done = self.done(rows, outcomes, more, counted);
                    return Ok(Box::pin(async move { accepted.durable().await.map(|_| done) }));
                }
                Published::Rejected { rejections, .. } if rejections.is_empty() => {
                    return Err(Error::new(Kind::Internal, "the bus rejected a batch and gave no reason"));
                }
                Published::Rejected { events: back, rejections } => {
                    for rejection in rejections {
                        if let Some(at) = places.get(rejection.index) {
                            put(&mut troubles, *at, Some(Trouble { reason: rejection.reason, own: true }));
                        }
                    }
                    events = places.into_iter().zip(back).collect();
                }
            }
        }
    }

    /// Why rows cannot go, as far as that is known before the bus is asked.
    fn troubles(&self, rows: &[ClaimedRow], shaped: &Shaped) -> Vec<Option<Trouble>> {
        let nothing =
            || Trouble { reason: "nothing comes of this row by the config as it is".into(), own: true };
        let mut troubles: Vec<Option<Trouble>> = rows.iter().map(|_| Some(nothing())).collect();
        for trouble in &shaped.troubles {
            put(&mut troubles, trouble.change, Some(Trouble { reason: trouble.reason.clone(), own: true }));
        }
        for (event, origin) in shaped.events.iter().zip(&shaped.origins) {
            let broken = self.broken.iter().find(|(spec, _)| spec.name == event.stream);
            let trouble = broken.map(|(_, reason)| Trouble { reason: reason.clone(), own: false });
            put(&mut troubles, origin.change, trouble);
        }
        troubles
    }

    /// Where the lane stands once these rows are published too: with them, so that whoever goes on knows
    /// what of it is on the bus although no row says so yet.
    fn checkpoint(&mut self, ids: &[EventId]) -> Checkpoint {
        self.batches += 1;
        // Short, as it is made for each batch: thousands of ids, 16 bytes each.
        let published: Vec<u8> = self.unsettled.with(|unsettled| {
            self.inherited.retain(|id| unsettled.contains(id));
            let own = unsettled.iter().filter(|id| !self.already.contains(id));
            ids.iter().chain(own).chain(&self.inherited).flat_map(EventId::as_bytes).copied().collect()
        });
        Checkpoint {
            source: self.writes_as.clone(),
            position: Position::of(self.epoch, [self.batches]),
            state: json!({ "published": STANDARD.encode(published) }),
        }
    }

    fn done(
        &mut self,
        rows: Vec<ClaimedRow>,
        outcomes: Vec<Option<Outcome>>,
        more: Blocked,
        counted: Counted,
    ) -> Done {
        self.blocked.extend(more);
        let went = |(row, outcome): (&ClaimedRow, &Option<Outcome>)| {
            row.again && row.key.is_some() && matches!(outcome, None | Some(Outcome::Published))
        };
        let unblocks = rows.iter().zip(&outcomes).any(went);
        let (lane, epoch) = (self.lane, self.epoch);
        let settled = |(row, outcome): (ClaimedRow, Option<Outcome>)| {
            let outcome = outcome.unwrap_or(Outcome::Published);
            if let Outcome::Retry { attempts, error, .. } | Outcome::Parked { attempts, error } = &outcome {
                let parked = matches!(outcome, Outcome::Parked { .. });
                tracing::warn!(stream = row.stream, id = %row.id, attempts, parked, error, "cannot publish");
            }
            Settled { lane, epoch, sequence: row.sequence, id: row.id, outcome }
        };
        let settled = rows.into_iter().zip(outcomes).map(settled).collect();
        Done { settled, counted, unblocks, blocked: self.blocked.len() }
    }
}

/// The ids that a checkpoint says are published and not settled, those of the newest run first.
fn published(state: &serde_json::Value) -> Vec<EventId> {
    let text = state.get("published").and_then(serde_json::Value::as_str).unwrap_or_default();
    let bytes = STANDARD.decode(text).unwrap_or_default();
    let (ids, _) = bytes.as_chunks::<16>();
    ids.iter().map(|id| EventId::from_bytes(*id)).collect()
}

fn put(troubles: &mut [Option<Trouble>], at: u32, trouble: Option<Trouble>) {
    if let Some(place) = troubles.get_mut(at as usize) {
        *place = trouble;
    }
}
