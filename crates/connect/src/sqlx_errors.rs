//! What the errors of a service's database mean, as sqlx hands them out.

use headwater_core::ports::ShelfState;
use headwater_core::{Error, Kind, Result};
use sqlx::Error as Sqlx;
use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

/// Turns sqlx's errors into Headwater's.
pub(crate) trait SqlxExt<T> {
    /// Wraps the error with the kind that it stands for, and with what was being done.
    fn sqlx(self, doing: &str) -> Result<T>;
}

impl<T> SqlxExt<T> for sqlx::Result<T> {
    fn sqlx(self, doing: &str) -> Result<T> {
        self.map_err(|error| wrapped(error, doing))
    }
}

/// The error with the kind that it stands for, and with what was being done.
pub(crate) fn wrapped(error: Sqlx, doing: &str) -> Error {
    let (kind, hint) = meaning(&error);
    let wrapped = match error {
        // What sqlx says around it says it twice, and of PostgreSQL a line of the server's own source.
        Sqlx::Database(error) if error.try_downcast_ref::<PgDatabaseError>().is_some() => {
            Error::new(kind, doing).because(error.message())
        }
        Sqlx::Database(error) => Error::new(kind, doing).because(error.into_error()),
        error => Error::new(kind, doing).because(error),
    };
    if hint.is_empty() { wrapped } else { wrapped.hint(hint) }
}

/// How an event that is set aside stands, by its word in a table.
pub(crate) fn shelf_state(word: &str) -> sqlx::Result<ShelfState> {
    ShelfState::of(word).ok_or_else(|| Sqlx::Decode(format!("there is no state {word}").into()))
}

const NO_TABLES: &str = "run `headwater init` with the URL of this database: it makes Headwater's tables";

/// What to do about a pooler that lends a session of PostgreSQL for one transaction only.
pub(crate) const POOLER: &str = "give Headwater sessions of its own (PgBouncer: pool_mode = session), or name PostgreSQL \
     itself in the url; a service needs PgBouncer 1.21 or newer, with max_prepared_statements";

fn meaning(error: &Sqlx) -> (Kind, &'static str) {
    match error {
        Sqlx::Database(error) => {
            if let Some(error) = error.try_downcast_ref::<PgDatabaseError>() {
                return postgres(error.code());
            }
            if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
                return mysql(error.number());
            }
            sqlite(error.as_ref())
        }
        Sqlx::PoolTimedOut => {
            (Kind::Unavailable, "every connection of the pool is busy, or the server is away")
        }
        Sqlx::Io(error) if is_mistrust(error) => {
            (Kind::Refused, "name in the URL whom to trust, or give the server a certificate that is trusted")
        }
        Sqlx::Configuration(_) => (Kind::Config, ""),
        Sqlx::ColumnDecode { .. } | Sqlx::Decode(_) | Sqlx::ColumnNotFound(_) => {
            (Kind::Decode, "the table was made by another version of Headwater, or changed by hand")
        }
        _ => (Kind::Unavailable, ""),
    }
}

/// Whether the server's certificate is not to be trusted.
fn is_mistrust(error: &std::io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    matches!(error, Some(rustls::Error::InvalidCertificate(_)))
}

/// By SQLSTATE.
fn postgres(code: &str) -> (Kind, &'static str) {
    match (code, code.get(..2).unwrap_or_default()) {
        ("42P01" | "3F000", _) => (Kind::Refused, NO_TABLES),
        ("53100", _) => (Kind::Full, "make room on the disk of the database"),
        // A statement that was prepared in another session.
        ("26000" | "42P05", _) => (Kind::Refused, POOLER),
        // A standby that was the primary a moment ago, a session that stood still in a transaction, or one that took
        // too long, a lock or statement timeout.
        ("25006" | "25P03" | "25P04" | "55P03" | "57014", _) => (Kind::Unavailable, ""),
        (_, "40") => (Kind::Busy, ""),
        (_, "08" | "53" | "57" | "58" | "XX") => (Kind::Unavailable, ""),
        _ => (Kind::Refused, ""),
    }
}

/// By the server's number.
fn mysql(number: u16) -> (Kind, &'static str) {
    match number {
        1049 | 1146 => (Kind::Refused, NO_TABLES),
        // The victim of a deadlock, a lock that was waited for too long.
        1205 | 1213 => (Kind::Busy, ""),
        1021 | 1114 => (Kind::Full, "make room on the disk of the database"),
        // Too many connections, a server that stops, a replica that was the primary a moment ago, killed.
        1040 | 1053 | 1203 | 1290 | 1317 | 1792 | 1836 | 1927 | 3169 => (Kind::Unavailable, ""),
        // A statement that took too long, a session that stood still.
        1969 | 3024 | 4031 => (Kind::Unavailable, ""),
        _ => (Kind::Refused, ""),
    }
}

fn sqlite(error: &dyn DatabaseError) -> (Kind, &'static str) {
    let code = error.code().and_then(|code| code.parse::<i32>().ok()).unwrap_or(0);
    match code & 0xff {
        1 if error.message().contains("no such table") => (Kind::Refused, NO_TABLES),
        5 | 6 => (Kind::Busy, "another program writes for long: give the pool a longer busy timeout"),
        8 => (Kind::Refused, "give the user who runs this the right to write to the database and its folder"),
        13 => (Kind::Full, "make room on the disk of the database"),
        10 | 14 => (Kind::Unavailable, ""),
        11 | 26 => (Kind::Refused, "the file is damaged: look at the disk, and restore it from a backup"),
        _ => (Kind::Refused, ""),
    }
}
