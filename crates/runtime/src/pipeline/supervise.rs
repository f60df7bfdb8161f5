//! Keeps one source running: opens it, and opens it again after a failure that may pass.

use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_core::ports::{Bus, Connector, Opened, ParkedStore};
use headwater_core::{Error, Kind, Result, StreamSpec};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::board::Board;
use super::publisher::{Line, Publisher, Release};
use super::reader::Reader;
use crate::config::Settings;
use crate::shape::{Routes, Shaper};

/// A source that has been open this long was well, even if nothing happened in it.
const WELL: Duration = Duration::from_secs(30);

/// One source with all that its pipeline needs.
pub struct SourceTask {
    /// The source's name.
    pub name: Arc<str>,
    /// Opens it.
    pub connector: Arc<dyn Connector>,
    /// Where its changes go.
    pub routes: Arc<Routes>,
    /// The streams to make sure of.
    pub specs: Vec<StreamSpec>,
    /// The bus.
    pub bus: Arc<dyn Bus>,
    /// The parked store.
    pub parked: Arc<dyn ParkedStore>,
    /// Budgets and waits.
    pub settings: Settings,
    /// Where it says how it is doing.
    pub board: Arc<Board>,
    /// What people want tried again.
    pub releases: mpsc::UnboundedReceiver<Release>,
}

/// How an attempt ended when it was told to.
enum Ended {
    /// All that was read is confirmed.
    Drained,
    /// At once: nothing was read yet, or it took too long.
    Stopped,
}

impl SourceTask {
    /// Runs until `stop`, then `Ok` if everything that was read is confirmed, or until an error that no
    /// retry can mend.
    pub async fn run(mut self, stop: CancellationToken) -> Result<()> {
        crate::metrics::begin(&self.name, self.specs.iter().map(|spec| &*spec.name));
        let mut backoff = Backoff::new(self.settings.retry_max);
        // Whether something was read that the last attempt did not get confirmed.
        let mut behind = false;
        loop {
            let began = Instant::now();
            let outcome = self.attempt(&stop).await;
            behind = !matches!(outcome, Ok(Ended::Drained)) && (behind || self.board.lock().in_flight > 0);
            let progressed = std::mem::take(&mut self.board.lock().progressed);
            if progressed || began.elapsed() > WELL {
                backoff.reset();
            }
            let error = match outcome {
                Ok(Ended::Drained | Ended::Stopped) => return self.stopped(behind),
                Err(error) if !error.is_retryable() => {
                    tracing::error!(source = %self.name, %error, "source failed");
                    self.board.ended(Some(&error));
                    return Err(error);
                }
                Err(error) => error,
            };
            let wait = backoff.next();
            tracing::warn!(source = %self.name, %error, ?wait, "trying again");
            ::metrics::counter!("headwater_retries_total", "source" => self.name.to_string()).increment(1);
            self.board.retrying(&error, backoff.attempts());
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return self.stopped(behind),
            }
        }
    }

    /// The end that was asked for.
    fn stopped(&self, behind: bool) -> Result<()> {
        let name = &self.name;
        if !behind {
            tracing::info!(source = %name, "stopped; everything that was read is published and confirmed");
            self.board.ended(None);
            return Ok(());
        }
        let doing = format!("source {name} was stopped before all that it read was confirmed");
        let error = Error::new(Kind::Unavailable, doing).hint("nothing is lost: it is read again next time");
        tracing::warn!("{error}");
        self.board.ended(Some(&error));
        Err(error)
    }

    async fn attempt(&mut self, stop: &CancellationToken) -> Result<Ended> {
        self.board.connecting();
        let (work, todo) = mpsc::unbounded_channel();
        let (to_reader, taken) = mpsc::unbounded_channel();
        let (durable, how_many) = watch::channel(0);
        let (publisher, reader) = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Ended::Stopped),
            open = self.open() => open?,
        };
        let line = Line { taken: to_reader, durable: how_many, sent: 0 };
        let reader = reader(work, taken, durable);
        self.board.open();
        let settings = &self.settings;
        let flow = async {
            tokio::try_join!(reader.run(&mut self.releases, stop), publisher.run(todo, line)).map(drop)
        };
        tokio::select! {
            outcome = flow => outcome.map(|()| Ended::Drained),
            () = async { stop.cancelled().await; tokio::time::sleep(settings.drain_timeout).await } => {
                Ok(Ended::Stopped)
            }
        }
    }

    /// Makes sure of the streams, releases what is parked and may go on, and opens the source from
    /// the bus's checkpoint.
    async fn open(&self) -> Result<(Publisher, impl FnOnce(Work, Taken, Durable) -> Reader + use<>)> {
        // Opening a writer fences the one before: not that of a process that goes on reading.
        self.connector.free().await?;
        let Opened { writer, checkpoint } = self.bus.writer(&self.name).await?;
        let mut publisher = Publisher::load(
            Arc::clone(&self.name),
            Arc::clone(&self.bus),
            writer,
            Arc::clone(&self.parked),
            Arc::clone(&self.board),
            Shaper::new(Arc::clone(&self.routes)),
            self.settings.retry_max,
        )
        .await?;
        for spec in &self.specs {
            publisher.ensure(spec).await?;
        }
        publisher.release_parked().await?;
        let source = self.connector.open(checkpoint.as_ref()).await?;
        let (name, board) = (Arc::clone(&self.name), Arc::clone(&self.board));
        let (settings, routes) = (self.settings.clone(), Arc::clone(&self.routes));
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let published = checkpoint.map(|checkpoint| checkpoint.position);
        let reader = move |work, taken, durable| Reader {
            name,
            source,
            published,
            routes,
            shapers: Vec::new(),
            settings,
            board,
            work: Some(work),
            taken,
            durable,
            workers,
        };
        Ok((publisher, reader))
    }
}

type Work = mpsc::UnboundedSender<super::publisher::Work>;
type Taken = mpsc::UnboundedReceiver<super::publisher::Taken>;
type Durable = watch::Sender<u64>;
