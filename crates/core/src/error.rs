//! One error type for every port: what kind, what was being done, why, and what to do about it.

use std::error::Error as StdError;
use std::fmt;

/// What sort of failure it is; it decides whether a retry can help and how the process exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The configuration is wrong. No retry helps; exit code 2.
    Config,
    /// The other side is away or was cut off. Retried with backoff.
    Unavailable,
    /// A server understood and said no (rights, missing objects). No retry helps; exit code 3.
    Refused,
    /// Changes between the checkpoint and the source's log are gone. Never skipped; needs a repair.
    Hole,
    /// Bytes from outside could not be understood.
    Decode,
    /// A table no longer fits the contract of a stream.
    Contract,
    /// A disk or a budget is full. Retried: nothing is confirmed until there is room.
    Full,
    /// Another process holds what this one needs (a data_dir, a slot, a lease).
    Busy,
    /// A defect in Headwater.
    Internal,
}

/// An error of any port or adapter.
#[derive(Debug)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    kind: Kind,
    doing: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// A result with Headwater's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`; `doing` says what failed, in words an operator understands.
    pub fn new(kind: Kind, doing: impl Into<String>) -> Self {
        let inner = Inner { kind, doing: doing.into(), hint: None, source: None };
        Self { inner: Box::new(inner) }
    }

    /// Adds what the operator should do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.inner.hint = Some(hint.into());
        self
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    /// What sort of failure it is.
    pub fn kind(&self) -> Kind {
        self.inner.kind
    }

    /// What to do about it, where that is known.
    pub fn hint_text(&self) -> Option<&str> {
        self.inner.hint.as_deref()
    }

    /// Whether trying again later, unchanged, can help.
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind(), Kind::Unavailable | Kind::Full | Kind::Busy)
    }
}

/// The whole chain in one line, the hint last: what an operator sees.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.doing)?;
        let mut cause = self.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            // Our own errors print their chain themselves.
            cause = if error.is::<Error>() { None } else { error.source() };
        }
        match &self.inner.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// Turns any error into Headwater's, saying what was being done.
pub trait ResultExt<T> {
    /// Wraps the error with its kind and with what was being done.
    fn doing(self, kind: Kind, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: StdError + Send + Sync + 'static> ResultExt<T> for std::result::Result<T, E> {
    fn doing(self, kind: Kind, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::new(kind, doing()).because(source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_the_whole_chain_and_the_hint_once() {
        let io = std::io::Error::other("connection reset");
        let inner = Error::new(Kind::Unavailable, "reading the slot").because(io);
        let outer = Error::new(Kind::Unavailable, "source orders").because(inner).hint("start it");
        assert_eq!(outer.to_string(), "source orders: reading the slot: connection reset\n  hint: start it");
    }
}
