//! Waking the subscriptions of this process when something was committed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::follower::Command;

/// One subscription's bell: ringing it again before it was heard does nothing.
pub(super) struct Waker {
    commands: Sender<Command>,
    rung: AtomicBool,
}

impl Waker {
    /// A bell that arrives as [`Command::Wake`].
    pub(super) fn new(commands: Sender<Command>) -> Self {
        Self { commands, rung: AtomicBool::new(false) }
    }

    /// Call before looking at what there is: what is committed later rings again.
    pub(super) fn heard(&self) {
        self.rung.store(false, Ordering::SeqCst);
    }

    fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst) {
            let _ = self.commands.send(Command::Wake);
        }
    }
}

/// The bells of all subscriptions of this process.
#[derive(Default)]
pub(super) struct Wakers(Mutex<Vec<Weak<Waker>>>);

impl Wakers {
    /// Rings `waker` from now on, until it is dropped.
    pub(super) fn add(&self, waker: &Arc<Waker>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(waker));
    }

    /// Rings all.
    pub(super) fn wake_all(&self) {
        let mut wakers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wakers.retain(|waker| match waker.upgrade() {
            Some(waker) => {
                waker.ring();
                true
            }
            None => false,
        });
    }
}
