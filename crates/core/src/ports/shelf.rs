//! What a person may do with events that are set aside.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{EventId, Micros, Record, Result};

/// Events that are set aside in one place: an outbox, an inbox, a push.
#[async_trait]
pub trait Shelf: Send + Sync {
    /// What is set aside, oldest first: one line for each key, and for each event without one.
    async fn list(&self, filter: &ShelfFilter) -> Result<Vec<Shelved>>;

    /// How much of one owner is set aside.
    async fn count(&self, owner: &str) -> Result<ShelfCount> {
        let mut count = ShelfCount::default();
        let filter = ShelfFilter { owner: Some(owner.to_owned()), ..ShelfFilter::default() };
        for line in self.list(&filter).await? {
            match line.state {
                ShelfState::Parked => count.parked += 1,
                ShelfState::Retrying => count.retrying += 1,
                ShelfState::Waiting => count.waiting += 1,
            }
            count.waiting += line.waiting;
        }
        Ok(count)
    }

    /// The events themselves, whole, in the order they will go.
    async fn show(&self, filter: &ShelfFilter) -> Result<Vec<ShelvedEvent>>;

    /// Lets the first of each key be tried again; what waits behind it follows in order. Returns how many.
    async fn retry(&self, filter: &ShelfFilter) -> Result<u64>;

    /// Forgets the first of each key for good and lets the next one go: what is parked, and what is tried again
    /// only where the filter names its key or its id. Returns how many.
    async fn drop(&self, filter: &ShelfFilter) -> Result<u64>;
}

/// How much is set aside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShelfCount {
    /// Firsts of keys, and events without a key, that wait for a person.
    pub parked: u64,
    /// Those that are tried again.
    pub retrying: u64,
    /// Events behind either.
    pub waiting: u64,
}

impl ShelfCount {
    /// From how many events are in each state, by its word; other states do not count.
    pub fn of(states: impl IntoIterator<Item = (String, i64)>) -> Self {
        let mut count = Self::default();
        for (word, events) in states {
            let events = u64::try_from(events).unwrap_or(0);
            match ShelfState::of(&word) {
                Some(ShelfState::Parked) => count.parked += events,
                Some(ShelfState::Retrying) => count.retrying += events,
                Some(ShelfState::Waiting) => count.waiting += events,
                None => {}
            }
        }
        count
    }
}

/// Which of the events that are set aside: those that fit all that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShelfFilter {
    /// Of this consumer, source or push.
    pub owner: Option<String>,
    /// Of this stream.
    pub stream: Option<String>,
    /// Of this order key.
    pub key: Option<Bytes>,
    /// The one first of its key that has this id.
    pub id: Option<EventId>,
    /// At most so many lines or events; 0 for all.
    pub limit: usize,
}

impl ShelfFilter {
    /// Whether it names a key, or an event by its id.
    pub fn names_one(&self) -> bool {
        self.key.is_some() || self.id.is_some()
    }
}

/// A key with something set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shelved {
    /// The consumer, source or push.
    pub owner: String,
    /// The stream.
    pub stream: Arc<str>,
    /// The order key; `None` for one event without a key.
    pub key: Option<Bytes>,
    /// The id of its first event.
    pub id: EventId,
    /// How its first event stands.
    pub state: ShelfState,
    /// How often that was tried.
    pub attempts: u32,
    /// What was said the last time.
    pub error: Option<String>,
    /// Since when it is set aside.
    pub since: Micros,
    /// How many events wait behind it.
    pub waiting: u64,
}

/// One event that is set aside.
#[derive(Debug, Clone)]
pub struct ShelvedEvent {
    /// The consumer, source or push.
    pub owner: String,
    /// The order key.
    pub key: Option<Bytes>,
    /// How it stands.
    pub state: ShelfState,
    /// How often it was tried.
    pub attempts: u32,
    /// What was said the last time.
    pub error: Option<String>,
    /// Since when it is set aside.
    pub since: Micros,
    /// The event and its place.
    pub record: Record,
}

/// How an event that is set aside stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShelfState {
    /// Until a person decides.
    Parked,
    /// It is tried again.
    Retrying,
    /// Behind the first of its key.
    Waiting,
}

impl ShelfState {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Parked => "parked",
            Self::Retrying => "retrying",
            Self::Waiting => "waiting",
        }
    }

    /// The state of that word.
    pub fn of(word: &str) -> Option<Self> {
        [Self::Parked, Self::Retrying, Self::Waiting].into_iter().find(|state| state.word() == word)
    }
}
