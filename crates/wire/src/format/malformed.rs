//! What is wrong with a value, before it is known whose value it is.

use headwater_core::{Error, Kind};

/// A value's bytes are not what its type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Malformed {
    /// Text that is not UTF-8.
    Utf8,
    /// Something else; says what it is not, as in "it is not a number".
    Not(&'static str),
    /// The value is well formed, but the format has no way to write it; says what to do.
    Inexpressible(&'static str),
}

/// A result whose error does not know yet which column it is about.
pub(super) type Result<T, E = Malformed> = std::result::Result<T, E>;

impl Malformed {
    /// The error, once it is known that it is about `column` of `table`.
    #[cold]
    pub(super) fn of(self, stream: &str, table: &str, column: &str) -> Error {
        let whose = format!("stream {stream}: column \"{column}\" of {table}");
        let error = |what: &str| Error::new(Kind::Decode, format!("{whose} {what}"));
        match self {
            Self::Utf8 => error("holds text that is not UTF-8")
                .hint("mend the value, or take the column out of the stream's contract"),
            Self::Not(what) => error(&format!("holds a value that is not {what}")),
            Self::Inexpressible(hint) => error("holds a value that its format cannot express").hint(hint),
        }
    }
}
