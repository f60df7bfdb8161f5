//! Following the log: the task that reads a slot and hands out batches.
//!
//! It runs on its own and hands batches through a short channel, so that waiting for one can be given up
//! at any time, decoding goes on while the last batch is shaped, and a full channel is back-pressure: the
//! socket is not read, while [`Feedback`] goes on telling the server that we live.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use headwater_core::ports::SourceStatus;
use headwater_core::{Batch, Kind, Position, Result, ResultExt};
use headwater_wire::pgoutput::{self, Message};
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use super::client::{Replicated, ReplicationReader};
use super::decode::Decoder;
use super::feedback::Feedback;
use super::spill::Spill;
use super::state::State;

/// About how many bytes of changes a batch holds.
const BATCH: usize = 1 << 20;

/// How often an idle source moves its checkpoint.
const IDLE: Duration = Duration::from_secs(1);

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
    /// What the next checkpoint says.
    pub state: State,
    /// Where the last change that was handed out stands.
    pub position: Position,
    /// Where batches go.
    pub out: Sender<Result<Batch>>,
    /// What `status` says.
    pub status: Arc<Mutex<SourceStatus>>,
    /// The transaction whose piece is being sent.
    pub piece: Option<u32>,
    /// When the checkpoint was last moved without a change.
    pub idle_since: Instant,
    /// The place moved and no batch says so yet.
    pub moved: bool,
    /// The newest place of the log that the server told of.
    pub server_end: u64,
}

impl Follow {
    /// Follows until something fails, or nobody listens any more.
    pub async fn run(mut self) {
        if let Err(error) = self.follow().await {
            let _ = self.out.send(Err(error)).await;
        }
    }

    async fn follow(&mut self) -> Result<()> {
        loop {
            let idle = self.idle_since + IDLE;
            let gulp = tokio::select! {
                gulp = self.reader.next() => gulp?,
                () = tokio::time::sleep_until(idle), if self.moved => {
                    self.send().await;
                    continue;
                }
                () = self.out.closed() => return Ok(()),
            };
            let bytes = gulp.bytes().clone();
            for body in gulp {
                match Replicated::read(&bytes, body)? {
                    Replicated::Data { lsn, body } => self.message(lsn, bytes.slice(body)).await?,
                    Replicated::Keepalive { end, reply } => self.keepalive(end, reply),
                }
                if self.decoder.bytes() >= BATCH {
                    self.send().await;
                }
            }
            if self.decoder.bytes() > 0 {
                self.send().await;
            }
            self.tell();
        }
    }

    async fn message(&mut self, lsn: u64, body: Bytes) -> Result<()> {
        self.server_end = self.server_end.max(lsn);
        match (body.first(), self.piece) {
            (Some(b'B' | b'C' | b'S' | b'E' | b'c' | b'A'), _) => self.boundary(&body).await,
            (_, Some(xid)) => {
                let subxid = pgoutput::subtransaction(&body).doing(Kind::Decode, piece)?.unwrap_or(xid);
                self.spill.append(xid, subxid, lsn, &body)
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
                self.decoder.begin(final_lsn, committed_at, xid)
            }
            Message::Commit { lsn, end_lsn } => self.committed(lsn, end_lsn),
            Message::StreamStart { xid } => self.piece = Some(xid),
            Message::StreamStop => self.piece = None,
            Message::StreamAbort { xid, subxid } => self.spill.abort(xid, subxid)?,
            Message::StreamCommit { xid, lsn, end_lsn, committed_at } => {
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
        let Some(mut reader) = self.spill.commit(xid)? else { return Ok(()) };
        while let Some((lsn, message)) = reader.next()? {
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
            self.position = last;
        }
    }

    fn committed(&mut self, lsn: u64, end_lsn: u64) {
        self.decoder.end();
        self.position = self.position.max(Position::of(self.state.epoch, [lsn, u64::MAX, 0]));
        self.state.confirmed = self.state.confirmed.max(end_lsn);
        self.moved = true;
    }

    /// Everything before `end` was sent. Unless a transaction is being sent, that is as good as a commit.
    fn keepalive(&mut self, end: u64, reply: bool) {
        self.server_end = self.server_end.max(end);
        if reply {
            self.feedback.ping();
        }
        if !self.decoder.in_transaction() && self.piece.is_none() && end > self.state.confirmed {
            self.position = self.position.max(Position::of(self.state.epoch, [end, 0, 0]));
            self.state.confirmed = end;
            self.moved = true;
        }
    }

    /// Hands out what is decoded, with the checkpoint after it; waits while the channel is full.
    async fn send(&mut self) {
        self.moved = false;
        self.idle_since = Instant::now();
        let batch = self
            .state
            .checkpoint(&self.source, self.position)
            .map(|checkpoint| Batch { changes: self.decoder.take(), checkpoint: Some(checkpoint) });
        // Nobody listens: the loop sees that the channel is closed.
        let _ = self.out.send(batch).await;
    }

    fn tell(&self) {
        if let Ok(mut status) = self.status.lock() {
            status.lag_bytes = Some(self.server_end.saturating_sub(self.feedback.confirmed()));
        }
    }
}

fn piece() -> String {
    "decoding a piece of a transaction".to_owned()
}
