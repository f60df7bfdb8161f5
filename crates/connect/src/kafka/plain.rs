//! Publishing without transactions: all sources share one line.

use std::sync::Arc;

use async_trait::async_trait;
use headwater_core::ports::{Published, Writer};
use headwater_core::{Checkpoint, Error, Event, Kind, Result};

use super::Shared;
use super::line::Line;
use super::topics::blocking;
use super::writers::Place;

/// Publishes for one source.
pub struct PlainWriter {
    shared: Arc<Shared>,
    place: Place,
}

/// Opens a source's writer, once all that was handed over before is durable or has failed.
pub async fn open(shared: &Arc<Shared>, source: &str) -> Result<PlainWriter> {
    let place = shared.writers.open(source);
    // What is on its way belongs to it.
    drop(shared.budget(shared.units).await?);
    shared.recover().await;
    // Whoever asks will publish soon; the producer's first words with the brokers take a while.
    shared.line().await?;
    Ok(PlainWriter { shared: Arc::clone(shared), place })
}

#[async_trait]
impl Writer for PlainWriter {
    async fn publish(&self, mut events: Vec<Event>, checkpoint: Option<Checkpoint>) -> Result<Published> {
        let shared = &self.shared;
        let rejections = shared.rejections(&events)?;
        if !rejections.is_empty() {
            return Ok(Published::Rejected { events, rejections });
        }
        let units = shared.units_of(&events);
        loop {
            let line = shared.line().await?;
            let mut permit = shared.budget(units).await?;
            // It may have been replaced while we waited; now that we have a share it cannot be.
            if line.is_retired() {
                continue;
            }
            // Whoever opens the next writer waits for our share.
            shared.writers.check(&self.place)?;
            let config = &shared.config;
            let first = line.warm.take_first(&mut events, |stream| shared.topics.partitions_of(stream));
            if !first.is_empty() {
                let share = permit.split(1).ok_or_else(|| Error::new(Kind::Internal, "sharing a share"))?;
                line.publish(config, &first, None, share)?.durable().await?;
                line.warm.known(&first);
            }
            return line.publish(config, &events, checkpoint, permit).map(Published::Accepted);
        }
    }
}

impl Shared {
    /// The line to publish on: a new one if there is none, or if a topic takes only smaller batches.
    async fn line(&self) -> Result<Arc<Line>> {
        let wanted = self.topics.batch_bytes();
        let mut current = self.line.lock().await;
        if let Some(line) = &*current
            && (line.is_broken() || line.batch_bytes() <= wanted)
        {
            return Ok(Arc::clone(line));
        }
        // One that is replaced has nothing more on its way, and gets nothing more.
        let _idle = if current.is_some() { Some(self.budget(self.units).await?) } else { None };
        self.topics.ensure_positions().await?;
        let config = self.config.clone();
        let learned = Arc::clone(&self.topics.learned);
        let line = Arc::new(blocking(move || Line::start(&config, wanted, learned)).await?);
        if let Some(old) = current.replace(Arc::clone(&line)) {
            old.retire();
        }
        Ok(line)
    }

    /// Takes a broken line out of use, once everyone has heard that it is broken and librdkafka has let
    /// go of its connections.
    async fn recover(&self) {
        let Some(broken) = self.line.lock().await.clone().filter(|line| line.is_broken()) else { return };
        broken.mourned().await;
        {
            let mut current = self.line.lock().await;
            if current.as_ref().is_some_and(|line| Arc::ptr_eq(line, &broken)) {
                *current = None;
            }
        }
        broken.end().await;
    }
}
