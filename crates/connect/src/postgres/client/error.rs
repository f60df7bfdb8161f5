//! What the server says when it says no.

use std::fmt;

use fallible_iterator::FallibleIterator;
use headwater_core::{Error, Kind};
use postgres_protocol::message::backend::{ErrorFields, ErrorResponseBody};

/// What to do about bytes that are no character: the server does not send them.
const UNTRANSLATABLE: &str = "a text of the database holds bytes that are no character of its encoding: mend \
    its rows (docs/operations.md, \"Text that is no text\", has SQL that finds them); where the log holds them \
    too, drop the slot and have all read anew: headwater snapshot --source NAME";

/// What to do about a pooler that does not know what we ask for at the start, or lends sessions for a transaction.
pub(super) const POOLER: &str = "let the url name PostgreSQL itself, not a pooler such as PgBouncer, or let that give out sessions and ignore these parameters";

/// An ErrorResponse of the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PgError {
    /// The SQLSTATE, five characters.
    pub code: String,
    /// The primary message.
    pub message: String,
    /// More of it, where there is more.
    pub detail: Option<String>,
    /// What the server suggests.
    pub hint: Option<String>,
}

impl PgError {
    pub(super) fn from_body(body: &ErrorResponseBody) -> Self {
        Self::from_fields(body.fields())
    }

    fn from_fields(mut fields: ErrorFields<'_>) -> Self {
        let mut error = Self::default();
        while let Ok(Some(field)) = fields.next() {
            let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => error.code = text(),
                b'M' => error.message = text(),
                b'D' => error.detail = Some(text()),
                b'H' => error.hint = Some(text()),
                _ => {}
            }
        }
        error
    }

    /// The SQLSTATE of the server's answer that caused `error`, where one did.
    pub fn code_of(error: &Error) -> Option<&str> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(pg) = error.downcast_ref::<Self>() {
                return Some(&pg.code);
            }
            cause = error.source();
        }
        None
    }

    /// As Headwater's error.
    pub fn into_error(self, doing: impl Into<String>) -> Error {
        let untranslatable = self.code == "22P05";
        let error = Error::new(self.kind(), doing).because(self);
        if untranslatable { error.hint(UNTRANSLATABLE) } else { error }
    }

    /// As Headwater's error, where it answers what we connect with. A pooler refuses our settings with the
    /// code of a broken connection, but will not take them later either.
    pub(super) fn into_startup_error(self, doing: impl Into<String>) -> Error {
        if self.code == "08P01" && self.message.contains("startup parameter") {
            return Error::new(Kind::Refused, doing).because(self).hint(POOLER);
        }
        self.into_error(doing)
    }

    /// By SQLSTATE (PostgreSQL documentation, appendix A): what may pass by itself, and what will not.
    fn kind(&self) -> Kind {
        match self.code.get(..2).unwrap_or_default() {
            "53" if self.code == "53100" => Kind::Full,
            "08" | "40" | "53" | "57" | "58" => Kind::Unavailable,
            // An object in use; a lock that was not to be had in time.
            _ if matches!(self.code.as_str(), "55006" | "55P03") => Kind::Busy,
            // A limit on idle or long transactions ended the session.
            _ if matches!(self.code.as_str(), "25P03" | "25P04") => Kind::Unavailable,
            "XX" => Kind::Unavailable,
            _ => Kind::Refused,
        }
    }
}

impl fmt::Display for PgError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.code)?;
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        Ok(())
    }
}

impl std::error::Error for PgError {}
