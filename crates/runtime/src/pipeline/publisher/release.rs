//! Trying again what is parked.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use headwater_core::ports::{HoldsBack, Parked};
use headwater_core::{Error, EventId, Kind, Result};

use super::{Publisher, TOGETHER};
use crate::clock::now;
use crate::shape::Shaped;

/// Which of some parked changes stay parked, by their place among them, and why.
type Stays = BTreeMap<usize, String>;

/// What is parked of a stream and holds back the same.
type Line = (Arc<str>, HoldsBack);

impl Publisher {
    /// Tries again all that is parked, before anything new is read: what is held with whole streams, then
    /// the first of each key, and the rest of those whose first goes on.
    pub async fn release_parked(&mut self) -> Result<()> {
        let held: Vec<Arc<str>> = self.holds.held().map(|(stream, _)| Arc::clone(stream)).collect();
        for stream in held {
            match self.release(&stream, &HoldsBack::Stream).await {
                Ok(count) => tracing::info!(%stream, count, "a held stream goes on"),
                Err(error) if error.kind() == Kind::Contract => {
                    tracing::error!(%stream, %error, "stream stays stopped");
                }
                Err(error) => return Err(error),
            }
        }
        self.show();
        self.release_keys().await
    }

    async fn release_keys(&mut self) -> Result<()> {
        let usage = self.parked.usage().await?;
        let ours = usage.into_iter().filter(|line| {
            line.source == self.source && line.holds != HoldsBack::Stream && !self.holds.is_held(&line.stream)
        });
        let mut lines = ours.map(|line| (line.stream, line.holds)).collect::<Vec<_>>().into_iter();
        let (mut gone, mut kept) = (0, Vec::new());
        loop {
            let records = self.firsts(&mut lines).await?;
            if records.is_empty() {
                break;
            }
            let mut stays = self.retry(&records).await?;
            gone += (records.len() - stays.len()) as u64;
            for (at, record) in records.iter().enumerate() {
                if stays.contains_key(&at) || record.holds == HoldsBack::Nothing {
                    continue;
                }
                match self.release(&record.stream, &record.holds).await {
                    Ok(more) => gone += more,
                    Err(error) if error.kind() == Kind::Contract => drop(stays.insert(at, error.to_string())),
                    Err(error) => return Err(error),
                }
            }
            kept.extend(stays.into_values());
        }
        if gone > 0 {
            tracing::info!(source = %self.source, changes = gone, "what was parked goes on");
        }
        if let Some(why) = kept.first() {
            tracing::warn!(source = %self.source, keys = kept.len(), reason = why,
                "not all that is parked can go on; `headwater parked` lists it");
        }
        Ok(())
    }

    /// The first of as many lines as go together; of what has no order as much as does.
    async fn firsts(&self, lines: &mut impl Iterator<Item = Line>) -> Result<Vec<Parked>> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        while bytes < TOGETHER
            && let Some((stream, holds)) = lines.next()
        {
            let most = if holds == HoldsBack::Nothing { TOGETHER } else { 0 };
            let first = self.parked.list(&self.source, &stream, &holds, most).await?;
            bytes += first.iter().map(|record| record.change.len()).sum::<usize>();
            records.extend(first);
        }
        Ok(records)
    }

    /// Tries again one line of what is parked, in order. An error of kind `Contract` says why the first
    /// that is left cannot go.
    pub(super) async fn release(&mut self, stream: &Arc<str>, holds: &HoldsBack) -> Result<u64> {
        if self.broken.contains(stream) || !self.shaper.knows(stream) {
            return Err(Error::new(Kind::Contract, format!("stream {stream} cannot go on"))
                .hint("it is no longer in the config, or the bus has it with other partitions"));
        }
        if *holds != HoldsBack::Stream && self.holds.is_held(stream) {
            return Err(Error::new(Kind::Contract, format!("stream {stream} is held back as a whole"))
                .hint("what holds it is to be mended first; its keys go on after that"));
        }
        let mut released = 0;
        loop {
            let records = self.parked.list(&self.source, stream, holds, TOGETHER).await?;
            if records.is_empty() {
                self.holds.let_go(stream, holds);
                return Ok(released);
            }
            let stays = self.retry(&records).await?;
            released += (records.len() - stays.len()) as u64;
            if let Some((at, why)) = stays.first_key_value() {
                // A stream that the bus will not have is held from its beginning.
                if !self.broken.contains(stream) {
                    records.get(*at).into_iter().for_each(|record| self.holds.begin_with(record));
                }
                let error = Error::new(Kind::Contract, format!("stream {stream} cannot go on"));
                return Err(error.because(why.clone()));
            }
        }
    }

    /// Publishes of these what can go, and forgets it: the first of one line, or of several by key.
    async fn retry(&mut self, records: &[Parked]) -> Result<Stays> {
        let (mut stays, mut batch, mut tried) = (Stays::new(), Shaped::default(), Vec::new());
        let (mut lines, mut stuck): (Vec<&Parked>, bool) = (Vec::new(), false);
        for (at, record) in records.iter().enumerate() {
            if lines.last().is_none_or(|line| !same_line(line, record)) {
                self.holds.begin_with(record);
                lines.push(record);
                stuck = false;
            }
            if stuck && record.holds != HoldsBack::Nothing {
                stays.insert(at, "what is before it cannot go".to_owned());
                continue;
            }
            match self.shaper.reshape(record) {
                Ok(shaped) => {
                    batch.append(shaped);
                    tried.push((at, record));
                }
                Err(reason) => {
                    stuck = true;
                    stays.insert(at, reason);
                }
            }
        }
        if tried.is_empty() {
            return Ok(stays);
        }
        // What failed is held again before anything new can pass it.
        let mut suspended = Vec::new();
        for line in &lines {
            suspended.push(self.holds.suspend(&line.stream, &line.holds));
        }
        let outcome = self.publish_released(batch, &tried).await;
        for (line, suspended) in lines.into_iter().zip(suspended) {
            self.holds.resume(&line.stream, &line.holds, suspended);
        }
        stays.append(&mut outcome?);
        self.forget(tried.into_iter().filter(|(at, _)| !stays.contains_key(at)).map(|(_, record)| record))
            .await?;
        Ok(stays)
    }

    /// Publishes what was parked: each change of the batch is one of `tried`, which stands at a place of
    /// its own. What is held with a stream and can only go as far as its key's line is parked there; what
    /// would be parked as what it is already stays.
    async fn publish_released(&mut self, mut batch: Shaped, tried: &[(usize, &Parked)]) -> Result<Stays> {
        self.ensure_new(&mut batch).await?;
        let admitted = self.holds.admit(&mut batch, now())?;
        let ((events, bytes), parked) = self.publish_first(&mut batch, admitted).await?;
        self.board.published(&self.source, &events, bytes);
        let (mut stays, mut moved) = (Stays::new(), Vec::new());
        for (change, again) in parked {
            match tried.get(change as usize) {
                Some((_, was)) if was.holds == HoldsBack::Stream && was.id != again.id => moved.push(again),
                Some((at, _)) => drop(stays.entry(*at).or_insert(again.reason)),
                None => {}
            }
        }
        match self.park(&moved).await {
            // All of it stays held; another release may make room.
            Err(error) if error.kind() == Kind::Full => {
                let full = |(at, _): &(usize, &Parked)| (*at, format!("not all of it can go: {error}"));
                Ok(tried.iter().map(full).collect())
            }
            parked => parked.map(|()| stays),
        }
    }

    async fn forget(&self, records: impl Iterator<Item = &Parked>) -> Result<()> {
        let mut streams: HashMap<&Arc<str>, Vec<EventId>> = HashMap::new();
        records.for_each(|record| streams.entry(&record.stream).or_default().push(record.id));
        for (stream, ids) in streams {
            self.parked.remove(&self.source, stream, &ids).await?;
        }
        Ok(())
    }
}

fn same_line(one: &Parked, other: &Parked) -> bool {
    (&one.stream, &one.holds) == (&other.stream, &other.holds)
}
