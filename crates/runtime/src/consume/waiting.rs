//! A key that waits to be tried again, in memory, with what comes behind it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use headwater_core::ports::Trouble;
use tokio::time::Instant;

use super::{ConsumeSettings, Item};

/// The part of the room (one of so many) that a key in trouble may take: then it is set aside.
const PART: usize = 8;

/// How many times as long a key is tried in memory that takes more, while nothing succeeds.
const LONG: u32 = 2;

/// Counts those that are in trouble at the moment: there are as many as there are copies.
pub(super) type Troubled = Arc<()>;

/// A key that waits.
pub(super) struct Waiting {
    /// The event that failed, and later ones.
    items: VecDeque<Item>,
    bytes: usize,
    /// How often it was tried, and what was said the last time.
    pub(super) trouble: Trouble,
    pub(super) until: Instant,
    /// How many events the consumer had handled when it failed for the first time.
    handled: Option<u64>,
    /// It was to be set aside, and the database did not take it.
    refused: bool,
    troubled: Troubled,
}

impl Waiting {
    pub(super) fn new(items: impl IntoIterator<Item = Item>, troubled: &Troubled) -> Self {
        let trouble = Trouble { attempts: 0, error: String::new() };
        let (until, troubled) = (Instant::now(), Arc::clone(troubled));
        let mut new = Self {
            items: VecDeque::new(),
            bytes: 0,
            trouble,
            until,
            handled: None,
            refused: false,
            troubled,
        };
        new.extend(items);
        new
    }

    /// More of its key.
    pub(super) fn extend(&mut self, items: impl IntoIterator<Item = Item>) {
        for item in items {
            self.bytes += item.received.record.event.size();
            self.items.push_back(item);
        }
    }

    /// The event that failed.
    pub(super) fn first(&mut self) -> Option<&mut Item> {
        self.items.front_mut()
    }

    /// Leaves out those that are another's now.
    pub(super) fn clear(&mut self) {
        self.items.retain(|item| !item.seat.is_revoked());
        self.bytes = size(&self.items);
    }

    pub(super) fn into_items(self) -> VecDeque<Item> {
        self.items
    }

    /// Takes so many from the front.
    pub(super) fn take(&mut self, most: usize) -> Vec<Item> {
        let items: Vec<Item> = self.items.drain(..self.items.len().min(most)).collect();
        self.bytes -= size(&items);
        items
    }

    /// What was taken could not be set aside: it is in front again, and is tried again after a while.
    pub(super) fn put_back(&mut self, items: Vec<Item>, wait: Duration) {
        self.bytes += size(&items);
        items.into_iter().rev().for_each(|item| self.items.push_front(item));
        (self.refused, self.until) = (true, Instant::now() + wait);
    }

    /// It has failed once more. `handled` is what the consumer has handled so far.
    pub(super) fn failed(&mut self, error: String, handled: u64, wait: Duration) {
        self.trouble = Trouble { attempts: self.trouble.attempts.saturating_add(1), error };
        (self.refused, self.until) = (false, Instant::now() + wait);
        self.handled.get_or_insert(handled);
    }

    /// How long it still waits.
    pub(super) fn wait(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Whether it is no longer to wait in memory. Where nothing succeeds it is not this key's fault: then the stream is
    /// the place to wait in, unless the key keeps others from being read and from showing that they would succeed.
    pub(super) fn is_to_go(&self, handled: u64, settings: &ConsumeSettings) -> bool {
        let (attempts, enough) = (self.trouble.attempts, settings.attempts_in_memory);
        if attempts == 0 || self.refused {
            return false;
        }
        let long = self.wait() > settings.retry_max;
        if self.handled.is_some_and(|first| handled > first) {
            return attempts >= enough || long || self.crowds(settings);
        }
        let alone = || Arc::strong_count(&self.troubled) <= 2;
        self.crowds(settings) && (long || attempts >= enough.saturating_mul(LONG) || alone())
    }

    /// Whether it takes more than its part of the room.
    fn crowds(&self, settings: &ConsumeSettings) -> bool {
        crowd(self.items.len(), self.bytes, settings)
    }
}

/// Whether so many events take more than a part of the room.
pub(super) fn crowd(events: usize, bytes: usize, settings: &ConsumeSettings) -> bool {
    events > (settings.max_events / PART).max(1) || bytes > settings.max_bytes / PART
}

pub(super) fn size<'a>(items: impl IntoIterator<Item = &'a Item>) -> usize {
    items.into_iter().map(|item| item.received.record.event.size()).sum()
}
