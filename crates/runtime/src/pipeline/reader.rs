//! Reads a source, has its batches shaped, and confirms what has become durable.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures::stream::{FuturesOrdered, StreamExt};
use headwater_core::ports::{Durable, Source};
use headwater_core::{Batch, Checkpoint, Error, Kind, Micros, Position, Result};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::board::Board;
use super::publisher::{Release, Taken, Work};
use crate::clock::now;
use crate::config::Settings;
use crate::shape::{Routes, Shaped, Shaper};

/// Batches with at least this many changes are shaped on another thread, while the next is read.
const LARGE: usize = 512;

type Shaping = Pin<Box<dyn Future<Output = Result<(Shaper, Shaped)>> + Send>>;
type Keeping = Pin<Box<dyn Future<Output = Result<(Kept, Durable)>> + Send>>;

/// What a durable batch was.
struct Kept {
    checkpoint: Option<Checkpoint>,
    reads: usize,
    events: Vec<(Arc<str>, u64)>,
    bytes: u64,
}

/// A batch that was read and is not yet durable.
struct Outstanding {
    bytes: usize,
    committed_at: Option<Micros>,
}

/// The reading half of a source's pipeline.
pub struct Reader {
    /// The source's name.
    pub name: Arc<str>,
    /// The open source.
    pub source: Box<dyn Source>,
    /// Changes at or below this were published before.
    pub published: Option<Position>,
    /// Where changes go.
    pub routes: Arc<Routes>,
    /// Shapers that are not at work; a new one is made when all are.
    pub shapers: Vec<Shaper>,
    /// Budgets.
    pub settings: Settings,
    /// Where it says how it is doing.
    pub board: Arc<Board>,
    /// To the publisher.
    pub work: Option<mpsc::UnboundedSender<Work>>,
    /// From the publisher.
    pub taken: mpsc::UnboundedReceiver<Taken>,
    /// Tells the publisher how much of what it sent is durable.
    pub durable: watch::Sender<u64>,
    /// How many batches may be shaped at once.
    pub workers: usize,
}

/// What a reader keeps count of.
#[derive(Default)]
struct Flow {
    shaping: FuturesOrdered<Shaping>,
    keeping: FuturesOrdered<Keeping>,
    /// Batches on their way, oldest first.
    outstanding: VecDeque<Outstanding>,
    /// The bytes of all that is on its way.
    bytes: usize,
}

impl Reader {
    /// Reads until `stop`, then lets what is on its way arrive.
    pub async fn run(
        mut self,
        releases: &mut mpsc::UnboundedReceiver<Release>,
        stop: &CancellationToken,
    ) -> Result<()> {
        let mut flow = Flow::default();
        let mut stopping = false;
        loop {
            if stopping && flow.shaping.is_empty() {
                // The publisher ends when it has nothing more to come, and then this loop does.
                self.work = None;
            }
            let room =
                flow.bytes < self.settings.in_flight_bytes as usize && flow.shaping.len() < self.workers;
            let budget = self.settings.batch_bytes as usize;
            tokio::select! {
                biased;
                Some(kept) = flow.keeping.next(), if !flow.keeping.is_empty() => self.kept(kept?, &mut flow).await?,
                taken = self.taken.recv() => match taken {
                    Some(taken) => flow.keeping.push_back(Box::pin(keep(taken))),
                    None => return self.last(flow).await,
                },
                Some(shaped) = flow.shaping.next(), if !flow.shaping.is_empty() => {
                    let (shaper, shaped) = shaped?;
                    self.shapers.push(shaper);
                    self.shaped(shaped, &mut flow)?;
                }
                () = stop.cancelled(), if !stopping => stopping = true,
                Some(release) = releases.recv(), if !stopping => self.send(Work::Release(release))?,
                batch = self.source.next(budget), if room && !stopping => {
                    self.read(batch?, &mut flow)?;
                    // A source that is always ready must not keep the publisher from its turn.
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Takes in a batch: drops what was published before, and has the rest shaped.
    fn read(&mut self, mut batch: Batch, flow: &mut Flow) -> Result<()> {
        if let Some(published) = self.published {
            batch.changes.retain(|change| change.position > published);
        }
        let mut shaper = self.shapers.pop().unwrap_or_else(|| Shaper::new(Arc::clone(&self.routes)));
        if batch.changes.len() < LARGE && flow.shaping.is_empty() {
            let shaped = shaper.shape(batch);
            self.shapers.push(shaper);
            flow.bytes += shaped.bytes;
            return self.forward(shaped, flow);
        }
        let bytes: usize = batch.changes.iter().map(headwater_core::Change::size).sum();
        flow.bytes += bytes;
        let work = tokio::task::spawn_blocking(move || {
            let shaped = shaper.shape(batch);
            (shaper, shaped)
        });
        flow.shaping.push_back(Box::pin(async move {
            let lost = |error| Error::new(Kind::Internal, "shaping a batch").because(error);
            work.await.map_err(lost)
        }));
        Ok(())
    }

    fn shaped(&mut self, shaped: Shaped, flow: &mut Flow) -> Result<()> {
        let read: usize = shaped.changes.iter().map(headwater_core::Change::size).sum();
        flow.bytes = flow.bytes.saturating_sub(read) + shaped.bytes;
        self.forward(shaped, flow)
    }

    fn forward(&mut self, shaped: Shaped, flow: &mut Flow) -> Result<()> {
        let committed_at = shaped.changes.first().map(|change| change.transaction.committed_at);
        flow.outstanding.push_back(Outstanding { bytes: shaped.bytes, committed_at });
        self.show(flow);
        if !shaped.changes.is_empty() {
            let labels = [("source", self.name.to_string())];
            ::metrics::histogram!("headwater_batch_events", &labels).record(shaped.events.len() as f64);
            ::metrics::histogram!("headwater_batch_bytes", &labels).record(shaped.bytes as f64);
        }
        self.send(Work::Batch(Box::new(shaped)))
    }

    fn send(&self, work: Work) -> Result<()> {
        let ended = || Error::new(Kind::Internal, "the publisher of the pipeline ended");
        self.work.as_ref().ok_or_else(ended)?.send(work).map_err(|_| ended())
    }

    /// Confirms what became durable, and all that became so with it, at once.
    async fn kept(&mut self, first: (Kept, Durable), flow: &mut Flow) -> Result<()> {
        let mut confirm = None;
        let mut next = Some(Ok(first));
        while let Some(kept) = next.take() {
            let (kept, proof) = kept?;
            self.count(&kept, flow);
            if let Some(checkpoint) = kept.checkpoint {
                confirm = Some((checkpoint, proof));
            }
            next = futures::FutureExt::now_or_never(flow.keeping.next()).flatten();
        }
        self.show(flow);
        match confirm {
            Some((checkpoint, proof)) => self.source.confirm(&checkpoint, proof).await,
            None => Ok(()),
        }
    }

    fn count(&mut self, kept: &Kept, flow: &mut Flow) {
        for _ in 0..kept.reads {
            let done = flow.outstanding.pop_front();
            flow.bytes = flow.bytes.saturating_sub(done.map_or(0, |done| done.bytes));
        }
        self.board.published(&self.name, &kept.events, kept.bytes);
        self.durable.send_modify(|durable| *durable += 1);
    }

    fn show(&self, flow: &Flow) {
        let mut board = self.board.lock();
        board.in_flight = flow.bytes as u64;
        board.oldest = flow.outstanding.iter().find_map(|batch| batch.committed_at);
        if flow.outstanding.is_empty() && flow.shaping.is_empty() {
            board.idle_at = Some(now());
        }
    }

    /// The publisher has ended: waits for what it sent last, and until the source's system knows of it.
    async fn last(mut self, mut flow: Flow) -> Result<()> {
        while let Some(kept) = flow.keeping.next().await {
            self.kept(kept?, &mut flow).await?;
        }
        self.source.close().await;
        Ok(())
    }
}

async fn keep(taken: Taken) -> Result<(Kept, Durable)> {
    let Taken { accepted, checkpoint, reads, events, bytes } = taken;
    let durable = accepted.durable().await?;
    Ok((Kept { checkpoint, reads, events, bytes }, durable))
}
