//! The embedded bus: streams in SQLite files under `data_dir/bus`, nothing to install.
//!
//! | file | holds |
//! | --- | --- |
//! | `segment-NNNNNNNN.db` | events of all streams, with the checkpoints of their sources; the last one is written |
//! | `compacted.db` | the newest event of each key of compacted streams, from segments that are closed |
//! | `groups.db` | cursors and leases of groups |
//! | `lock` | held by the process that publishes |
//!
//! A batch and its checkpoint are one transaction in one segment (invariant 1): `schema.sql` is the
//! layout, and every file opens with `sqlite3`. One thread writes; it commits together what waits
//! together. Each subscription has a thread that reads. Subscriptions of the writing process are woken,
//! those of other processes look every few milliseconds.

mod catalog;
mod compacted;
mod compaction;
mod config;
#[cfg(test)]
mod crash_tests;
mod fence;
mod follower;
mod groups;
mod lock;
mod retention;
#[cfg(test)]
mod retention_tests;
mod rows;
mod segment;
mod status;
mod subscription;
mod wake;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use async_trait::async_trait;
use headwater_core::ports::{
    Accepted, Bus, BusStatus, Opened, Published, Rejection, Subscribe, Subscription,
};
use headwater_core::{Checkpoint, Error, Event, Kind, Micros, Result, StreamSpec, check_stream_name};
use tokio::sync::{Semaphore, oneshot};

use catalog::Catalog;
pub use config::EmbeddedConfig;
use fence::{Fence, Pass};
use retention::{Request, Retainer};
use wake::Wakers;
use writer::{Command, Directory, Pending, Writer};

use crate::store::io;

/// The unit of the queue's room.
const KIB: usize = 1024;
/// The largest event: SQLite takes rows below a gigabyte, and a reader holds one whole.
const MAX_EVENT_BYTES: usize = 512 << 20;

/// A bus in a directory.
pub struct EmbeddedBus {
    dir: PathBuf,
    config: EmbeddedConfig,
    publisher: Option<Arc<Publisher>>,
    /// What `status` saw last.
    seen: Arc<Mutex<Option<Catalog>>>,
}

/// What only the process that publishes has.
struct Publisher {
    commands: Option<Sender<Command>>,
    retention: Option<Sender<Request>>,
    /// Retention's, then the writer's.
    threads: Vec<JoinHandle<()>>,
    fence: Arc<Mutex<Fence>>,
    directory: Arc<Directory>,
    wakers: Arc<Wakers>,
    room: Arc<Semaphore>,
    /// How much room there is in all, in KiB.
    capacity: u32,
}

impl EmbeddedBus {
    /// Opens the bus in `data_dir/bus` for publishing and reading, making it if there is none. One
    /// process at a time may: an error of kind `Busy` names the one that does.
    ///
    /// Dropping the bus and its writers waits until what it accepted is written, then lets the next process
    /// in.
    pub async fn open(data_dir: &Path, config: EmbeddedConfig) -> Result<Self> {
        let dir = data_dir.join("bus");
        let (commands, receiver) = channel();
        let (opened, ready) = oneshot::channel();
        let (writer_dir, writer_config) = (dir.clone(), config.clone());
        let work = move || {
            let doing = format!("making {}", writer_dir.display());
            let made = io(std::fs::create_dir_all(&writer_dir), &doing);
            let made = made.and_then(|()| segment::sync_dir(writer_dir.parent().unwrap_or(&writer_dir)));
            match made.and_then(|()| Writer::open(writer_dir, writer_config)) {
                Ok(writer) => {
                    let shared = (&writer.fence, &writer.directory, &writer.wakers);
                    let shared = (Arc::clone(shared.0), Arc::clone(shared.1), Arc::clone(shared.2));
                    if opened.send(Ok(shared)).is_ok() {
                        writer.run(&receiver);
                    }
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        };
        let writer = start("bus-writer", work)?;
        let (fence, directory, wakers) = ready.await.map_err(|_| stopped())??;
        let (retainer, to_writer) = (Retainer::new(dir.clone(), config.clone()), commands.clone());
        let (retention, requests) = channel();
        let retainer = start("bus-retention", move || retainer.run(&requests, &to_writer))?;
        let capacity = u32::try_from(config.queue_bytes / KIB).unwrap_or(u32::MAX).max(1);
        let room = Arc::new(Semaphore::new(capacity as usize));
        let (commands, retention, threads) = (Some(commands), Some(retention), vec![retainer, writer]);
        let publisher = Publisher { commands, retention, threads, fence, directory, wakers, room, capacity };
        Ok(Self { dir, config, publisher: Some(Arc::new(publisher)), seen: Arc::default() })
    }

    /// Opens the bus in `data_dir/bus` for reading beside the process that publishes (`tail`, `status`):
    /// `ensure` and `writer` are refused.
    pub async fn open_reader(data_dir: &Path, config: EmbeddedConfig) -> Result<Self> {
        let dir = data_dir.join("bus");
        let found = blocking({
            let dir = dir.clone();
            move || Ok(segment::list(&dir).unwrap_or_default())
        });
        if found.await?.is_empty() {
            return Err(Error::new(Kind::Config, format!("there is no bus in {}", dir.display()))
                .hint("start `headwater run` with this data_dir first, or name the one it uses"));
        }
        Ok(Self { dir, config, publisher: None, seen: Arc::default() })
    }

    /// Lets go what is past its stream's retention at `now`; happens by itself every `retain_interval`.
    pub async fn retain(&self, now: Micros) -> Result<()> {
        let (reply, done) = oneshot::channel();
        let requests = self.publisher()?.retention.as_ref().ok_or_else(stopped)?;
        requests.send(Request { now, reply }).map_err(|_| stopped())?;
        done.await.map_err(|_| stopped())?
    }

    fn publisher(&self) -> Result<&Arc<Publisher>> {
        self.publisher.as_ref().ok_or_else(|| {
            Error::new(Kind::Refused, format!("{} was opened for reading only", self.dir.display()))
                .hint("the process that runs Headwater publishes")
        })
    }
}

fn stopped() -> Error {
    Error::new(Kind::Internal, "the embedded bus has stopped")
}

/// Starts a thread of the bus.
fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let started = std::thread::Builder::new().name(name.into()).spawn(work);
    io(started, &format!("starting the thread {name}"))
}

/// Does what blocks on a thread for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(stopped()))
}

impl Publisher {
    fn send(&self, command: Command) -> Result<()> {
        let commands = self.commands.as_ref().ok_or_else(stopped)?;
        commands.send(command).map_err(|_| stopped())
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply))?;
        answer.await.map_err(|_| stopped())?
    }

    /// Which events of a batch no stream can take.
    fn rejections(&self, events: &[Event]) -> Vec<Rejection> {
        let directory = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rejections = Vec::new();
        for (index, event) in events.iter().enumerate() {
            let partitions = directory.get(&event.stream).map(|stream| stream.partitions);
            let reason = match (partitions, event.partition) {
                (None, _) => format!("there is no stream \"{}\"", event.stream),
                (Some(partitions), Some(partition)) if partition >= partitions => {
                    format!("stream \"{}\" has no partition {partition}, only {partitions}", event.stream)
                }
                _ if event.size() > MAX_EVENT_BYTES => {
                    format!("{} bytes are more than an event may have, {MAX_EVENT_BYTES}", event.size())
                }
                _ => continue,
            };
            rejections.push(Rejection { index, reason });
        }
        rejections
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        // Retention also talks to the writer, which ends when nobody does.
        self.retention = None;
        self.commands = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the embedded bus ended in a panic");
            }
        }
    }
}

/// Publishes for one source.
struct SourceWriter {
    publisher: Arc<Publisher>,
    pass: Pass,
}

#[async_trait]
impl headwater_core::ports::Writer for SourceWriter {
    async fn publish(&self, events: Vec<Event>, checkpoint: Option<Checkpoint>) -> Result<Published> {
        let publisher = &*self.publisher;
        let rejections = publisher.rejections(&events);
        if !rejections.is_empty() {
            return Ok(Published::Rejected { events, rejections });
        }
        let bytes: usize = events.iter().map(Event::size).sum();
        let room = u32::try_from(bytes / KIB + 1).unwrap_or(u32::MAX).min(publisher.capacity);
        let room = Arc::clone(&publisher.room).acquire_many_owned(room).await.map_err(|_| stopped())?;
        let (done, durable) = oneshot::channel();
        {
            let fence = publisher.fence.lock().unwrap_or_else(PoisonError::into_inner);
            let generation = fence.admit(&self.pass)?;
            let pending = Pending { events, checkpoint, bytes, generation, _room: room, done };
            publisher.send(Command::Publish(pending))?;
        }
        Ok(Published::Accepted(Accepted::new(async move {
            durable.await.map_err(|_| stopped())?.map_err(|failure| failure.error())
        })))
    }
}

#[async_trait]
impl Bus for EmbeddedBus {
    async fn ensure(&self, spec: &StreamSpec) -> Result<u32> {
        check_stream_name(&spec.name)?;
        let spec = spec.clone();
        self.publisher()?.ask(|reply| Command::Ensure { spec, reply }).await
    }

    async fn writer(&self, source: &str) -> Result<Opened> {
        let publisher = Arc::clone(self.publisher()?);
        let pass = publisher.fence.lock().unwrap_or_else(PoisonError::into_inner).open(source);
        let source = source.to_owned();
        let checkpoint = publisher.ask(|reply| Command::Checkpoint { source, reply }).await?;
        Ok(Opened { writer: Box::new(SourceWriter { publisher, pass }), checkpoint })
    }

    async fn subscribe(&self, subscribe: Subscribe) -> Result<Box<dyn Subscription>> {
        let wakers = self.publisher.as_ref().map(|publisher| Arc::clone(&publisher.wakers));
        let (dir, config) = (self.dir.clone(), self.config.clone());
        Ok(Box::new(subscription::subscribe(dir, config, subscribe, wakers).await?))
    }

    async fn status(&self) -> Result<BusStatus> {
        let (dir, seen) = (self.dir.clone(), Arc::clone(&self.seen));
        blocking(move || status::status(&dir, &mut seen.lock().unwrap_or_else(PoisonError::into_inner))).await
    }
}
