//! Telling the server how far we are, also while nobody reads.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::client::ReplicationWriter;

/// How long confirmations are collected before the server is told.
const COALESCE: Duration = Duration::from_millis(50);

/// What the rest of a source says to the task that writes to the server.
#[derive(Clone)]
pub struct Feedback {
    flushed: watch::Sender<u64>,
    reply: Arc<Notify>,
}

impl Feedback {
    /// Starts the task: it tells the server at least every `period`, shortly after each confirmation, and
    /// at once when the server asks. It ends with the connection, or at `end`, having told it once more.
    pub fn start(
        writer: ReplicationWriter,
        flushed: u64,
        period: Duration,
        end: CancellationToken,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (sender, receiver) = watch::channel(flushed);
        let reply = Arc::new(Notify::new());
        let task = tokio::spawn(write(writer, receiver, reply.clone(), period, end));
        (Self { flushed: sender, reply }, task)
    }

    /// Everything before `lsn` is durable with us. Never goes back.
    pub fn confirm(&self, lsn: u64) {
        self.flushed.send_if_modified(|flushed| {
            let forward = lsn > *flushed;
            *flushed = lsn.max(*flushed);
            forward
        });
    }

    /// Answer the server now, and ask it for a keepalive.
    pub fn ping(&self) {
        self.reply.notify_one();
    }
}

/// A failure to write is left to the reader, which sees the same connection fail.
async fn write(
    mut writer: ReplicationWriter,
    mut flushed: watch::Receiver<u64>,
    reply: Arc<Notify>,
    period: Duration,
    end: CancellationToken,
) {
    let mut asked = false;
    loop {
        let last = end.is_cancelled();
        let lsn = *flushed.borrow_and_update();
        if writer.status(lsn, asked).await.is_err() || last {
            return;
        }
        asked = tokio::select! {
            () = end.cancelled() => false,
            () = reply.notified() => true,
            () = sleep(period) => false,
            changed = flushed.changed() => {
                if changed.is_err() {
                    return;
                }
                tokio::select! {
                    () = end.cancelled() => false,
                    () = reply.notified() => true,
                    () = sleep(COALESCE) => false,
                }
            }
        };
    }
}
