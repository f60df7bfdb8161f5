//! Where a source's tasks write down how they are doing, and status reads it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use headwater_core::{Error, Micros};

use crate::clock::now;
use crate::status::Phase;

/// One source's board.
#[derive(Default)]
pub struct Board(Mutex<State>);

/// What stands on it.
#[derive(Default)]
pub struct State {
    /// What the runtime does with the source; [`Phase::Streaming`] while it is open: its own status says more.
    pub phase: Phase,
    /// What went wrong.
    pub error: Option<String>,
    /// Since when it is retrying.
    pub retrying_since: Option<Micros>,
    /// Retries since it last got on.
    pub attempts: u32,
    /// Events made durable.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Events made durable, by stream.
    pub streams: HashMap<Arc<str>, u64>,
    /// Streams held back as a whole, and why.
    pub held: HashMap<Arc<str>, String>,
    /// Bytes read and not yet durable.
    pub in_flight: u64,
    /// When the oldest change that is not yet durable was committed.
    pub oldest: Option<Micros>,
    /// When there was last nothing left to do.
    pub idle_at: Option<Micros>,
    /// Of a relay: the lanes that it works.
    pub lanes: u32,
    /// Events a second.
    pub rate: Rate,
    /// Something became durable since the last attempt began.
    pub progressed: bool,
}

impl Board {
    /// Reads or writes it; never held across an await.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The source is being opened.
    pub fn connecting(&self) {
        let mut state = self.lock();
        state.phase = if state.retrying_since.is_some() { Phase::Retrying } else { Phase::Connecting };
    }

    /// All is well again.
    pub fn well(&self) {
        let mut state = self.lock();
        (state.error, state.retrying_since, state.attempts) = (None, None, 0);
    }

    /// The source is open.
    pub fn open(&self) {
        self.well();
        self.lock().phase = Phase::Streaming;
    }

    /// Events of a source became durable: how many of each stream, and their bytes.
    pub fn published(&self, source: &str, events: &[(Arc<str>, u64)], bytes: u64) {
        let mut state = self.lock();
        state.progressed = true;
        state.bytes += bytes;
        for (stream, count) in events {
            state.events += count;
            state.rate.add(*count);
            match state.streams.get_mut(stream) {
                Some(total) => *total += count,
                None => drop(state.streams.insert(Arc::clone(stream), *count)),
            }
            ::metrics::counter!("headwater_events_total", "source" => source.to_owned(),
                "stream" => stream.to_string())
            .increment(*count);
        }
        drop(state);
        ::metrics::counter!("headwater_bytes_total", "source" => source.to_owned()).increment(bytes);
    }

    /// These streams are held back as a whole, and no others; a stream that was ever held is known from
    /// then on, so that it can be said of it that it goes on.
    pub fn holds(&self, held: HashMap<Arc<str>, String>) {
        let mut state = self.lock();
        for stream in held.keys() {
            state.streams.entry(Arc::clone(stream)).or_default();
        }
        state.held = held;
    }

    /// Something that a retry may mend.
    pub fn retrying(&self, error: &Error, attempts: u32) {
        let mut state = self.lock();
        state.phase = Phase::Retrying;
        state.error = Some(error.to_string());
        state.retrying_since.get_or_insert_with(now);
        (state.attempts, state.in_flight, state.oldest) = (attempts, 0, None);
    }

    /// The end.
    pub fn ended(&self, error: Option<&Error>) {
        let mut state = self.lock();
        state.phase = if error.is_some() { Phase::Failed } else { Phase::Stopped };
        state.error = error.map(Error::to_string);
        (state.retrying_since, state.in_flight, state.oldest) = (None, 0, None);
    }
}

impl State {
    /// How old the oldest change is that is not yet durable, in seconds.
    pub fn lag_seconds(&self, open: bool) -> Option<f64> {
        let since = match self.oldest {
            Some(oldest) => oldest,
            None if open => return Some(0.0),
            None => self.idle_at?,
        };
        Some((now().saturating_sub(since).max(0)) as f64 / 1e6)
    }
}

/// Events a second over the last ten seconds.
#[derive(Default)]
pub struct Rate {
    /// The events of each of the last seconds: (which second, how many).
    seconds: [(u64, u64); Rate::SECONDS],
    start: Option<Instant>,
}

impl Rate {
    const SECONDS: usize = 10;

    /// Counts events.
    pub fn add(&mut self, events: u64) {
        let second = self.start.get_or_insert_with(Instant::now).elapsed().as_secs();
        let slot = &mut self.seconds[second as usize % Self::SECONDS];
        if slot.0 != second {
            *slot = (second, 0);
        }
        slot.1 += events;
    }

    /// Events a second.
    pub fn per_second(&self) -> f64 {
        let Some(start) = self.start else { return 0.0 };
        let elapsed = start.elapsed();
        let recent = |slot: &&(u64, u64)| slot.0 + Self::SECONDS as u64 > elapsed.as_secs();
        let events: u64 = self.seconds.iter().filter(recent).map(|slot| slot.1).sum();
        let span = elapsed.clamp(Duration::from_secs(1), Duration::from_secs(Self::SECONDS as u64));
        events as f64 / span.as_secs_f64()
    }
}
