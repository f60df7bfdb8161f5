//! Reading CopyData in big gulps.
//!
//! The server's walsender sends once per message and wakes its client each time. A client that reads as
//! often takes the CPU that the walsender needs, so under backlog we pause between reads and then take all
//! that has come. "Backlog" is a rate ([`BUSY`]), measured over at least a millisecond: below it, as when
//! the socket is drained, we read as bytes arrive.

use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use headwater_core::{Error, Kind, Result, ResultExt};
use tokio::io::{AsyncRead, AsyncReadExt};

/// At most this is read before what was read is handed out.
const GULP: usize = 1 << 20;

/// More bytes a millisecond than this are a backlog.
const BUSY: usize = 4 << 10;

/// Over how long the rate is measured, at least.
const WINDOW: Duration = Duration::from_millis(1);

/// How a reader pauses under backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// Its thread sleeps this long: for one that shares its thread only with the socket's reactor, so that
    /// nobody waits for the socket meanwhile (see `lane`).
    Thread(Duration),
    /// Its task does, as precisely as timers are: for one that shares its thread with others.
    Task,
}

impl Pause {
    async fn wait(self) {
        match self {
            Self::Thread(pause) => std::thread::sleep(pause),
            Self::Task => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

/// A buffer that grew beyond this for a large message is given back.
const LARGE: usize = 8 << 20;

/// The buffer of a stream of CopyData messages.
pub struct Reader {
    buffer: BytesMut,
    address: String,
    pause: Pause,
    pace: Pace,
}

impl Reader {
    /// Goes on with what was read already.
    pub fn new(buffer: BytesMut, address: String, pause: Pause) -> Self {
        Self { buffer, address, pause, pace: Pace::new() }
    }

    /// Whether more bytes are coming than could be waited for one by one.
    pub fn is_busy(&self) -> bool {
        self.pace.busy
    }

    /// What was read and is not handed out.
    pub fn take(&mut self) -> BytesMut {
        std::mem::take(&mut self.buffer)
    }

    /// Waits for at least one whole message, and returns all CopyData messages that have come; `None`
    /// when another message comes next: the copy ended or failed. Cancel-safe: what was read stays in the
    /// buffer.
    pub async fn gulp(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Gulp>> {
        loop {
            if self.buffer.is_empty() && self.buffer.capacity() > LARGE {
                self.buffer = BytesMut::new();
            }
            let whole = copy_data(&self.buffer)?;
            if whole > 0 {
                return Ok(Some(Gulp { bytes: self.buffer.split_to(whole).freeze(), at: 0 }));
            }
            match (self.buffer.first(), message_length(&self.buffer)?) {
                // Notices and parameters may come at any time, and mean nothing here.
                (Some(b'N' | b'S'), Some(length)) => {
                    self.buffer.advance(length);
                    continue;
                }
                // What ends the copy, and all of it: it says why.
                (Some(tag), Some(_)) if *tag != b'd' => return Ok(None),
                _ => {}
            }
            if self.pace.busy {
                self.pause.wait().await;
            }
            let read = self.read(stream).await?;
            self.pace.read(read);
        }
    }

    /// Reads at least one byte, then whatever is there without waiting, up to [`GULP`].
    async fn read(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> Result<usize> {
        let doing = || format!("reading from PostgreSQL at {}", self.address);
        let mut total = 0;
        loop {
            self.buffer.reserve(GULP / 4);
            let more = stream.read_buf(&mut self.buffer);
            let read = if total == 0 {
                more.await.doing(Kind::Unavailable, doing)?
            } else {
                match futures::FutureExt::now_or_never(more) {
                    Some(read) => read.doing(Kind::Unavailable, doing)?,
                    None => return Ok(total),
                }
            };
            if read == 0 {
                return if total == 0 { Err(closed(&self.address)) } else { Ok(total) };
            }
            total += read;
            if total >= GULP {
                return Ok(total);
            }
        }
    }
}

/// How fast bytes come.
struct Pace {
    since: Instant,
    bytes: usize,
    busy: bool,
}

impl Pace {
    fn new() -> Self {
        Self { since: Instant::now(), bytes: 0, busy: false }
    }

    /// Counts what was read; once a window has passed, says whether it was a backlog.
    fn read(&mut self, bytes: usize) {
        self.bytes += bytes;
        let elapsed = self.since.elapsed();
        if elapsed >= WINDOW {
            self.busy = self.bytes as u128 > BUSY as u128 * elapsed.as_micros() / WINDOW.as_micros();
            (self.since, self.bytes) = (Instant::now(), 0);
        }
    }
}

/// The server hung up.
pub fn closed(address: &str) -> Error {
    Error::new(Kind::Unavailable, format!("PostgreSQL at {address} closed the connection"))
}

/// The length of the message that `buffer` begins with, if it is whole: a tag, then the length of the rest.
pub fn message_length(buffer: &[u8]) -> Result<Option<usize>> {
    let Some(header) = buffer.first_chunk::<5>() else { return Ok(None) };
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if !(4..1 << 30).contains(&length) {
        return Err(Error::new(Kind::Decode, format!("a message of PostgreSQL says it has {length} bytes")));
    }
    Ok((buffer.len() > length).then_some(1 + length))
}

/// How many bytes at the start of `buffer` are whole CopyData messages.
fn copy_data(buffer: &[u8]) -> Result<usize> {
    let mut at = 0;
    while let Some(b'd') = buffer.get(at) {
        match message_length(&buffer[at..])? {
            Some(length) => at += length,
            None => break,
        }
    }
    Ok(at)
}

/// Whole CopyData messages in one buffer.
#[derive(Debug, Clone)]
pub struct Gulp {
    bytes: Bytes,
    at: usize,
}

impl Gulp {
    /// Its bytes; the ranges that it yields are of these.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// Where the body of each message is.
impl Iterator for Gulp {
    type Item = Range<usize>;

    #[inline]
    fn next(&mut self) -> Option<Range<usize>> {
        let length = self.bytes.get(self.at + 1..self.at + 5)?;
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let body = self.at + 5..self.at + 1 + length;
        self.at = body.end;
        Some(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32 + 4).to_be_bytes();
        [&[tag], &length[..], body].concat()
    }

    #[tokio::test]
    async fn bodies_come_whole_however_they_are_cut() {
        let sent = [message(b'd', b"one"), message(b'N', b"x"), message(b'd', b"two"), message(b'E', b"why")]
            .concat();
        for cut in 1..sent.len() {
            let (mut server, mut client) = tokio::io::duplex(cut);
            let writing = sent.clone();
            tokio::spawn(async move { tokio::io::AsyncWriteExt::write_all(&mut server, &writing).await });
            let mut reader = Reader::new(BytesMut::new(), "test".into(), Pause::Task);
            let mut bodies = Vec::new();
            while let Some(gulp) = reader.gulp(&mut client).await.unwrap() {
                let bytes = gulp.bytes().clone();
                bodies.extend(gulp.map(|body| bytes.slice(body)));
            }
            assert_eq!(bodies, ["one", "two"]);
            assert_eq!(reader.take(), message(b'E', b"why"), "whole");
        }
    }

    #[tokio::test]
    async fn a_length_out_of_range_is_an_error() {
        let mut reader =
            Reader::new(BytesMut::from(&[b'd', 0xff, 0xff, 0xff, 0xff][..]), "test".into(), Pause::Task);
        assert_eq!(reader.gulp(&mut tokio::io::empty()).await.unwrap_err().kind(), Kind::Decode);
    }

    #[tokio::test]
    async fn the_end_of_the_connection_is_an_error() {
        let mut reader = Reader::new(BytesMut::new(), "test".into(), Pause::Task);
        assert_eq!(reader.gulp(&mut tokio::io::empty()).await.unwrap_err().kind(), Kind::Unavailable);
    }
}
