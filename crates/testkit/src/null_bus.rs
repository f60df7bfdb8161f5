//! A bus that takes everything, for tests and measurements of what stands before a bus.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use headwater_core::ports::{
    Accepted, Bus, BusStatus, Durable, Opened, Published, Subscribe, Subscription, Writer,
};
use headwater_core::{Checkpoint, Error, Event, Kind, Result, StreamSpec};

/// Takes every event, promises it at once, and remembers checkpoints; keeps the events if asked to. Its clones are
/// one.
#[derive(Debug, Clone, Default)]
pub struct NullBus {
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    checkpoints: HashMap<String, Checkpoint>,
    events: Option<Vec<Event>>,
    count: u64,
}

impl NullBus {
    /// A bus that keeps the events it takes, for [`NullBus::events`].
    pub fn keeping() -> Self {
        let held = Held { events: Some(Vec::new()), ..Held::default() };
        Self { held: Arc::new(Mutex::new(held)) }
    }

    /// The events it kept, in the order they were published.
    pub fn events(&self) -> Vec<Event> {
        self.lock().events.clone().unwrap_or_default()
    }

    /// How many events it took.
    pub fn count(&self) -> u64 {
        self.lock().count
    }

    /// A proof of durability for a checkpoint, which is remembered: what [`headwater_core::ports::Source::confirm`] asks for.
    pub async fn durable(&self, checkpoint: &Checkpoint) -> Durable {
        match self.publish(Vec::new(), Some(checkpoint.clone())).await.expect("takes everything") {
            Published::Accepted(accepted) => accepted.durable().await.expect("durable at once"),
            Published::Rejected { .. } => unreachable!("it rejects nothing"),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().expect("no test panics while it holds this")
    }
}

#[async_trait]
impl Writer for NullBus {
    async fn publish(&self, events: Vec<Event>, checkpoint: Option<Checkpoint>) -> Result<Published> {
        let mut held = self.lock();
        held.count += events.len() as u64;
        if let Some(kept) = &mut held.events {
            kept.extend(events);
        }
        if let Some(checkpoint) = checkpoint {
            held.checkpoints.insert(checkpoint.source.clone(), checkpoint);
        }
        Ok(Published::Accepted(Accepted::new(async { Ok(()) })))
    }
}

#[async_trait]
impl Bus for NullBus {
    async fn ensure(&self, spec: &StreamSpec) -> Result<u32> {
        Ok(spec.partitions)
    }

    async fn writer(&self, source: &str) -> Result<Opened> {
        let checkpoint = self.lock().checkpoints.get(source).cloned();
        Ok(Opened { writer: Box::new(self.clone()), checkpoint })
    }

    async fn subscribe(&self, _: Subscribe) -> Result<Box<dyn Subscription>> {
        Err(Error::new(Kind::Config, "reading from the null bus").hint("it keeps nothing to be read"))
    }

    async fn status(&self) -> Result<BusStatus> {
        let checkpoints = self.lock().checkpoints.values().cloned().collect();
        Ok(BusStatus { kind: "null".into(), checkpoints, ..BusStatus::default() })
    }
}
