//! Transactions that have not ended, on disk: memory does not grow with them.
//!
//! The server sends a large transaction in pieces before it has ended. Each goes into a file of its own
//! in `data_dir/spill/SOURCE`: records of the subtransaction (4 bytes), the log place (8), the length (4)
//! and the message, all little-endian. The files mean nothing after a reconnect: the server then sends
//! all of it again. They are not fsynced.
//!
//! Reading and writing block, but only as long as the page cache does; the task that calls does nothing else.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use headwater_core::{Error, Kind, Result, ResultExt};

/// How much of a file is buffered.
const BUFFER: usize = 256 << 10;

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
}

impl Spill {
    /// Uses `dir`, and empties it of what an earlier connection left.
    pub fn open(dir: &Path) -> Result<Self> {
        let doing = || format!("emptying {}", dir.display());
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error, doing())),
            _ => {}
        }
        std::fs::create_dir_all(dir).map_err(|error| failed(error, doing()))?;
        Ok(Self { dir: dir.to_owned(), open: HashMap::new() })
    }

    /// Adds a message of subtransaction `subxid` (`xid` itself for the transaction's own).
    pub fn append(&mut self, xid: u32, subxid: u32, lsn: u64, message: &[u8]) -> Result<()> {
        let length =
            u32::try_from(message.len()).doing(Kind::Decode, || "a message over 4 GiB".to_owned())?;
        let transaction = self.transaction(xid)?;
        let mut write = || {
            transaction.file.write_all(&subxid.to_le_bytes())?;
            transaction.file.write_all(&lsn.to_le_bytes())?;
            transaction.file.write_all(&length.to_le_bytes())?;
            transaction.file.write_all(message)
        };
        write().map_err(|error| failed(error, format!("writing {}", transaction.path.display())))
    }

    /// A subtransaction was rolled back; the whole transaction when both are the same.
    pub fn abort(&mut self, xid: u32, subxid: u32) -> Result<()> {
        if xid == subxid {
            return self.open.remove(&xid).map_or(Ok(()), |transaction| remove(&transaction.path));
        }
        if let Some(transaction) = self.open.get_mut(&xid) {
            transaction.aborted.insert(subxid);
        }
        Ok(())
    }

    /// The transaction has committed: its messages. `None` when nothing of it came.
    pub fn commit(&mut self, xid: u32) -> Result<Option<SpillReader>> {
        let Some(transaction) = self.open.remove(&xid) else { return Ok(None) };
        let doing = || format!("reading {}", transaction.path.display());
        transaction.file.into_inner().map_err(|error| failed(error.into_error(), doing()))?;
        let file = File::open(&transaction.path).map_err(|error| failed(error, doing()))?;
        let file = BufReader::with_capacity(BUFFER, file);
        Ok(Some(SpillReader { file, path: transaction.path, aborted: transaction.aborted }))
    }

    fn transaction(&mut self, xid: u32) -> Result<&mut Transaction> {
        match self.open.entry(xid) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let path = self.dir.join(xid.to_string());
                let file = File::create(&path)
                    .map_err(|error| failed(error, format!("making {}", path.display())))?;
                let file = BufWriter::with_capacity(BUFFER, file);
                Ok(entry.insert(Transaction { path, file, aborted: HashSet::new() }))
            }
        }
    }
}

/// The messages of a transaction that has committed, in order, without those that were rolled back. Its
/// file goes when it is dropped.
pub struct SpillReader {
    file: BufReader<File>,
    path: PathBuf,
    aborted: HashSet<u32>,
}

impl SpillReader {
    /// The next message and its place in the log.
    pub fn next(&mut self) -> Result<Option<(u64, Bytes)>> {
        loop {
            let mut head = [0; 16];
            match self.file.read_exact(&mut head) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
                read => read.map_err(|error| failed(error, format!("reading {}", self.path.display())))?,
            }
            let [subxid, low, high, length] = head.as_chunks::<4>().0 else { return Ok(None) };
            let lsn = u64::from(u32::from_le_bytes(*high)) << 32 | u64::from(u32::from_le_bytes(*low));
            let mut message = vec![0; u32::from_le_bytes(*length) as usize];
            self.file
                .read_exact(&mut message)
                .map_err(|error| failed(error, format!("reading {}", self.path.display())))?;
            if !self.aborted.contains(&u32::from_le_bytes(*subxid)) {
                return Ok(Some((lsn, message.into())));
            }
        }
    }
}

impl Drop for SpillReader {
    fn drop(&mut self) {
        let _ = remove(&self.path);
    }
}

fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(|error| failed(error, format!("removing {}", path.display())))
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

    fn all(mut reader: SpillReader) -> Vec<(u64, Bytes)> {
        std::iter::from_fn(|| reader.next().unwrap()).collect()
    }

    #[test]
    fn what_was_rolled_back_is_not_there_and_the_file_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut spill = Spill::open(&dir.path().join("s")).unwrap();
        spill.append(1, 1, 10, b"a").unwrap();
        spill.append(2, 2, 11, b"other").unwrap();
        spill.append(1, 5, 12, b"gone").unwrap();
        spill.abort(1, 5).unwrap();
        spill.append(1, 6, 13, b"").unwrap();
        let expected = [(10, Bytes::from_static(b"a")), (13, Bytes::new())];
        assert_eq!(all(spill.commit(1).unwrap().unwrap()), expected);
        assert!(spill.commit(1).unwrap().is_none());
        spill.abort(2, 2).unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("s")).unwrap().count(), 0);
    }

    #[test]
    fn opening_discards_what_was_left() {
        let dir = tempfile::tempdir().unwrap();
        let mut spill = Spill::open(dir.path()).unwrap();
        spill.append(1, 1, 10, b"a").unwrap();
        drop(spill);
        let mut spill = Spill::open(dir.path()).unwrap();
        assert!(spill.commit(1).unwrap().is_none());
    }
}
