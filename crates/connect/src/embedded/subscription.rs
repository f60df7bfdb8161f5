//! The async side of a subscription.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use async_trait::async_trait;
use headwater_core::ports::{Cursor, Delivery, SeekTo, Subscribe, Subscription};
use headwater_core::{Error, Kind, Result};
use tokio::sync::{mpsc, oneshot};

use super::config::EmbeddedConfig;
use super::follower::{Command, Follower, Item};
use super::wake::{Waker, Wakers};

/// Deliveries on their way at once: one is worked on while the next is read.
const AHEAD: usize = 2;

/// A reader of streams of the embedded bus.
pub(super) struct EmbeddedSubscription {
    commands: Sender<Command>,
    items: mpsc::UnboundedReceiver<Result<Item>>,
    /// The epoch and the number of the last seek in each partition: batches of less were read before.
    seeks: HashMap<(Arc<str>, u32), (u64, u64)>,
    /// Of a group's member, the thread that gives its partitions back.
    leaves: Option<JoinHandle<()>>,
}

/// Starts a reader; with `wakers`, of the process that writes.
pub(super) async fn subscribe(
    dir: PathBuf,
    config: EmbeddedConfig,
    subscribe: Subscribe,
    wakers: Option<Arc<Wakers>>,
) -> Result<EmbeddedSubscription> {
    let (commands, receiver) = channel();
    let member = subscribe.group.is_some();
    let (sender, items) = mpsc::unbounded_channel();
    let (opened, ready) = oneshot::channel();
    let waker = wakers.map(|wakers| {
        let waker = Arc::new(Waker::new(commands.clone()));
        wakers.add(&waker);
        waker
    });
    let work = move || match Follower::open(&dir, config, &subscribe, waker, sender) {
        Ok(follower) => {
            let _ = opened.send(Ok(()));
            follower.run(&receiver);
        }
        Err(error) => drop(opened.send(Err(error))),
    };
    let leaves = Some(super::start("bus-reader", work)?).filter(|_| member);
    let subscription = EmbeddedSubscription { commands, items, seeks: HashMap::new(), leaves };
    ready.await.map_err(|_| stopped())??;
    for _ in 0..AHEAD {
        subscription.send(Command::Credit)?;
    }
    Ok(subscription)
}

fn stopped() -> Error {
    Error::new(Kind::Internal, "the embedded bus's reader stopped")
}

impl EmbeddedSubscription {
    fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| stopped())
    }

    /// Whether a batch was read before the last seek.
    fn is_outdated(&self, item: &Item) -> bool {
        let Delivery::Batch { stream, partition, epoch, .. } = &item.delivery else { return false };
        let last = self.seeks.get(&(Arc::clone(stream), *partition));
        last.is_some_and(|last| *last > (*epoch, item.seeks))
    }
}

#[async_trait]
impl Subscription for EmbeddedSubscription {
    async fn next(&mut self) -> Result<Delivery> {
        loop {
            let item = self.items.recv().await.ok_or_else(stopped)?;
            self.send(Command::Credit)?;
            let item = item?;
            if !self.is_outdated(&item) {
                return Ok(item.delivery);
            }
        }
    }

    async fn commit(&mut self, cursor: &Cursor) -> Result<()> {
        let (reply, done) = oneshot::channel();
        self.send(Command::Commit { cursor: cursor.clone(), reply })?;
        done.await.map_err(|_| stopped())?
    }

    async fn seek(&mut self, stream: &str, partition: u32, to: SeekTo) -> Result<()> {
        let (reply, done) = oneshot::channel();
        let stream: Arc<str> = stream.into();
        self.send(Command::Seek { stream: Arc::clone(&stream), partition, to, reply })?;
        let seeks = done.await.map_err(|_| stopped())??;
        self.seeks.insert((stream, partition), seeks);
        Ok(())
    }
}

impl Drop for EmbeddedSubscription {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        // A process that ends right after this must not keep its partitions until the lease runs out.
        // One small transaction; the thread waits for nothing else.
        if let Some(leaves) = self.leaves.take() {
            let _ = leaves.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use headwater_core::ports::Delivery::{Assigned, Batch};

    use super::*;

    #[tokio::test]
    async fn a_seek_holds_though_its_assignment_was_not_yet_seen() {
        let (commands, _receiver) = channel();
        let (sender, items) = mpsc::unbounded_channel();
        let mut subscription = EmbeddedSubscription { commands, items, seeks: HashMap::new(), leaves: None };
        let stream: Arc<str> = "s".into();
        let cursor = |epoch| Cursor { stream: "s".into(), partition: 0, epoch, offset: 0 };
        let batch = |epoch| Batch { stream: "s".into(), partition: 0, epoch, records: Vec::new() };
        // What was read ahead when the seek was made, under the epoch that it was made in.
        subscription.seeks.insert((stream, 0), (2, 1));
        let deliveries =
            [(batch(1), 1), (Assigned(cursor(2)), 0), (batch(2), 0), (batch(2), 1), (batch(3), 0)];
        for (delivery, seeks) in deliveries {
            sender.send(Ok(Item { delivery, seeks })).unwrap_or_default();
        }
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(match subscription.next().await.unwrap() {
                Assigned(cursor) => ("assigned", cursor.epoch),
                Batch { epoch, .. } => ("batch", epoch),
                Delivery::Revoked { epoch, .. } => ("revoked", epoch),
            });
        }
        assert_eq!(seen, [("assigned", 2), ("batch", 2), ("batch", 3)]);
    }
}
