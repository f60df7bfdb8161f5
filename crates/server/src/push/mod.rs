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

use std::sync::Arc;
use std::time::Duration;

use headwater_core::Result;
use headwater_core::ports::{Backlog, Bus, Shelf, Start, Subscribe};
use headwater_runtime::consume::{Consume, ConsumeSettings, Failure, Handle, Received, Watch};
use tokio_util::sync::CancellationToken;

pub use config::{Basic, Body, Choice, From, Hidden, PushConfig};
pub use look::look;
use request::Requests;

/// How many keys' lanes there are for each request that may be on its way: a key whose endpoint is slow holds up
/// only those that share its lane.
const LANES: usize = 8;

/// How long a push that ended with an error waits before it begins again, and how often it looks for a stream that is
/// not there.
const PAUSE: Duration = Duration::from_secs(1);

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

    /// Runs until `stop`: what is begun is finished. Whatever ends it is logged, and it begins again. A stream that is
    /// not there yet is waited for, and holds up no other.
    pub async fn run(self, stop: CancellationToken) {
        let mut said = Vec::new();
        while !stop.is_cancelled() {
            let missing = self.missing().await;
            if !missing.is_empty() && missing != said {
                let streams = missing.join(", ");
                tracing::warn!(push = %self.name, streams, "there is no such stream yet: it is waited for");
            }
            if let Err(error) = self.run_without(&missing, &stop).await {
                tracing::error!(push = %self.name, %error, "a push ended; it begins again");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(PAUSE) => {}
                }
            }
            said = missing;
        }
    }

    /// Runs with the other streams until `stop`, an error, or until one of these is there.
    async fn run_without(&self, missing: &[Arc<str>], stop: &CancellationToken) -> Result<()> {
        let all = self.config.streams.iter().map(|stream| Arc::from(stream.as_str()));
        let streams: Vec<Arc<str>> = all.filter(|stream| !missing.contains(stream)).collect();
        let turn = stop.child_token();
        let run = async {
            if streams.is_empty() {
                turn.cancelled().await;
                return Ok(());
            }
            self.consume(streams).run(turn.clone()).await
        };
        let news = async {
            loop {
                tokio::time::sleep(PAUSE).await;
                if !missing.is_empty() && self.missing().await != missing {
                    return;
                }
            }
        };
        tokio::pin!(run);
        tokio::select! {
            ended = &mut run => return ended,
            () = news => turn.cancel(),
        }
        run.await
    }

    /// The streams that the bus does not have. One that cannot be asked for now is not missed.
    async fn missing(&self) -> Vec<Arc<str>> {
        let mut missing = Vec::new();
        for stream in &self.config.streams {
            let stream: Arc<str> = stream.as_str().into();
            let alone = Subscribe { streams: vec![Arc::clone(&stream)], group: None, start: Start::End };
            if self.bus.subscribe(alone).await.is_err_and(|error| !error.is_retryable()) {
                missing.push(stream);
            }
        }
        missing
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
