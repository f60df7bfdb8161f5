//! Pushes: events to HTTP endpoints, by the engine of consumers.
//!
//! `config`: the section; `template`: URLs and methods of an event; `sign`: signatures; `answer`: what a status
//! means; `request`: one request; `look`: whether the endpoint is there.

mod answer;
mod config;
mod look;
mod request;
mod sign;
mod template;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_core::Result;
use headwater_core::ports::{Backlog, Bus, Delivery, Shelf, Start, Subscribe};
use headwater_runtime::Backoff;
use headwater_runtime::clock::now;
use headwater_runtime::consume::{Consume, ConsumeSettings, Failure, Handle, Received, Watch};
use tokio_util::sync::CancellationToken;

pub use config::{Basic, Body, Choice, From, Hidden, PushConfig};
pub use look::look;
use request::{Permit, Requests};

/// How many keys' lanes there are for each request that may be on its way: a key whose endpoint is slow holds up
/// only those that share its lane.
const LANES: usize = 8;

/// The longest that a push which ended with an error waits before it begins again, or looks again for a stream that
/// cannot be read.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long it has to run, beside what is waited for at its end, for the next wait to be a short one.
const WELL: Duration = Duration::from_mins(1);

/// Within this time a bus says that a stream may be known and not read, once it is read. Where that was not enough, it
/// is given twice the time, up to the longest.
const LOOK: Duration = Duration::from_secs(1);
const LONGEST_LOOK: Duration = Duration::from_secs(15);

/// The streams that cannot be read, and why, as it was said last.
type Missing = BTreeMap<Arc<str>, String>;

/// Delivers streams to an HTTP endpoint.
pub struct Push<I> {
    name: String,
    config: PushConfig,
    requests: Arc<Requests>,
    bus: Arc<dyn Bus>,
    inbox: I,
    shelf: Arc<dyn Shelf>,
    watch: Arc<Watch>,
}

impl<I> Push<I>
where
    I: Backlog + Clone,
{
    /// A push, ready to run. What makes no sense is an error of kind `Config`. The inbox's transactions must hold
    /// nothing while they are open: a request is made in each. `shelf` is what the inbox has set aside.
    pub fn new(
        name: &str,
        config: PushConfig,
        bus: Arc<dyn Bus>,
        inbox: I,
        shelf: Arc<dyn Shelf>,
    ) -> Result<Self> {
        config.checked(name)?;
        let requests = Arc::new(Requests::new(name, &config)?);
        Ok(Self { name: name.to_owned(), config, requests, bus, inbox, shelf, watch: Arc::default() })
    }

    /// How it is doing.
    pub fn watch(&self) -> Arc<Watch> {
        Arc::clone(&self.watch)
    }

    /// What it has set aside.
    pub fn shelf(&self) -> Arc<dyn Shelf> {
        Arc::clone(&self.shelf)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs until `stop`: what is begun is finished. Whatever ends it is logged, and it begins again. A stream that
    /// cannot be read yet is waited for, and holds up no other.
    pub async fn run(self, stop: CancellationToken) {
        let (mut missing, mut backoff) = (Missing::new(), Backoff::new(LONGEST_PAUSE));
        let (mut said, streams, mut doubt) = (String::new(), self.streams(), false);
        let (mut start, started, mut look) = (self.config.start.into(), now(), LOOK);
        while !stop.is_cancelled() {
            let asked = self.ask(&streams, &mut missing, doubt, look);
            if stop.run_until_cancelled(asked).await.is_none() {
                return;
            }
            if doubt {
                look = look.saturating_mul(2).min(LONGEST_LOOK);
            }
            let began = Instant::now();
            let ended = self.run_without(&mut missing, start, look, &stop).await;
            doubt = ended.is_err();
            // What comes late is read from its first event on that came since.
            if start == Start::End {
                start = Start::Time(started);
            }
            if began.elapsed() > self.config.timeout.saturating_add(WELL) {
                backoff.reset();
                said.clear();
                look = LOOK;
            }
            let Err(error) = ended else { continue };
            let (wait, error) = (backoff.next(), error.to_string());
            if said == error {
                tracing::debug!(push = %self.name, error, ?wait, "a push ended again");
            } else {
                tracing::error!(push = %self.name, error, ?wait, "a push ended; it begins again");
            }
            said = error;
            stop.run_until_cancelled(tokio::time::sleep(wait)).await;
        }
    }

    /// Runs with the other streams until `stop`, an error, or until one of these can be read.
    async fn run_without(
        &self,
        missing: &mut Missing,
        start: Start,
        look: Duration,
        stop: &CancellationToken,
    ) -> Result<()> {
        let mut streams = self.streams();
        streams.retain(|stream| !missing.contains_key(stream));
        let turn = stop.child_token();
        let run = async {
            if streams.is_empty() {
                turn.cancelled().await;
                return Ok(());
            }
            self.consume(streams, start).run(turn.clone()).await
        };
        tokio::pin!(run);
        tokio::select! {
            ended = &mut run => return ended,
            () = self.comes(missing, look) => turn.cancel(),
        }
        run.await
    }

    /// Waits until one of these can be read.
    async fn comes(&self, missing: &mut Missing, look: Duration) {
        let (before, mut backoff) = (missing.len(), Backoff::new(LONGEST_PAUSE));
        if before == 0 {
            return std::future::pending().await;
        }
        while missing.len() == before {
            tokio::time::sleep(backoff.next()).await;
            let streams: Vec<_> = missing.keys().cloned().collect();
            self.ask(&streams, missing, true, look).await;
        }
    }

    /// Asks the bus for streams; with `doubt`, or where it has refused one, whether they can be read as well. What it
    /// refuses is missing until it can be read; a bus that cannot be asked changes nothing.
    async fn ask(&self, streams: &[Arc<str>], missing: &mut Missing, doubt: bool, look: Duration) {
        let asked = streams.iter().map(|stream| {
            let look = if doubt || missing.contains_key(stream) { look } else { Duration::ZERO };
            self.read(stream, look)
        });
        let asked: Vec<_> = asked.collect();
        for (stream, asked) in streams.iter().zip(futures::future::join_all(asked).await) {
            match asked {
                Ok(()) => _ = missing.remove(stream),
                Err(error) if error.is_retryable() => {}
                Err(error) => {
                    let why = error.to_string();
                    if missing.get(stream) != Some(&why) {
                        tracing::warn!(push = %self.name, %stream, error = why, "a stream cannot be read yet: it is waited for");
                        missing.insert(Arc::clone(stream), why);
                    }
                }
            }
        }
        let why = missing.iter().map(|(stream, why)| format!("{stream} cannot be read: {why}"));
        self.watch.missing(why.collect());
    }

    /// Whether a stream can be read, as far as the bus says so at once or in this time.
    async fn read(&self, stream: &Arc<str>, look: Duration) -> Result<()> {
        let alone = Subscribe { streams: vec![Arc::clone(stream)], group: None, start: Start::End };
        let mut subscription = self.bus.subscribe(alone).await?;
        let read = async {
            while !matches!(subscription.next().await?, Delivery::Batch { .. }) {}
            Ok(())
        };
        tokio::time::timeout(look, read).await.unwrap_or(Ok(()))
    }

    fn streams(&self) -> Vec<Arc<str>> {
        self.config.streams.iter().map(|stream| stream.as_str().into()).collect()
    }

    fn consume(&self, streams: Vec<Arc<str>>, start: Start) -> Consume<I, Deliver> {
        let config = &self.config;
        let settings = ConsumeSettings {
            concurrency: config.concurrency.saturating_mul(LANES).min(256).max(config.concurrency),
            held: Some(config.aside()),
            batch: config.batch,
            one_call: true,
            attempts: config.attempts.unwrap_or(u32::MAX),
            retry_max: config.retry_max,
            retention: config.retention,
            drain_timeout: config.timeout.saturating_add(Duration::from_secs(5)),
            ..ConsumeSettings::default()
        };
        Consume {
            name: self.name.clone(),
            streams,
            start,
            bus: Arc::clone(&self.bus),
            inbox: self.inbox.clone(),
            handle: Deliver(Arc::clone(&self.requests)),
            settings,
            watch: Arc::clone(&self.watch),
        }
    }
}

/// Makes requests of events; the transaction has no part in it.
struct Deliver(Arc<Requests>);

impl<T: Send> Handle<T> for Deliver {
    type Permit = Permit;

    async fn admit(&self) -> Permit {
        self.0.admit().await
    }

    fn again(&self) -> Option<Permit> {
        self.0.again()
    }

    async fn handle(&self, _: &mut T, events: &[&Received]) -> Result<(), Failure> {
        let place = |received: &Received| {
            let event = &received.record.event;
            (Arc::clone(&event.stream), event.partition)
        };
        // One request is of one partition, and of no more events than the config says, whoever hands them out.
        for events in events.chunk_by(|a, b| place(a) == place(b)) {
            for events in events.chunks(self.0.batch()) {
                self.0.deliver(events).await?;
            }
        }
        Ok(())
    }
}
