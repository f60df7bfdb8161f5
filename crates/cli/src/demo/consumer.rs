//! A consumer as any service would have one: a member of a group on the bus.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use headwater_core::ports::{Bus, Cursor, Delivery, SeekTo, Start, Subscribe, Subscription};
use headwater_core::{Kind, Micros, Record, Result};

use super::replica::Replica;
use crate::output::{self, event, human};

/// The group's name.
pub const GROUP: &str = "demo";
/// The times of the latest events that are kept.
const TIMES: usize = 100_000;

/// Prints each event that arrives, and keeps a replica of the shop from them.
pub struct Consumer {
    subscription: Box<dyn Subscription>,
    /// How far the group had come when a partition was assigned, and where it is now.
    cursors: HashMap<(Arc<str>, u32), u64>,
    /// The tables as events tell them.
    pub replica: Replica,
    /// Events that arrived since the start.
    pub events: u64,
    times: VecDeque<Micros>,
    json: bool,
}

impl Consumer {
    /// Joins the group.
    pub async fn open(bus: &dyn Bus, streams: Vec<Arc<str>>, json: bool) -> Result<Self> {
        let subscribe = Subscribe { streams, group: Some(GROUP.to_owned()), start: Start::Beginning };
        Ok(Self {
            subscription: bus.subscribe(subscribe).await?,
            cursors: HashMap::new(),
            replica: Replica::default(),
            events: 0,
            times: VecDeque::new(),
            json,
        })
    }

    /// Takes what comes next. Cancel-safe: what is dropped is at most a cursor that is committed with the
    /// next batch.
    pub async fn next(&mut self) -> Result<()> {
        match self.subscription.next().await? {
            Delivery::Assigned(cursor) => {
                // The replica is in memory only: it is made anew from the beginning, quietly.
                self.cursors.insert((Arc::clone(&cursor.stream), cursor.partition), cursor.offset);
                self.subscription.seek(&cursor.stream, cursor.partition, SeekTo::Beginning).await
            }
            Delivery::Revoked { .. } => Ok(()),
            Delivery::Batch { stream, partition, epoch, records } => {
                let done = self.cursors.get(&(Arc::clone(&stream), partition)).copied().unwrap_or(0);
                let mut offset = done;
                for record in &records {
                    self.replica.apply(&record.event);
                    if record.offset >= done {
                        self.arrived(record)?;
                        offset = record.offset + 1;
                    }
                }
                if offset == done {
                    return Ok(());
                }
                self.cursors.insert((Arc::clone(&stream), partition), offset);
                match self.subscription.commit(&Cursor { stream, partition, epoch, offset }).await {
                    Err(error) if error.kind() == Kind::Busy => Ok(()),
                    outcome => outcome,
                }
            }
        }
    }

    fn arrived(&mut self, record: &Record) -> Result<()> {
        let now = human::now();
        // A row that the snapshot read was committed long before.
        let latency = (&*record.event.kind != "read").then_some(now - record.event.time);
        self.events += 1;
        if self.times.len() == TIMES {
            self.times.pop_front();
        }
        self.times.extend(latency);
        if self.json {
            return output::json(&event::EventJson::new(record, latency));
        }
        output::line(event::human_line(record, latency, now, true))
    }

    /// The time from commit to here that `part` of the events (0.5, 0.99) kept within.
    pub fn percentile(&self, part: f64) -> Option<Micros> {
        let mut times: Vec<Micros> = self.times.iter().copied().collect();
        times.sort_unstable();
        let at = (times.len() as f64 * part).ceil() as usize;
        times.get(at.saturating_sub(1)).copied()
    }
}
