//! What a source says of itself while it runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use headwater_core::ports::{SourceState, SourceStatus, TableProgress};
use headwater_core::{Change, Op};

use super::lsn;

/// What is to be said once a batch is handed out.
#[derive(Debug)]
pub enum News {
    /// These tables begin to be read.
    Snapshot(Vec<TableProgress>),
    /// A table was read.
    Table(String),
    /// The snapshot is done.
    Streaming,
}

/// The status of one source, written by its tasks and read at any time.
#[derive(Debug, Default)]
pub struct Monitor {
    status: Mutex<SourceStatus>,
    /// The newest place of the log that the server told of.
    end: AtomicU64,
    confirmed: AtomicU64,
}

impl Monitor {
    /// What the source is doing now.
    pub fn status(&self) -> SourceStatus {
        let mut status = self.status.lock().map(|status| status.clone()).unwrap_or_default();
        let confirmed = self.place();
        if confirmed > 0 {
            status.position = Some(lsn::text(confirmed));
            status.lag_bytes = Some(self.end.load(Ordering::Relaxed).saturating_sub(confirmed));
        }
        status
    }

    /// A new phase.
    pub fn state(&self, state: SourceState) {
        self.update(|status| status.state = state);
    }

    /// Says what is new.
    pub fn tell(&self, news: News) {
        self.update(|status| match news {
            News::Snapshot(tables) => (status.state, status.snapshot) = (SourceState::Snapshot, tables),
            News::Table(name) => progress(status, &name, |table| table.done = true),
            News::Streaming => status.state = SourceState::Streaming,
        });
    }

    /// Rows that were read are handed out.
    pub fn read(&self, changes: &[Change]) {
        for read in changes.chunk_by(|one, next| Arc::ptr_eq(&one.table, &next.table)) {
            if let Some(first) = read.first().filter(|first| first.op == Op::Read) {
                let name = first.table.full_name();
                self.update(|status| progress(status, &name, |table| table.rows += read.len() as u64));
            }
        }
    }

    fn update(&self, change: impl FnOnce(&mut SourceStatus)) {
        if let Ok(mut status) = self.status.lock() {
            change(&mut status);
        }
    }

    /// The log reaches at least this far.
    pub fn heard(&self, end: u64) {
        self.end.fetch_max(end, Ordering::Relaxed);
    }

    /// The place before which everything is confirmed.
    pub fn place(&self) -> u64 {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// Everything before this place is confirmed.
    pub fn confirmed(&self, place: u64) {
        self.confirmed.fetch_max(place, Ordering::Relaxed);
    }
}

fn progress(status: &mut SourceStatus, name: &str, change: impl FnOnce(&mut TableProgress)) {
    if let Some(table) = status.snapshot.iter_mut().find(|table| table.table == name) {
        change(table);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_what_is_not_confirmed() {
        let monitor = Monitor::default();
        assert_eq!((monitor.status().position, monitor.status().lag_bytes), (None, None));
        monitor.confirmed(100);
        monitor.heard(300);
        monitor.heard(200);
        assert_eq!(monitor.status().lag_bytes, Some(200));
        assert_eq!(monitor.status().position.as_deref(), Some("0/64"));
        monitor.confirmed(400);
        assert_eq!(monitor.status().lag_bytes, Some(0));
    }
}
