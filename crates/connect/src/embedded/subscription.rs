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
    /// Seeks made since a partition was assigned: batches of fewer were read before.
    seeks: HashMap<(Arc<str>, u32), u64>,
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
    fn is_outdated(&mut self, item: &Item) -> bool {
        match &item.delivery {
            Delivery::Assigned(cursor) => {
                self.seeks.remove(&(Arc::clone(&cursor.stream), cursor.partition));
                false
            }
            Delivery::Batch { stream, partition, .. } => {
                let seeks = self.seeks.get(&(Arc::clone(stream), *partition));
                seeks.is_some_and(|seeks| *seeks > item.seeks)
            }
            Delivery::Revoked { .. } => false,
        }
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
