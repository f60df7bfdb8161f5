//! Hands shaped batches to the bus in order, and sets aside what cannot go.

mod release;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use headwater_core::ports::{Accepted, Bus, HoldsBack, Parked, ParkedStore, Published, Rejection, Writer};
use headwater_core::{Checkpoint, Error, Event, Kind, Position, Result, StreamSpec};
use tokio::sync::{mpsc, oneshot, watch};

use super::backoff::Backoff;
use super::board::Board;
use crate::clock::now;
use crate::park::{Admitted, Holds};
use crate::shape::{EventOrigin, Shaped, Shaper, Trouble};

/// Small batches that wait for the bus are handed over together, up to about this many bytes.
const TOGETHER: usize = 1 << 20;

/// What a publisher is asked to do, in order.
pub enum Work {
    /// Publish what was read.
    Batch(Box<Shaped>),
    /// Try again what is parked.
    Release(Release),
}

/// A person's wish to try again one line of what is parked.
pub struct Release {
    /// The stream.
    pub stream: Arc<str>,
    /// What the line holds back.
    pub holds: HoldsBack,
    /// Where the outcome goes: how many changes went on, or why the first of them still cannot.
    pub answer: oneshot::Sender<Result<u64>>,
}

/// What the bus took of one or more batches that were read.
pub struct Taken {
    /// The bus's promise.
    pub accepted: Accepted,
    /// What to confirm once it is kept.
    pub checkpoint: Option<Checkpoint>,
    /// How many batches that were read this stands for.
    pub reads: usize,
    /// How many events there were of each stream.
    pub events: Vec<(Arc<str>, u64)>,
    /// The bytes of the events.
    pub bytes: u64,
}

/// The publishing half of a source's pipeline.
pub struct Publisher {
    /// The source's name.
    pub source: Arc<str>,
    /// Where streams are made.
    pub bus: Arc<dyn Bus>,
    /// Where events go.
    pub writer: Box<dyn Writer>,
    /// Where what cannot go is set aside.
    pub parked: Arc<dyn ParkedStore>,
    /// Where it says how it is doing.
    pub board: Arc<Board>,
    /// Shapes parked changes again.
    pub shaper: Shaper,
    /// What is held back.
    pub holds: Holds,
    /// The longest wait between two attempts to park.
    pub retry_max: Duration,
    /// Streams that the bus has with another number of partitions.
    broken: HashSet<Arc<str>>,
}

/// The publisher's line to the reader, which waits for the bus's promises.
pub struct Line {
    /// What the bus took.
    pub taken: mpsc::UnboundedSender<Taken>,
    /// How many of those have become durable.
    pub durable: watch::Receiver<u64>,
    /// How many were sent.
    pub sent: u64,
}

impl Publisher {
    /// A publisher of a source, holding back what the parked store says.
    pub async fn load(
        source: Arc<str>,
        bus: Arc<dyn Bus>,
        writer: Box<dyn Writer>,
        parked: Arc<dyn ParkedStore>,
        board: Arc<Board>,
        shaper: Shaper,
        retry_max: Duration,
    ) -> Result<Self> {
        let holds = Holds::load(&source, &*parked).await?;
        Ok(Self { source, bus, writer, parked, board, shaper, holds, retry_max, broken: HashSet::new() })
    }

    /// Makes sure of a stream. One that the bus has with another number of partitions is held back.
    pub async fn ensure(&mut self, spec: &StreamSpec) -> Result<()> {
        match self.bus.ensure(spec).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == Kind::Contract => {
                self.stop_stream(&spec.name, &error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Makes sure of the streams that outbox rows name for the first time. One that the bus will not have
    /// is held back: a row must not be able to stop its source.
    async fn ensure_new(&mut self, batch: &mut Shaped) -> Result<()> {
        for spec in std::mem::take(&mut batch.new_streams) {
            match self.ensure(&spec).await {
                Err(error) if !error.is_retryable() => self.stop_stream(&spec.name, &error),
                ensured => ensured?,
            }
        }
        Ok(())
    }

    fn stop_stream(&mut self, stream: &Arc<str>, error: &Error) {
        tracing::error!(%stream, %error, "stream stopped");
        self.broken.insert(Arc::clone(stream));
        self.holds.hold(stream, error.to_string(), Position::ZERO);
        self.show();
    }

    /// Works until there is no more.
    pub async fn run(mut self, work: mpsc::UnboundedReceiver<Work>, mut line: Line) -> Result<()> {
        let mut todo = Todo { work, passed_by: VecDeque::new() };
        while let Some(work) = todo.next().await {
            match work {
                Work::Batch(mut batch) => {
                    while batch.bytes < TOGETHER
                        && let Some(more) = todo.ready_batch()
                    {
                        batch.append(*more);
                    }
                    self.publish(*batch, &mut line, &mut todo).await?;
                }
                Work::Release(release) => {
                    line.drained().await?;
                    self.answer(release).await;
                }
            }
        }
        Ok(())
    }

    /// Does what a person wishes; whether anything went on.
    async fn answer(&mut self, release: Release) -> bool {
        let outcome = self.release(&release.stream, &release.holds).await;
        self.show();
        let went_on = outcome.as_ref().is_ok_and(|count| *count > 0);
        // Whoever asked may be gone.
        drop(release.answer.send(outcome));
        went_on
    }

    async fn publish(&mut self, mut batch: Shaped, line: &mut Line, todo: &mut Todo) -> Result<()> {
        self.ensure_new(&mut batch).await?;
        let mut admitted = self.holds.admit(&mut batch, now())?;
        if admitted.parked.is_empty() {
            let (events, bytes) = count(&admitted.events);
            match self.writer.publish(admitted.events, batch.checkpoint.clone()).await? {
                Published::Accepted(accepted) => {
                    let (checkpoint, reads) = (batch.checkpoint, batch.reads);
                    return line.send(Taken { accepted, checkpoint, reads, events, bytes });
                }
                Published::Rejected { events, rejections } => {
                    admitted = self.set_aside(&mut batch, events, admitted.origins, rejections)?;
                }
            }
        }
        line.drained().await?;
        let ((events, bytes), parked) = self.publish_first(&mut batch, admitted).await?;
        self.park_when_possible(parked.into_iter().map(|(_, parked)| parked).collect(), todo).await?;
        // Only now, with the parked ones durable, may the checkpoint pass them.
        match self.writer.publish(Vec::new(), batch.checkpoint.clone()).await? {
            Published::Accepted(accepted) => {
                let (checkpoint, reads) = (batch.checkpoint, batch.reads);
                line.send(Taken { accepted, checkpoint, reads, events, bytes })
            }
            Published::Rejected { .. } => Err(Error::new(Kind::Internal, "the bus rejected an empty batch")),
        }
    }

    /// Publishes what can go, waits until it is durable, and returns the rest, to be parked: so
    /// everything before what is parked is on the bus, and whatever is redelivered later was there before.
    async fn publish_first(
        &mut self,
        batch: &mut Shaped,
        first: Admitted,
    ) -> Result<(Counted, Vec<(u32, Parked)>)> {
        let Admitted { mut events, mut origins, mut parked } = first;
        loop {
            let counted = count(&events);
            if events.is_empty() {
                return Ok((counted, parked));
            }
            match self.writer.publish(events, None).await? {
                Published::Accepted(accepted) => {
                    accepted.durable().await?;
                    return Ok((counted, parked));
                }
                Published::Rejected { events: back, rejections } => {
                    let mut again = self.set_aside(batch, back, origins, rejections)?;
                    parked.append(&mut again.parked);
                    (events, origins) = (again.events, again.origins);
                }
            }
        }
    }

    /// Turns rejected events into troubles of their changes, and sorts the batch again.
    fn set_aside(
        &mut self,
        batch: &mut Shaped,
        events: Vec<Event>,
        origins: Vec<EventOrigin>,
        rejections: Vec<Rejection>,
    ) -> Result<Admitted> {
        if rejections.is_empty() {
            return Err(Error::new(Kind::Internal, "the bus rejected a batch and gave no reason"));
        }
        let mut reasons: std::collections::HashMap<usize, String> =
            rejections.into_iter().map(|rejection| (rejection.index, rejection.reason)).collect();
        for (at, (event, origin)) in events.into_iter().zip(origins).enumerate() {
            match reasons.remove(&at) {
                None => {
                    batch.events.push(event);
                    batch.origins.push(origin);
                }
                Some(reason) => batch.troubles.push(Trouble {
                    change: origin.change,
                    stream: Arc::clone(&event.stream),
                    id: event.id,
                    holds: HoldsBack::key(origin.order_key(&event).cloned()),
                    outbox: origin.outbox,
                    reason,
                }),
            }
        }
        self.holds.admit(batch, now())
    }

    /// Parks; waits while the store is full or away, and says so. What is released meanwhile makes room,
    /// and what was to be parked may be free to go: then all begins again from the checkpoint.
    async fn park_when_possible(&mut self, parked: Vec<Parked>, todo: &mut Todo) -> Result<()> {
        let mut backoff = Backoff::new(self.retry_max);
        while let Err(error) = self.park(&parked).await {
            if !error.is_retryable() {
                return Err(error);
            }
            tracing::error!(source = %self.source, %error, "cannot park; nothing more is confirmed");
            self.board.lock().error = Some(format!("nothing more is confirmed: {error}"));
            tokio::select! {
                () = tokio::time::sleep(backoff.next()) => {}
                release = todo.release() => if self.answer(release).await {
                    return Err(Error::new(Kind::Busy, "what was parked has been released"));
                }
            }
        }
        if backoff.attempts() > 0 {
            self.board.well();
        }
        Ok(())
    }

    /// Parks, or says why that cannot be now.
    async fn park(&mut self, parked: &[Parked]) -> Result<()> {
        if parked.is_empty() {
            return Ok(());
        }
        self.show();
        self.parked.park(parked.to_vec()).await?;
        for one in parked {
            ::metrics::counter!("headwater_parked_total", "source" => one.source.to_string(),
                "stream" => one.stream.to_string())
            .increment(1);
            tracing::warn!(source = %one.source, stream = %one.stream, id = %one.id, reason = one.reason, "parked");
        }
        Ok(())
    }

    /// Writes down which streams are held back.
    fn show(&self) {
        let held = self.holds.held().map(|(stream, why)| (Arc::clone(stream), why.to_owned()));
        self.board.holds(held.collect());
    }
}

/// What a publisher has yet to do.
struct Todo {
    work: mpsc::UnboundedReceiver<Work>,
    /// What came before a release that could not wait.
    passed_by: VecDeque<Work>,
}

impl Todo {
    /// The next work; `None` when there is no more.
    async fn next(&mut self) -> Option<Work> {
        match self.passed_by.pop_front() {
            Some(work) => Some(work),
            None => self.work.recv().await,
        }
    }

    /// The next work if it is a batch and there already.
    fn ready_batch(&mut self) -> Option<Box<Shaped>> {
        match self.passed_by.pop_front().or_else(|| self.work.try_recv().ok())? {
            Work::Batch(batch) => Some(batch),
            other => {
                self.passed_by.push_front(other);
                None
            }
        }
    }

    /// The next release, whatever stands before it; waits for ever where there is none. Cancel-safe.
    async fn release(&mut self) -> Release {
        loop {
            let at = self.passed_by.iter().position(|work| matches!(work, Work::Release(_)));
            if let Some(Work::Release(release)) = at.and_then(|at| self.passed_by.remove(at)) {
                return release;
            }
            match self.work.recv().await {
                Some(work) => self.passed_by.push_back(work),
                None => std::future::pending().await,
            }
        }
    }
}

impl Line {
    fn send(&mut self, taken: Taken) -> Result<()> {
        self.sent += 1;
        self.taken.send(taken).map_err(|_| gone())
    }

    /// Waits until all that was sent is durable.
    async fn drained(&mut self) -> Result<()> {
        let sent = self.sent;
        self.durable.wait_for(|durable| *durable >= sent).await.map(drop).map_err(|_| gone())
    }
}

/// The reader ended: its own error says why.
fn gone() -> Error {
    Error::new(Kind::Internal, "the reader of the pipeline ended")
}

/// Events by stream, and bytes.
pub type Counted = (Vec<(Arc<str>, u64)>, u64);

/// Counts events.
pub fn count(events: &[Event]) -> Counted {
    let mut counts: Vec<(Arc<str>, u64)> = Vec::new();
    let mut bytes = 0;
    for event in events {
        bytes += event.size() as u64;
        match counts.last_mut() {
            Some((stream, count)) if Arc::ptr_eq(stream, &event.stream) => *count += 1,
            _ => match counts.iter_mut().find(|(stream, _)| *stream == event.stream) {
                Some((_, count)) => *count += 1,
                None => counts.push((Arc::clone(&event.stream), 1)),
            },
        }
    }
    (counts, bytes)
}
