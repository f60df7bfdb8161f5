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
use std::time::Duration;

use headwater_core::Result;
use headwater_core::ports::{Backlog, Bus, Shelf, Start, Subscribe};
use headwater_runtime::consume::{Consume, ConsumeSettings, Failure, Handle, Received, Watch};
use tokio_util::sync::CancellationToken;

pub use config::{Basic, Body, Choice, From, Hidden, PushConfig};
pub use look::look;
use request::{Permit, Requests};

/// How many keys' lanes there are for each request that may be on its way: a key whose endpoint is slow holds up
/// only those that share its lane.
const LANES: usize = 8;

/// How long a push that ended with an error waits before it begins again, or looks again for a stream that cannot be
/// read; that grows.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

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
        let mut missing = Missing::new();
        while !stop.is_cancelled() {
            let streams = self.streams();
            if stop.run_until_cancelled(self.ask(&streams, &mut missing)).await.is_none() {
                return;
            }
            if let Err(error) = self.run_without(&mut missing, &stop).await {
                tracing::error!(push = %self.name, %error, "a push ended; it begins again");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(PAUSE) => {}
                }
            }
        }
    }

    /// Runs with the other streams until `stop`, an error, or until one of these can be read.
    async fn run_without(&self, missing: &mut Missing, stop: &CancellationToken) -> Result<()> {
        let mut streams = self.streams();
        streams.retain(|stream| !missing.contains_key(stream));
        let turn = stop.child_token();
        let run = async {
            if streams.is_empty() {
                turn.cancelled().await;
                return Ok(());
            }
            self.consume(streams).run(turn.clone()).await
        };
        tokio::pin!(run);
        tokio::select! {
            ended = &mut run => return ended,
            () = self.comes(missing) => turn.cancel(),
        }
        run.await
    }

    /// Waits until one of these can be read.
    async fn comes(&self, missing: &mut Missing) {
        let (before, mut pause) = (missing.len(), PAUSE);
        if before == 0 {
            return std::future::pending().await;
        }
        while missing.len() == before {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            let streams: Vec<_> = missing.keys().cloned().collect();
            self.ask(&streams, missing).await;
        }
    }

    /// Asks the bus for streams. What it refuses is missing until it can be read; a bus that cannot be asked changes
    /// nothing.
    async fn ask(&self, streams: &[Arc<str>], missing: &mut Missing) {
        for stream in streams {
            let alone = Subscribe { streams: vec![Arc::clone(stream)], group: None, start: Start::End };
            match self.bus.subscribe(alone).await {
                Ok(_) => _ = missing.remove(stream),
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
    }

    fn streams(&self) -> Vec<Arc<str>> {
        self.config.streams.iter().map(|stream| stream.as_str().into()).collect()
    }

    fn consume(&self, streams: Vec<Arc<str>>) -> Consume<I, Deliver> {
        let config = &self.config;
        let settings = ConsumeSettings {
            concurrency: config.concurrency.saturating_mul(LANES).min(256).max(config.concurrency),
            held: Some(config.again()),
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
            start: config.start.into(),
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

    async fn admit(&self, again: bool) -> Permit {
        self.0.admit(again).await
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
