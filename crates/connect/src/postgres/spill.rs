//! Transactions that have not ended, on disk: memory does not grow with them.
//!
//! The server sends a large transaction in pieces before it has ended. Each goes into a file of its own
//! in `data_dir/spill/SOURCE`: records of the subtransaction (4 bytes), the log place (8), the length (4)
//! and the message, all little-endian. What a part that is rolled back said of a table goes with it: the
//! server says it again (`pgoutput_stream_abort` forgets what it has said to the whole transaction). The
//! files mean nothing after a reconnect: the server then sends all of it again. They are not fsynced.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use headwater_core::{Error, Kind, Result, ResultExt};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};

/// How much of a file is buffered while it is written: of as many files as there are large transactions.
const WRITE: usize = 64 << 10;

/// How much of a file is buffered while it is read: of one.
const READ: usize = 256 << 10;

/// The length of what stands before each message.
const HEAD: usize = 16;

/// The unfinished transactions of one source.
pub struct Spill {
    dir: PathBuf,
    open: HashMap<u32, Transaction>,
}

struct Transaction {
    path: PathBuf,
    file: BufWriter<File>,
    /// Subtransactions that were rolled back: four bytes each is all that stays in memory.
    aborted: HashSet<u32>,
    /// A message for us came, and then a part was rolled back: the server does not say which part a message
    /// stood in (`pgoutput_message` names the whole transaction).
    doubt: Option<Doubt>,
}

/// How far messages and parts that were rolled back have met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubt {
    Message,
    MessageAndAbort,
}

impl Spill {
    /// Uses `dir`, and empties it of what an earlier connection left.
    pub async fn open(dir: &Path) -> Result<Self> {
        let doing = || format!("emptying {}", dir.display());
        match tokio::fs::remove_dir_all(dir).await {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error, doing())),
            _ => {}
        }
        tokio::fs::create_dir_all(dir).await.map_err(|error| failed(error, doing()))?;
        Ok(Self { dir: dir.to_owned(), open: HashMap::new() })
    }

    /// Adds a message of subtransaction `subxid` (`xid` itself for the transaction's own).
    pub async fn append(&mut self, xid: u32, subxid: u32, lsn: u64, message: &[u8]) -> Result<()> {
        let length =
            u32::try_from(message.len()).doing(Kind::Decode, || "a message over 4 GiB".to_owned())?;
        let transaction = self.transaction(xid).await?;
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(&subxid.to_le_bytes());
        head[4..12].copy_from_slice(&lsn.to_le_bytes());
        head[12..].copy_from_slice(&length.to_le_bytes());
        let write = async {
            transaction.file.write_all(&head).await?;
            transaction.file.write_all(message).await
        };
        write.await.map_err(|error| failed(error, format!("writing {}", transaction.path.display())))
    }

    /// What was added last is a message for us.
    pub fn is_message(&mut self, xid: u32) {
        if let Some(transaction) = self.open.get_mut(&xid) {
            transaction.doubt.get_or_insert(Doubt::Message);
        }
    }

    /// A subtransaction was rolled back; the whole transaction when both are the same.
    pub async fn abort(&mut self, xid: u32, subxid: u32) -> Result<()> {
        if xid == subxid {
            let Some(transaction) = self.open.remove(&xid) else { return Ok(()) };
            let doing = || format!("removing {}", transaction.path.display());
            return tokio::fs::remove_file(&transaction.path).await.map_err(|error| failed(error, doing()));
        }
        if let Some(transaction) = self.open.get_mut(&xid) {
            transaction.aborted.insert(subxid);
            transaction.doubt = transaction.doubt.and(Some(Doubt::MessageAndAbort));
        }
        Ok(())
    }

    /// The transaction has committed: its messages. `None` when nothing of it came.
    pub async fn commit(&mut self, xid: u32) -> Result<Option<SpillReader>> {
        let Some(mut transaction) = self.open.remove(&xid) else { return Ok(None) };
        let doing = || format!("reading {}", transaction.path.display());
        transaction.file.flush().await.map_err(|error| failed(error, doing()))?;
        let file = File::open(&transaction.path).await.map_err(|error| failed(error, doing()))?;
        let file = BufReader::with_capacity(READ, file);
        let Transaction { path, aborted, doubt, .. } = transaction;
        Ok(Some(SpillReader { file, path, aborted, doubtful: doubt == Some(Doubt::MessageAndAbort) }))
    }

    async fn transaction(&mut self, xid: u32) -> Result<&mut Transaction> {
        match self.open.entry(xid) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let path = self.dir.join(xid.to_string());
                let file = File::create(&path)
                    .await
                    .map_err(|error| failed(error, format!("making {}", path.display())))?;
                let file = BufWriter::with_capacity(WRITE, file);
                Ok(entry.insert(Transaction { path, file, aborted: HashSet::new(), doubt: None }))
            }
        }
    }
}

/// The messages of a transaction that has committed, in order, without those that were rolled back. Its
/// file goes when it has been read.
pub struct SpillReader {
    file: BufReader<File>,
    path: PathBuf,
    aborted: HashSet<u32>,
    /// Whether a message among them may have been rolled back.
    pub doubtful: bool,
}

impl SpillReader {
    /// The next message and its place in the log.
    pub async fn next(&mut self) -> Result<Option<(u64, Bytes)>> {
        let doing = || format!("reading {}", self.path.display());
        loop {
            let mut head = [0; HEAD];
            match self.file.read_exact(&mut head).await {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
                read => read.map_err(|error| failed(error, doing()))?,
            };
            let [subxid, low, high, length] = head.as_chunks::<4>().0 else { break };
            let lsn = u64::from(u32::from_le_bytes(*high)) << 32 | u64::from(u32::from_le_bytes(*low));
            let mut message = vec![0; u32::from_le_bytes(*length) as usize];
            self.file.read_exact(&mut message).await.map_err(|error| failed(error, doing()))?;
            if !self.aborted.contains(&u32::from_le_bytes(*subxid)) {
                return Ok(Some((lsn, message.into())));
            }
        }
        tokio::fs::remove_file(&self.path).await.map_err(|error| failed(error, doing()))?;
        Ok(None)
    }
}

fn failed(error: std::io::Error, doing: String) -> Error {
    let full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
    let failed = Error::new(if full { Kind::Full } else { Kind::Unavailable }, doing).because(error);
    if full {
        failed.hint("make room under data_dir: large transactions wait there until they end")
    } else {
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(reader: Option<SpillReader>) -> Vec<(u64, Bytes)> {
        let (mut reader, mut messages) = (reader.unwrap(), Vec::new());
        while let Some(message) = reader.next().await.unwrap() {
            messages.push(message);
        }
        messages
    }

    #[tokio::test]
    async fn what_was_rolled_back_is_not_there_and_the_file_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut spill = Spill::open(&dir.path().join("s")).await.unwrap();
        spill.append(1, 1, 10, b"a").await.unwrap();
        spill.append(2, 2, 11, b"other").await.unwrap();
        spill.append(1, 5, 12, b"gone").await.unwrap();
        spill.abort(1, 5).await.unwrap();
        spill.append(1, 6, 1 << 33, b"").await.unwrap();
        let expected = [(10, Bytes::from_static(b"a")), (1 << 33, Bytes::new())];
        assert_eq!(all(spill.commit(1).await.unwrap()).await, expected);
        assert!(spill.commit(1).await.unwrap().is_none());
        spill.abort(2, 2).await.unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("s")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn opening_discards_what_was_left() {
        let dir = tempfile::tempdir().unwrap();
        let mut spill = Spill::open(dir.path()).await.unwrap();
        spill.append(1, 1, 10, b"a").await.unwrap();
        drop(spill);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        Spill::open(dir.path()).await.unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
