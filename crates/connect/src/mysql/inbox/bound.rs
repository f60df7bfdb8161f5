//! How long a statement of a handler may take on the server, and how long the server waits for the next one.

use std::time::Duration;

/// What bounds a session: which servers know it, and how many of its unit a second has. MySQL does not end a write
/// that takes long by itself, only a SELECT.
const VARIABLES: [(&str, Known, u64); 5] = [
    ("innodb_lock_wait_timeout", Known::Everywhere, 1),
    ("lock_wait_timeout", Known::Everywhere, 1),
    ("wait_timeout", Known::Everywhere, 1),
    ("max_statement_time", Known::ToMariaDb, 1),
    ("max_execution_time", Known::ToMySql, 1_000),
];

/// Which servers know a variable.
#[derive(Debug, Clone, Copy)]
enum Known {
    Everywhere,
    ToMariaDb,
    ToMySql,
}

impl Known {
    /// Each server skips what is in a comment for the other.
    fn only(self, sql: &str) -> String {
        match self {
            Self::Everywhere => sql.to_owned(),
            Self::ToMariaDb => format!("/*M!100600 {sql} */"),
            Self::ToMySql => format!("/*!80000 {sql} */"),
        }
    }

    /// A value that the server takes as one of the variable's type.
    fn cast(self, value: &str) -> String {
        let kind = if matches!(self, Self::ToMariaDb) { "DECIMAL(20, 6)" } else { "UNSIGNED" };
        format!("CAST({value} AS {kind})")
    }

    /// The smaller one; some say 0 for no bound, and others for no wait.
    fn least(self, was: &str, most: u64) -> String {
        match self {
            Self::Everywhere => format!("LEAST({was}, {most})"),
            Self::ToMariaDb | Self::ToMySql => format!("IF({was} = 0, {most}, LEAST({was}, {most}))"),
        }
    }
}

/// A bound. The session is the service's: when a transaction ends it gets back what it had, which is kept in variables
/// of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    seconds: u64,
}

impl Bound {
    /// In whole seconds, which all can be set to, and at most a year.
    pub(super) fn of(bound: Duration) -> Self {
        let seconds = bound.as_millis().div_ceil(1_000).clamp(1, 31_536_000);
        Self { seconds: u64::try_from(seconds).unwrap_or(1) }
    }

    /// What is shorter already stays.
    pub(super) fn set(self) -> String {
        each(|name, known, unit| {
            let was = known.cast(&format!("COALESCE(@headwater_{name}, @@SESSION.{name})"));
            // MySQL 9 says of the smaller of two numbers that it is a decimal, and takes none here.
            let least = known.cast(&known.least(&was, self.seconds * unit));
            format!("@headwater_{name} = {was}, SESSION {name} = {least}")
        })
    }

    /// All is as it was before. Said again it changes nothing.
    pub(super) fn reset(self) -> String {
        each(|name, known, _| {
            let was = known.cast(&format!("COALESCE(@headwater_{name}, @@SESSION.{name})"));
            format!("SESSION {name} = {was}, @headwater_{name} = NULL")
        })
    }
}

fn each(said: impl Fn(&str, Known, u64) -> String) -> String {
    let mut comma = "";
    let each = VARIABLES.map(|(name, known, unit)| {
        let said = format!("{comma}{}", said(name, known, unit));
        comma = ", ";
        known.only(&said)
    });
    format!("SET {}", each.concat())
}
