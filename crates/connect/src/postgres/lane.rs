//! A thread of its own for one source's log.
//!
//! The server's walsender wakes whoever waits for its socket with every message. So under backlog the
//! reader of the log must not wait for the socket but sleep (see `client::reader`), and what sleeps must
//! be the thread that waits: a socket that belongs to another thread's reactor would wake that one. Here
//! the log's connection, its reactor and the task that reads it share one thread.

use std::future::Future;
use std::sync::mpsc::sync_channel;

use headwater_core::{Kind, Result, ResultExt};
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A thread with a reactor; what runs on it ends when this is dropped.
pub struct Lane {
    reactor: Handle,
    _end: DropGuard,
}

impl Lane {
    /// Starts the thread, named after the source as far as the system allows.
    pub fn start(source: &str) -> Result<Self> {
        let doing = || format!("starting a thread for source {source}");
        let end = CancellationToken::new();
        let ended = end.clone().cancelled_owned();
        let (hand_over, handed_over) = sync_channel(1);
        // Made on its thread: dropped on one that must not block, a runtime panics.
        let run = move || match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let _ = hand_over.send(Ok(runtime.handle().clone()));
                runtime.block_on(ended);
            }
            Err(error) => drop(hand_over.send(Err(error))),
        };
        let thread = std::thread::Builder::new().name(format!("log {source}"));
        thread.spawn(run).doing(Kind::Internal, doing)?;
        let reactor = handed_over.recv().map_err(std::io::Error::other).flatten();
        Ok(Self { reactor: reactor.doing(Kind::Internal, doing)?, _end: end.drop_guard() })
    }

    /// Runs a task on the thread.
    pub fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.reactor.spawn(task)
    }
}
