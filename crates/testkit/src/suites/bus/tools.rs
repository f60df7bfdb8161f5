//! What the tests of the suite, and adapters' own tests of a bus, share.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use headwater_core::ports::{
    Accepted, Bus, Cursor, Delivery, Published, SeekTo, Start, Subscribe, Subscription, Writer,
};
use headwater_core::{Checkpoint, Event, EventId, Kind, Position, Record, Result, Retention, StreamSpec};

/// No test waits longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// When the first event of a test was committed; the others follow a millisecond apart each.
pub const EPOCH: i64 = 1_700_000_000_000_000;

/// Waits, but not for ever.
pub async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("nothing happened for a minute")
}

/// A name that no other test uses.
pub fn unique(name: &str) -> String {
    format!("{name}-{:016x}", rand::random::<u64>())
}

/// Makes a stream with a name of its own.
pub async fn stream(bus: &Arc<dyn Bus>, partitions: u32) -> Arc<str> {
    let spec = spec(&unique("stream"), partitions);
    assert_eq!(within(bus.ensure(&spec)).await.unwrap(), partitions);
    spec.name
}

/// A stream that keeps everything.
pub fn spec(name: &str, partitions: u32) -> StreamSpec {
    StreamSpec { name: name.into(), partitions, retention: Retention::default() }
}

/// Event number `n` of a test, told apart by its payload.
pub fn event(stream: &Arc<str>, partition: u32, n: u64) -> Event {
    let time = EPOCH + n as i64 * 1000;
    Event {
        id: EventId::derive(time, &[stream.as_bytes(), &partition.to_be_bytes(), &n.to_be_bytes()]),
        stream: Arc::clone(stream),
        partition: Some(partition),
        kind: "create".into(),
        key: Some(Bytes::from(format!("key-{n}"))),
        payload: Some(Bytes::from(format!("{partition}/{n}"))),
        headers: Default::default(),
        time,
        position: Position::of(1, [n, 0, 0]),
    }
}

/// Events `from` up to, but without, `to` in one partition.
pub fn events(stream: &Arc<str>, partition: u32, numbers: std::ops::Range<u64>) -> Vec<Event> {
    numbers.map(|n| event(stream, partition, n)).collect()
}

/// The payloads of [`events`].
pub fn texts(partition: u32, numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|n| format!("{partition}/{n}")).collect()
}

/// Checkpoint number `n` of a source; its position begins with `n`.
pub fn checkpoint(source: &str, n: u64) -> Checkpoint {
    let state = serde_json::json!({ "n": n, "text": "ä\"\n" });
    Checkpoint { source: source.into(), position: Position::of(1, [n, 2, 3]), state }
}

/// Where a source begins anew, as whoever opens its next writer is told.
pub async fn begin(bus: &Arc<dyn Bus>, source: &str) -> Result<Option<Checkpoint>> {
    within(bus.writer(source)).await.map(|opened| opened.checkpoint)
}

/// A source's writer.
pub async fn writer(bus: &Arc<dyn Bus>, source: &str) -> Box<dyn Writer> {
    within(bus.writer(source)).await.unwrap().writer
}

/// Hands a batch over, which must not be rejected.
pub async fn accept(writer: &dyn Writer, events: Vec<Event>, at: Option<Checkpoint>) -> Accepted {
    match within(writer.publish(events, at)).await.unwrap() {
        Published::Accepted(accepted) => accepted,
        Published::Rejected { rejections, .. } => panic!("rejected: {rejections:?}"),
    }
}

/// Publishes a batch with a writer of its own, and waits until it is durable.
pub async fn publish(bus: &Arc<dyn Bus>, events: Vec<Event>, at: Option<Checkpoint>) {
    let source = at.as_ref().map_or_else(|| unique("source"), |at| at.source.clone());
    let writer = writer(bus, &source).await;
    within(accept(&*writer, events, at).await.durable()).await.unwrap();
}

/// A subscription and what it said so far.
pub struct Reader {
    subscription: Box<dyn Subscription>,
    /// The partitions that are assigned, with the cursor that they began at.
    pub held: BTreeMap<(Arc<str>, u32), Cursor>,
    /// What was revoked, with its epoch.
    pub revoked: Vec<(Arc<str>, u32, u64)>,
}

impl Reader {
    /// Subscribes to one stream.
    pub async fn open(bus: &Arc<dyn Bus>, stream: &Arc<str>, group: Option<&str>, start: Start) -> Self {
        Self::of(bus, std::slice::from_ref(stream), group, start).await
    }

    /// Subscribes to several.
    pub async fn of(bus: &Arc<dyn Bus>, streams: &[Arc<str>], group: Option<&str>, start: Start) -> Self {
        let subscribe = Subscribe { streams: streams.to_vec(), group: group.map(str::to_owned), start };
        let subscription = within(bus.subscribe(subscribe)).await.unwrap();
        Self { subscription, held: BTreeMap::new(), revoked: Vec::new() }
    }

    /// The next delivery, noted.
    pub async fn next(&mut self) -> Delivery {
        let delivery = within(self.subscription.next()).await.unwrap();
        self.note(&delivery);
        delivery
    }

    /// Checks a delivery against what the port says, and notes it.
    pub fn note(&mut self, delivery: &Delivery) {
        match delivery {
            Delivery::Assigned(cursor) => {
                let before = self.held.insert((Arc::clone(&cursor.stream), cursor.partition), cursor.clone());
                assert!(before.is_none(), "assigned twice: {cursor:?}");
            }
            Delivery::Batch { stream, partition, epoch, records } => {
                let held = self.held.get(&(Arc::clone(stream), *partition));
                let held = held.unwrap_or_else(|| panic!("a batch of {stream} {partition}, not assigned"));
                assert_eq!(held.epoch, *epoch);
                assert!(!records.is_empty(), "an empty batch");
                assert!(records.is_sorted_by(|a, b| a.offset < b.offset), "offsets must rise");
                for record in records {
                    assert_eq!((&record.event.stream, record.event.partition), (stream, Some(*partition)));
                }
            }
            Delivery::Revoked { stream, partition, epoch } => {
                let held = self.held.remove(&(Arc::clone(stream), *partition));
                assert_eq!(held.expect("revoked what was not assigned").epoch, *epoch);
                self.revoked.push((Arc::clone(stream), *partition, *epoch));
            }
        }
    }

    /// The subscription itself.
    pub fn raw(&mut self) -> &mut dyn Subscription {
        &mut *self.subscription
    }

    /// Reads until it has `count` records.
    pub async fn take(&mut self, count: usize) -> Vec<Record> {
        let mut taken = Vec::new();
        while taken.len() < count {
            if let Delivery::Batch { records, .. } = self.next().await {
                taken.extend(records);
            }
        }
        assert_eq!(taken.len(), count, "more than was published");
        taken
    }

    /// The records of the next batch.
    pub async fn take_some(&mut self) -> Vec<Record> {
        loop {
            if let Delivery::Batch { records, .. } = self.next().await {
                return records;
            }
        }
    }

    /// Reads until `done` says so.
    pub async fn until(&mut self, done: impl Fn(&Self) -> bool) -> Vec<Record> {
        let mut taken = Vec::new();
        while !done(self) {
            if let Delivery::Batch { records, .. } = self.next().await {
                taken.extend(records);
            }
        }
        taken
    }

    /// Commits that everything below `offset` of a held partition is done.
    pub async fn commit(&mut self, stream: &Arc<str>, partition: u32, offset: u64) -> Result<()> {
        let held = self.held.get(&(Arc::clone(stream), partition)).expect("not held").clone();
        self.commit_cursor(&Cursor { offset, ..held }).await
    }

    /// Commits any cursor.
    pub async fn commit_cursor(&mut self, cursor: &Cursor) -> Result<()> {
        within(self.subscription.commit(cursor)).await
    }

    /// Seeks, which must work.
    pub async fn seek(&mut self, stream: &str, partition: u32, to: SeekTo) {
        within(self.subscription.seek(stream, partition, to)).await.unwrap();
    }
}

/// The payloads as text.
pub fn payloads(records: &[Record]) -> Vec<String> {
    let text = |record: &Record| {
        String::from_utf8(record.event.payload.clone().expect("no payload").to_vec()).unwrap()
    };
    records.iter().map(text).collect()
}

/// The payloads of one partition as text.
pub fn payloads_of(records: &[Record], partition: u32) -> Vec<String> {
    let of = |record: &&Record| record.event.partition == Some(partition);
    payloads(&records.iter().filter(of).cloned().collect::<Vec<_>>())
}

/// The kind of an error that must have happened.
pub fn kind<T>(result: Result<T>) -> Kind {
    match result {
        Ok(_) => panic!("no error"),
        Err(error) => error.kind(),
    }
}
