//! A parked store in memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use headwater_core::ports::{HoldsBack, Parked, ParkedCount, ParkedStore, ParkedUsage};
use headwater_core::{Error, EventId, Kind, Result};

/// A parked store in memory, with a budget of bytes.
#[derive(Default)]
pub struct MemoryParkedStore {
    parked: Mutex<Vec<Parked>>,
    budget: Mutex<Option<usize>>,
}

impl MemoryParkedStore {
    /// How many bytes of changes it takes; `None` is no limit.
    pub fn set_budget(&self, bytes: Option<usize>) {
        *self.budget.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
    }

    /// All that is parked, in the order it was parked.
    pub fn all(&self) -> Vec<Parked> {
        self.parked().clone()
    }

    fn parked(&self) -> MutexGuard<'_, Vec<Parked>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn same(one: &Parked, other: &Parked) -> bool {
    (&one.source, &one.stream, one.id) == (&other.source, &other.stream, other.id)
}

#[async_trait]
impl ParkedStore for MemoryParkedStore {
    async fn park(&self, parked: Vec<Parked>) -> Result<()> {
        let budget = *self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = self.parked();
        let new: Vec<Parked> =
            parked.into_iter().filter(|one| all.iter().all(|known| !same(known, one))).collect();
        let bytes: usize = all.iter().chain(&new).map(|one| one.change.len()).sum();
        if budget.is_some_and(|budget| bytes > budget) {
            return Err(Error::new(Kind::Full, "the parked store is full"));
        }
        for one in new {
            if all.iter().all(|known| !same(known, &one)) {
                all.push(one);
            }
        }
        Ok(())
    }

    async fn usage(&self) -> Result<Vec<ParkedUsage>> {
        let mut lines: Vec<ParkedUsage> = Vec::new();
        for one in self.parked().iter() {
            let bytes = one.change.len() as u64;
            let same = |line: &&mut ParkedUsage| {
                (&line.source, &line.stream, &line.holds) == (&one.source, &one.stream, &one.holds)
            };
            match lines.iter_mut().find(same) {
                Some(line) => (line.count, line.bytes) = (line.count + 1, line.bytes + bytes),
                None => lines.push(ParkedUsage {
                    source: Arc::clone(&one.source),
                    stream: Arc::clone(&one.stream),
                    holds: one.holds.clone(),
                    count: 1,
                    bytes,
                    reason: one.reason.clone(),
                }),
            }
        }
        Ok(lines)
    }

    async fn counts(&self) -> Result<Vec<ParkedCount>> {
        let mut counts: Vec<ParkedCount> = Vec::new();
        for one in self.parked().iter() {
            let same =
                |count: &&mut ParkedCount| (&count.source, &count.stream) == (&one.source, &one.stream);
            match counts.iter_mut().find(same) {
                Some(count) => count.count += 1,
                None => counts.push(ParkedCount {
                    source: Arc::clone(&one.source),
                    stream: Arc::clone(&one.stream),
                    count: 1,
                }),
            }
        }
        Ok(counts)
    }

    async fn list(&self, source: &str, stream: &str, holds: &HoldsBack, bytes: usize) -> Result<Vec<Parked>> {
        let ours = |one: &&Parked| *one.source == *source && *one.stream == *stream && one.holds == *holds;
        let mut line: Vec<Parked> = self.parked().iter().filter(ours).cloned().collect();
        line.sort_by_key(|one| one.position);
        let mut taken = 0;
        let fits = |one: &Parked| {
            let first = taken == 0;
            taken += one.change.len();
            first || taken <= bytes
        };
        Ok(line.into_iter().take_while(fits).collect())
    }

    async fn remove(&self, source: &str, stream: &str, ids: &[EventId]) -> Result<()> {
        self.parked()
            .retain(|one| *one.source != *source || *one.stream != *stream || !ids.contains(&one.id));
        Ok(())
    }
}
