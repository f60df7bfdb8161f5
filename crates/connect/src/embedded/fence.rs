//! What may be published after a failure.
//!
//! When a batch could not be written, the batches after it must not be either: they carry later events
//! of the same keys and later checkpoints. Those that wait in the queue fail with it; those that come
//! after it are held off here until their source has asked for its checkpoint again.

use std::collections::HashSet;
use std::sync::Arc;

use headwater_core::{Error, Kind, Result};

/// Why a batch was not written; each copy that its publisher has not looked at yet is counted.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    kind: Kind,
    text: Arc<str>,
    unseen: Arc<()>,
}

impl Failure {
    /// The error that publishers see.
    pub(super) fn error(&self) -> Error {
        Error::new(self.kind, &*self.text).hint("nothing was lost: the source goes on from its checkpoint")
    }
}

/// Which sources may publish.
#[derive(Debug, Default)]
pub(super) struct Fence {
    /// Rises with each failure; a batch accepted under an older one must not be written.
    generation: u64,
    failure: Option<Failure>,
    /// Every source that was ever met.
    known: HashSet<String>,
    /// Those that have not asked for their checkpoint since the failure.
    stale: HashSet<String>,
    /// Whether any has.
    reopened: bool,
}

impl Fence {
    /// The generation to publish under, or why this batch may not be published now.
    pub(super) fn admit(&mut self, source: Option<&str>) -> Result<u64> {
        let Some(failure) = &self.failure else {
            if let Some(source) = source {
                self.know(source);
            }
            return Ok(self.generation);
        };
        let held = match source {
            Some(source) => self.stale.contains(source),
            // A batch without a checkpoint does not say whose it is: it waits until every publisher has
            // seen its failure, and one has begun anew.
            None => !self.reopened || Arc::strong_count(&failure.unseen) > 1,
        };
        if held {
            return Err(failure.error());
        }
        if let Some(source) = source {
            self.know(source);
        }
        Ok(self.generation)
    }

    fn know(&mut self, source: &str) {
        if !self.known.contains(source) {
            self.known.insert(source.to_owned());
        }
    }

    /// Whether a batch accepted under `generation` may still be written.
    pub(super) fn holds(&self, generation: u64) -> bool {
        self.generation == generation
    }

    /// The generation now.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// A batch could not be written: everything accepted so far fails with it.
    pub(super) fn fail(&mut self, error: &Error) -> Failure {
        let failure = Failure { kind: error.kind(), text: error.to_string().into(), unseen: Arc::new(()) };
        self.generation += 1;
        self.stale.clone_from(&self.known);
        self.reopened = false;
        self.failure = Some(failure.clone());
        failure
    }

    /// `source` was told its checkpoint, asked for under `generation`: it begins anew from there.
    pub(super) fn reopen(&mut self, source: &str, generation: u64) {
        self.know(source);
        if self.generation == generation {
            self.stale.remove(source);
            self.reopened = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Error {
        Error::new(Kind::Full, "disk full")
    }

    #[test]
    fn a_source_is_held_off_until_it_asked_for_its_checkpoint() {
        let mut fence = Fence::default();
        let before = fence.admit(Some("a")).unwrap();
        fence.admit(Some("b")).unwrap();
        let failure = fence.fail(&full());
        assert!(!fence.holds(before));
        assert_eq!(fence.admit(Some("a")).unwrap_err().kind(), Kind::Full);
        fence.reopen("a", before); // asked before the failure: not enough
        assert!(fence.admit(Some("a")).is_err());
        fence.reopen("a", fence.generation());
        assert!(fence.admit(Some("a")).is_ok());
        assert!(fence.admit(Some("b")).is_err());
        drop(failure);
    }

    #[test]
    fn a_batch_of_no_source_waits_until_every_failure_was_seen() {
        let mut fence = Fence::default();
        fence.admit(Some("a")).unwrap();
        let unseen = fence.fail(&full());
        fence.reopen("a", fence.generation());
        assert!(fence.admit(None).is_err());
        drop(unseen);
        assert!(fence.admit(None).is_ok());
        fence.fail(&full());
        assert!(fence.admit(None).is_err(), "nobody has begun anew");
    }
}
