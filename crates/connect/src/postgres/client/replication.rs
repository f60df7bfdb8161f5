//! Logical replication: a reader of what the server sends, and a writer that tells it how far we are.
//!
//! The messages within CopyData are those of PostgreSQL's documentation, "Streaming Replication
//! Protocol".

use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use headwater_core::{Error, Kind, Micros, Result, ResultExt};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend::CopyData;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};

use super::reader::{Gulp, Pause, Reader, message_length};
use super::stream::Stream;
use super::{Connection, PgError};

/// Microseconds from 1970 to 2000, where PostgreSQL's clock begins.
pub const PG_EPOCH: Micros = 946_684_800_000_000;

/// One message of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replicated {
    /// A piece of the decoded log.
    Data {
        /// Where the change stands in the log.
        lsn: u64,
        /// Where its bytes are in the gulp.
        body: Range<usize>,
    },
    /// Nothing to send.
    Keepalive {
        /// Everything before this was decoded and sent.
        end: u64,
        /// The server wants to hear from us.
        reply: bool,
    },
}

impl Connection {
    /// Begins to replicate with a `START_REPLICATION` command. Under backlog the reader makes its thread
    /// sleep: let it be that of the connection's reactor, and of nothing else.
    pub async fn start_replication(
        mut self,
        command: &str,
    ) -> Result<(ReplicationReader, ReplicationWriter)> {
        self.send_query(command).await?;
        self.copy_both().await?;
        let pause = self.stream.pause();
        let (read, write) = tokio::io::split(self.stream);
        let reader = Reader::new(self.buffer, self.address.clone(), Pause::Thread(pause));
        Ok((
            ReplicationReader { stream: read, reader },
            ReplicationWriter { stream: write, address: self.address },
        ))
    }

    /// Waits for CopyBothResponse, which `postgres-protocol` does not know.
    async fn copy_both(&mut self) -> Result<()> {
        loop {
            match (self.buffer.first(), message_length(&self.buffer)?) {
                (Some(b'W'), Some(length)) => {
                    self.buffer.advance(length);
                    return Ok(());
                }
                (Some(b'E'), Some(_)) => {
                    if let Message::ErrorResponse(body) = self.message().await? {
                        return Err(PgError::from_body(&body).into_error("starting replication"));
                    }
                }
                (Some(b'N' | b'S'), Some(length)) => self.buffer.advance(length),
                (Some(tag), Some(_)) => {
                    let what = format!("starting replication: an unexpected answer ({})", char::from(*tag));
                    return Err(Error::new(Kind::Decode, what));
                }
                _ => self.fill().await?,
            }
        }
    }
}

/// Hears what the server sends.
pub struct ReplicationReader {
    stream: ReadHalf<Stream>,
    reader: Reader,
}

impl ReplicationReader {
    /// The next messages, as many as have come; read them with [`Replicated::read`]. An error when the
    /// server ends the replication. Cancel-safe.
    pub async fn next(&mut self) -> Result<Gulp> {
        match self.reader.gulp(&mut self.stream).await? {
            Some(gulp) => Ok(gulp),
            None => Err(self.ended()),
        }
    }

    /// Whether so much comes that it is read at a pace: more will be there soon.
    pub fn is_busy(&self) -> bool {
        self.reader.is_busy()
    }

    fn ended(&mut self) -> Error {
        match Message::parse(&mut self.reader.take()) {
            Ok(Some(Message::ErrorResponse(body))) => refused(PgError::from_body(&body)),
            _ => Error::new(Kind::Unavailable, "PostgreSQL ended the replication"),
        }
    }
}

/// A publication that is gone, or was not there yet where the log is read, is looked for when the source
/// is opened again.
fn refused(error: PgError) -> Error {
    if error.code == "42704" {
        return Error::new(Kind::Unavailable, "replicating").because(error).hint(
            "if it is a publication that is there: what its slot keeps is older than it and cannot be read by it. Drop \
             the slot and have all read anew: headwater snapshot --source NAME",
        );
    }
    error.into_error("replicating")
}

impl Replicated {
    /// Reads one message of a gulp.
    #[inline]
    pub fn read(bytes: &Bytes, body: Range<usize>) -> Result<Self> {
        let malformed = || Error::new(Kind::Decode, "a replication message of PostgreSQL is malformed");
        let message = bytes.get(body.clone()).ok_or_else(malformed)?;
        let number =
            |at: usize| message.get(at..at + 8)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
        match message.first() {
            // w: start, end of the log, clock (8 bytes each), then the data.
            Some(b'w') if message.len() >= 25 => {
                Ok(Self::Data { lsn: number(1).ok_or_else(malformed)?, body: body.start + 25..body.end })
            }
            // k: end of the log, clock, whether to reply.
            Some(b'k') => {
                let reply = *message.get(17).ok_or_else(malformed)? == 1;
                Ok(Self::Keepalive { end: number(1).ok_or_else(malformed)?, reply })
            }
            _ => Err(malformed()),
        }
    }
}

/// Tells the server how far we are.
pub struct ReplicationWriter {
    stream: WriteHalf<Stream>,
    address: String,
}

impl ReplicationWriter {
    /// Everything before `lsn` is durable with us. With `reply`, asks for a keepalive.
    pub async fn status(&mut self, lsn: u64, reply: bool) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as Micros;
        let mut status = BytesMut::with_capacity(34);
        status.put_u8(b'r');
        for _written_flushed_applied in 0..3 {
            status.put_u64(lsn);
        }
        status.put_i64(now - PG_EPOCH);
        status.put_u8(u8::from(reply));
        let mut message = BytesMut::with_capacity(64);
        CopyData::new(status).doing(Kind::Internal, || "a status message".to_owned())?.write(&mut message);
        let doing = || format!("writing to PostgreSQL at {}", self.address);
        self.stream.write_all(&message).await.doing(Kind::Unavailable, doing)?;
        self.stream.flush().await.doing(Kind::Unavailable, doing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(message: &[u8]) -> Result<Replicated> {
        Replicated::read(&Bytes::copy_from_slice(message), 0..message.len())
    }

    #[test]
    fn reads_data_and_keepalives() {
        let number = |n: u64| n.to_be_bytes();
        let data = [b"w", &number(7)[..], &number(9), &number(1), b"rest"].concat();
        assert_eq!(read(&data).unwrap(), Replicated::Data { lsn: 7, body: 25..29 });
        let keepalive = [b"k", &number(9)[..], &number(1), &[1]].concat();
        assert_eq!(read(&keepalive).unwrap(), Replicated::Keepalive { end: 9, reply: true });
    }

    #[test]
    fn what_is_cut_short_is_an_error() {
        for message in [&b""[..], b"w", b"w12345678", b"k12345678", b"x"] {
            assert_eq!(read(message).unwrap_err().kind(), Kind::Decode);
        }
    }
}
