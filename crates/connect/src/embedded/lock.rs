//! One writer at a time: an exclusive lock on `data_dir/bus/lock`, which holds the writer's pid.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;

use headwater_core::{Error, Kind, Result};
use rustix::fs::{FlockOperation, flock};

use crate::store::io;

/// The right to write; given back when dropped, and by the kernel when the process ends in any way.
#[derive(Debug)]
pub(super) struct WriterLock {
    _file: File,
}

impl WriterLock {
    /// Takes the lock; an error of kind `Busy` names the pid that has it.
    pub(super) fn take(dir: &Path) -> Result<Self> {
        let path = dir.join("lock");
        let doing = format!("locking {}", path.display());
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = io(opened, &doing)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(busy(dir, &mut file)),
            locked => io(locked.map_err(Into::into), &doing)?,
        }
        // The pid is for people and for the error above; the lock itself does not depend on it.
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        io(written, &doing)?;
        Ok(Self { _file: file })
    }
}

fn busy(dir: &Path, file: &mut File) -> Error {
    let mut pid = String::new();
    let holder = match file.take(20).read_to_string(&mut pid) {
        Ok(1..) => format!("process {}", pid.trim()),
        _ => "another process".to_owned(),
    };
    Error::new(Kind::Busy, format!("{holder} is running Headwater on {}", dir.display()))
        .hint("stop it first, or give this one a data_dir of its own; `tail` and `status` work beside it")
}
