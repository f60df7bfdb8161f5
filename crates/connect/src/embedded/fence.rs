//! Which writers may publish.
//!
//! When a batch could not be written, the batches after it must not be either: they carry later events
//! of the same keys and later checkpoints. Those that wait in the queue fail with it; those that come
//! after it are held off here until their source has opened a writer anew. So is a writer whose source has
//! opened another.

use std::collections::HashMap;
use std::sync::Arc;

use headwater_core::{Error, Kind, Result};

/// Why a batch was not written.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    kind: Kind,
    text: Arc<str>,
}

impl Failure {
    /// The error that publishers see.
    pub(super) fn error(&self) -> Error {
        Error::new(self.kind, &*self.text).hint("nothing was lost: the source goes on from its checkpoint")
    }
}

/// What a writer shows to publish.
#[derive(Debug)]
pub(super) struct Pass {
    source: Arc<str>,
    /// How many writers of the source there were with this one.
    number: u64,
    /// Of the [`Fence`], when the writer was opened.
    generation: u64,
}

/// Which writers may publish.
#[derive(Debug, Default)]
pub(super) struct Fence {
    /// Rises with each failure; a batch accepted under an older one must not be written.
    generation: u64,
    failure: Option<Failure>,
    /// How many writers of each source were opened.
    writers: HashMap<Arc<str>, u64>,
}

impl Fence {
    /// A new writer of a source: earlier ones publish no more.
    pub(super) fn open(&mut self, source: &str) -> Pass {
        let source: Arc<str> = source.into();
        let number = self.writers.entry(Arc::clone(&source)).or_default();
        *number += 1;
        Pass { number: *number, generation: self.generation, source }
    }

    /// The generation to publish under, or why a writer may not publish now.
    pub(super) fn admit(&self, pass: &Pass) -> Result<u64> {
        if self.writers.get(&pass.source) != Some(&pass.number) {
            return Err(Error::new(Kind::Busy, format!("another writer of {} was opened", pass.source)));
        }
        match &self.failure {
            Some(failure) if !self.holds(pass.generation) => Err(failure.error()),
            _ => Ok(self.generation),
        }
    }

    /// Whether a batch accepted under `generation` may still be written.
    pub(super) fn holds(&self, generation: u64) -> bool {
        self.generation == generation
    }

    /// A batch could not be written: everything accepted so far fails with it.
    pub(super) fn fail(&mut self, error: &Error) -> Failure {
        self.generation += 1;
        self.failure.insert(Failure { kind: error.kind(), text: error.to_string().into() }).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_held_off_until_it_opens_a_writer_anew() {
        let mut fence = Fence::default();
        let (a, b) = (fence.open("a"), fence.open("b"));
        let before = fence.admit(&a).unwrap();
        let asked_before = fence.open("c");
        fence.fail(&Error::new(Kind::Full, "disk full"));
        assert!(!fence.holds(before));
        assert_eq!(fence.admit(&a).unwrap_err().kind(), Kind::Full);
        assert!(fence.admit(&asked_before).is_err(), "its checkpoint was asked for before the failure");
        let anew = fence.open("a");
        assert!(fence.admit(&anew).is_ok());
        assert!(fence.admit(&b).is_err());
        assert_eq!(fence.admit(&a).unwrap_err().kind(), Kind::Busy, "there is another");
    }
}
