//! Following the log: the task that reads a slot and hands out batches.
//!
//! It runs on its own and hands batches through a short channel, so that waiting for one can be given up
//! at any time, decoding goes on while the last batch is shaped, and a full channel is back-pressure: the
//! socket is not read, while [`Feedback`] goes on telling the server that we live.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use headwater_core::{Batch, Change, Error, Kind, Position, Result, ResultExt};
use headwater_wire::pgoutput::{self, Message};
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::client::{Gulp, Replicated, ReplicationReader};
use super::decode::Decoder;
use super::feedback::Feedback;
use super::monitor::{Monitor, News};
use super::snapshot::{self, Upcoming, wanted};
use super::spill::Spill;
use super::state::State;

/// About how many bytes of changes a batch holds.
const BATCH: usize = 1 << 20;

/// How long changes may wait for others to share their batch, while so much comes that more will be there
/// within a moment.
const TOGETHER: Duration = Duration::from_millis(5);

/// How often an idle source moves its checkpoint.
const IDLE: Duration = Duration::from_secs(1);

/// How often a request for a snapshot is looked for.
const LOOK: Duration = Duration::from_secs(2);

/// How often the server is asked how far it is while a snapshot waits for its place.
const ASK: Duration = Duration::from_millis(100);

/// A batch on its way to whoever reads the source.
#[derive(Debug)]
pub struct Ready {
    /// The batch.
    pub batch: Batch,
    /// What is to be said once it is handed out.
    pub news: Vec<News>,
}

/// What the task needs.
pub struct Follow {
    /// The source's name.
    pub source: String,
    /// The log.
    pub reader: ReplicationReader,
    /// The way back.
    pub feedback: Feedback,
    /// Messages to changes.
    pub decoder: Decoder,
    /// Transactions that have not ended.
    pub spill: Spill,
    /// Whether the server is to send transactions once they have ended only, when it is asked the next time.
    pub whole: Arc<AtomicBool>,
    /// What the next checkpoint says.
    pub state: State,
    /// Where the last change that was handed out stands.
    pub position: Position,
    /// The snapshot that waits for its place in the log.
    pub upcoming: Option<Upcoming>,
    /// How snapshots are taken.
    pub snapshots: snapshot::Settings,
    /// When the connection is to be given up; so it is when this task ends.
    pub end: CancellationToken,
    /// Where batches go.
    pub out: Sender<Result<Ready>>,
    /// What `status` says.
    pub monitor: Arc<Monitor>,
    /// Where it stands between two messages.
    pub turn: Turn,
}

/// Where the task stands between two messages.
#[derive(Debug)]
pub struct Turn {
    /// The unfinished transaction whose piece is being sent.
    piece: Option<u32>,
    /// The place moved and no batch says so yet.
    pub moved: bool,
    /// When the last batch went.
    sent: Instant,
    /// When requests were last looked for.
    looked: Instant,
    /// What is to be said once the next batch is handed out.
    pub news: Vec<News>,
}

impl Default for Turn {
    fn default() -> Self {
        let now = Instant::now();
        Self { piece: None, moved: false, sent: now, looked: now, news: Vec::new() }
    }
}

impl Follow {
    /// Follows until something fails, or nobody listens any more, or the connection is given up.
    pub async fn run(mut self) {
        let (out, end) = (self.out.clone(), self.end.clone());
        let ended = tokio::select! {
            ended = self.follow() => ended,
            () = end.cancelled() => Err(Error::new(Kind::Unavailable, "the server shuts down")),
        };
        // The connection closes before anybody takes the error, which may be never: a server that shuts
        // down waits for that.
        drop(self);
        end.cancel();
        if let Err(error) = ended {
            let _ = out.send(Err(error)).await;
        }
    }

    async fn follow(&mut self) -> Result<()> {
        self.reached(self.state.confirmed).await?;
        loop {
            let waiting = self.decoder.bytes() > 0;
            let idle = self.turn.sent + if waiting { TOGETHER } else { IDLE };
            let look = self.turn.looked + LOOK;
            let gulp = tokio::select! {
                gulp = self.reader.next() => gulp?,
                () = sleep_until(idle), if self.turn.moved || waiting => {
                    self.send().await;
                    continue;
                }
                () = sleep_until(look), if self.upcoming.is_none() => {
                    self.look().await?;
                    continue;
                }
                () = sleep(ASK), if self.upcoming.is_some() => {
                    self.feedback.ping();
                    continue;
                }
                () = self.out.closed() => return Ok(()),
            };
            self.gulp(gulp).await?;
        }
    }

    async fn gulp(&mut self, gulp: Gulp) -> Result<()> {
        let bytes = gulp.bytes().clone();
        for body in gulp {
            match Replicated::read(&bytes, body)? {
                Replicated::Data { lsn, body } => self.message(lsn, bytes.slice(body)).await?,
                Replicated::Keepalive { end, reply } => self.keepalive(end, reply).await?,
            }
            if self.decoder.bytes() >= BATCH {
                self.send().await;
            }
        }
        let more = self.reader.is_busy() && self.turn.sent.elapsed() < TOGETHER;
        if self.decoder.bytes() > 0 && !more {
            self.send().await;
        }
        Ok(())
    }

    async fn message(&mut self, lsn: u64, body: Bytes) -> Result<()> {
        self.monitor.heard(lsn);
        match (body.first(), self.turn.piece) {
            (Some(b'B' | b'C' | b'S' | b'E' | b'c' | b'A'), _) => self.boundary(&body).await,
            (_, Some(xid)) => {
                let subxid = pgoutput::subtransaction(&body).doing(Kind::Decode, piece)?.unwrap_or(xid);
                self.spill.append(xid, subxid, lsn, &body).await?;
                if self.decoder.is_event(&body)? {
                    self.spill.is_message(xid);
                }
                Ok(())
            }
            (_, None) => {
                self.decoder.apply(&body, lsn, false).await?;
                self.advance();
                Ok(())
            }
        }
    }

    /// Where a transaction, or a piece of one, begins or ends.
    async fn boundary(&mut self, body: &Bytes) -> Result<()> {
        match pgoutput::decode(body, false).doing(Kind::Decode, || "decoding a transaction".to_owned())? {
            Message::Begin { final_lsn, committed_at, xid } => {
                self.reached(final_lsn).await?;
                self.decoder.skip_outbox(self.reads_outbox());
                self.decoder.begin(final_lsn, committed_at, xid);
            }
            Message::Commit { lsn, end_lsn } => self.committed(lsn, end_lsn),
            Message::StreamStart { xid } => self.turn.piece = Some(xid),
            Message::StreamStop => self.turn.piece = None,
            Message::StreamAbort { xid, subxid } => self.spill.abort(xid, subxid).await?,
            Message::StreamCommit { xid, lsn, end_lsn, committed_at } => {
                self.reached(lsn).await?;
                self.decoder.skip_outbox(self.reads_outbox());
                self.decoder.begin(lsn, committed_at, xid);
                self.replay(xid).await?;
                self.committed(lsn, end_lsn);
            }
            _ => {}
        }
        Ok(())
    }

    /// Decodes a transaction that came in pieces, a batch at a time.
    async fn replay(&mut self, xid: u32) -> Result<()> {
        let Some(mut reader) = self.spill.commit(xid).await? else { return Ok(()) };
        if reader.doubtful {
            self.whole.store(true, Ordering::Relaxed);
            let doing = "rolled back a part of itself, perhaps with its messages: it is read again, whole";
            return Err(Error::new(Kind::Unavailable, format!("transaction {xid} {doing}")));
        }
        while let Some((lsn, message)) = reader.next().await? {
            self.decoder.apply(&message, lsn, true).await?;
            self.advance();
            if self.decoder.bytes() >= BATCH {
                self.send().await;
            }
        }
        Ok(())
    }

    /// The position follows the changes.
    fn advance(&mut self) {
        if let Some(last) = self.decoder.last() {
            // What comes again after a restart does not take the place back.
            self.position = self.position.max(last);
        }
    }

    fn committed(&mut self, lsn: u64, end_lsn: u64) {
        self.decoder.end();
        self.position = self.position.max(Position::of(self.state.epoch, [lsn, u64::MAX, 0]));
        self.state.confirmed = self.state.confirmed.max(end_lsn);
        self.turn.moved = true;
    }

    /// Everything before `end` was sent. Unless a transaction is being sent, that is as good as a commit.
    async fn keepalive(&mut self, end: u64, reply: bool) -> Result<()> {
        self.monitor.heard(end);
        if reply {
            self.feedback.ping();
        }
        if self.decoder.in_transaction() || self.turn.piece.is_some() {
            return Ok(());
        }
        self.reached(end).await?;
        if end > self.state.confirmed {
            self.position = self.position.max(Position::of(self.state.epoch, [end, 0, 0]));
            self.state.confirmed = end;
            self.turn.moved = true;
        }
        Ok(())
    }

    /// Looks for a request that tables be read anew.
    async fn look(&mut self) -> Result<()> {
        self.turn.looked = Instant::now();
        let requests = self.snapshots.requests.clone();
        let reading = tokio::task::spawn_blocking(move || requests.read());
        let request = reading.await.doing(Kind::Internal, || "looking for requests".to_owned())??;
        let Some(request) = request else { return Ok(()) };
        let tables = &self.snapshots.tables;
        if wanted::ask(&mut self.state, tables, &request) {
            self.turn.moved = true;
            let unread = wanted::unread(&self.state, tables);
            self.upcoming = Some(self.snapshots.upcoming(unread).await?);
        }
        Ok(())
    }

    /// Hands out what is decoded, with the checkpoint after it; waits while the channel is full.
    pub async fn send(&mut self) {
        let changes = self.decoder.take();
        self.hand_out(changes).await;
    }

    /// Hands out changes, with the checkpoint after them.
    pub async fn hand_out(&mut self, changes: Vec<Change>) {
        (self.turn.moved, self.turn.sent) = (false, Instant::now());
        let checkpoint = self.state.checkpoint(&self.source, self.position);
        let news = std::mem::take(&mut self.turn.news);
        let ready = checkpoint
            .map(|checkpoint| Ready { batch: Batch { changes, checkpoint: Some(checkpoint) }, news });
        // Nobody listens: the loop sees that the channel is closed.
        let _ = self.out.send(ready).await;
    }
}

fn piece() -> String {
    "decoding a piece of a transaction".to_owned()
}
