//! Consuming streams in a service.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use headwater_core::ports::{Backlog, Bus, Start};
use headwater_core::{Error, Kind, Result};
use headwater_runtime::consume::{Consume, ConsumeSettings};

use crate::StopToken;
use crate::handler::{Each, Handler};

/// Reads streams and hands each event, with an open transaction of the service's database, to a handler.
///
/// Events of one key are handled in order, one after the other; events of different keys at the same time. Each
/// takes effect exactly once, whatever is killed and however often it is delivered. A handler that fails is tried
/// again, while other keys go on; when that does not help, the event is parked in the service's database and later
/// ones of its key wait behind it (`headwater parked` shows them and lets them go).
///
/// Every instance of a service runs a consumer of the same name: they share the partitions.
pub struct Consumer<I> {
    name: String,
    streams: Vec<Arc<str>>,
    start: Start,
    bus: Arc<dyn Bus>,
    inbox: I,
    settings: ConsumeSettings,
}

impl Consumer<()> {
    /// Begins to put a consumer together. Its name is the same in every instance of the service, and stays: it
    /// is what the consumer's cursors and inbox rows go by.
    pub fn builder(name: impl Into<String>) -> Builder<()> {
        Builder {
            name: name.into(),
            streams: Vec::new(),
            start: Start::Beginning,
            bus: None,
            inbox: (),
            settings: ConsumeSettings::default(),
        }
    }
}

impl<I: Backlog> Consumer<I> {
    /// Runs until `stop`: then what is begun is finished, cursors are written, and the group is left. A database
    /// or a bus that is away is waited for; any other error of theirs (a missing table, a stream that does not
    /// exist) ends it. Dropping the future ends it at once; what is begun is rolled back.
    pub async fn run(self, handler: impl Handler<I::Transaction>, stop: StopToken) -> Result<()> {
        let Self { name, streams, start, bus, inbox, settings } = self;
        Consume { name, streams, start, bus, inbox, handle: Each(handler), settings, watch: Arc::default() }
            .run(stop)
            .await
    }
}

/// Puts a [`Consumer`] together.
pub struct Builder<I> {
    name: String,
    streams: Vec<Arc<str>>,
    start: Start,
    bus: Option<Arc<dyn Bus>>,
    inbox: I,
    settings: ConsumeSettings,
}

impl<I> Builder<I> {
    /// The bus that has the streams.
    #[must_use]
    pub fn bus(self, bus: Arc<dyn Bus>) -> Self {
        Self { bus: Some(bus), ..self }
    }

    /// What to read.
    #[must_use]
    pub fn streams<S: Into<Arc<str>>>(self, streams: impl IntoIterator<Item = S>) -> Self {
        Self { streams: streams.into_iter().map(Into::into).collect(), ..self }
    }

    /// The inbox in the service's database.
    #[must_use]
    pub fn inbox<J: Backlog>(self, inbox: J) -> Builder<J> {
        let Self { name, streams, start, bus, settings, .. } = self;
        Builder { name, streams, start, bus, inbox, settings }
    }

    /// Where a new consumer begins; at the beginning, if not told.
    #[must_use]
    pub fn start(self, start: Start) -> Self {
        Self { start, ..self }
    }

    /// How many transactions are open at once, each with events of other keys, whether those arrive or were set aside
    /// and go on; 8. The pool of the database needs as many connections and one more.
    #[must_use]
    pub fn concurrency(self, transactions: usize) -> Self {
        self.set(|settings| settings.concurrency = transactions)
    }

    /// How many events may share a transaction when many wait; 100. With 1 each has its own.
    #[must_use]
    pub fn batch(self, events: usize) -> Self {
        self.set(|settings| settings.batch = events)
    }

    /// How many events, and how many bytes of them, may be read and not handled; 10,000 and 8 MiB.
    #[must_use]
    pub fn buffer(self, events: usize, bytes: usize) -> Self {
        self.set(|settings| (settings.max_events, settings.max_bytes) = (events, bytes))
    }

    /// How often an event is tried before its key is parked; 10.
    #[must_use]
    pub fn attempts(self, attempts: u32) -> Self {
        self.set(|settings| settings.attempts = attempts)
    }

    /// How long the handler may take, for all events that share a transaction: after that it is given up, rolled back,
    /// and has failed. Without a bound one that hangs holds up its keys until the consumer is restarted. A second later
    /// the server, too, gives up a statement of its, and ends a transaction that nobody goes on with (on SQLite no
    /// server does).
    #[must_use]
    pub fn handler_timeout(self, timeout: Duration) -> Self {
        self.set(|settings| settings.handler_timeout = Some(timeout))
    }

    /// How long an event waits before it is tried again: at first, and at most; each wait doubles. 100 ms and 30 s.
    #[must_use]
    pub fn backoff(self, first: Duration, most: Duration) -> Self {
        self.set(|settings| (settings.retry_min, settings.retry_max) = (first, most))
    }

    /// How long inbox rows are kept; 7 days. An event that comes again later than that is handled again: it has to
    /// be longer than the streams reach back, or than anybody would replay them.
    #[must_use]
    pub fn retention(self, retention: Duration) -> Self {
        self.set(|settings| settings.retention = retention)
    }

    /// How far back the streams reach: a shorter [`Builder::retention`] is refused.
    #[must_use]
    pub fn longest_replay(self, replay: Duration) -> Self {
        self.set(|settings| settings.longest_replay = Some(replay))
    }

    /// How often cursors are written to the bus, and parked events that may go are looked for; 1 s.
    #[must_use]
    pub fn interval(self, interval: Duration) -> Self {
        self.set(|settings| settings.interval = interval)
    }

    /// How long what is begun may take to finish at a stop; 30 s.
    #[must_use]
    pub fn drain_timeout(self, timeout: Duration) -> Self {
        self.set(|settings| settings.drain_timeout = timeout)
    }

    /// What events keep their order by, and wait for each other by, where that is not their key: of a stream with
    /// an `order_key`, the order that a line belongs to. `None` waits for nothing.
    #[must_use]
    pub fn order_by(
        self,
        order_by: impl Fn(&headwater_core::Event) -> Option<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.set(|settings| settings.order_by = Some(Arc::new(order_by)))
    }

    fn set(mut self, set: impl FnOnce(&mut ConsumeSettings)) -> Self {
        set(&mut self.settings);
        self
    }
}

impl<I: Backlog> Builder<I> {
    /// The consumer. What is missing or makes no sense is an error of kind `Config`.
    pub fn build(self) -> Result<Consumer<I>> {
        let missing = |what: &str| Error::new(Kind::Config, format!("consumer {}: {what}", self.name));
        if self.name.is_empty() {
            return Err(missing("it has no name"));
        }
        if self.streams.is_empty() {
            return Err(missing("it reads no streams").hint("name them: .streams([\"orders\"])"));
        }
        self.settings.check()?;
        let bus = self.bus.ok_or_else(|| missing("it has no bus").hint("give it one: .bus(...)"))?;
        let (name, streams, start) = (self.name.clone(), self.streams, self.start);
        Ok(Consumer { name, streams, start, bus, inbox: self.inbox, settings: self.settings })
    }
}
