//! How long a statement of a handler may take on the server, and how long it waits for the next one.

use std::time::Duration;

/// The variables of a session that bound it: all servers', MariaDB's, MySQL's; and how many of its unit a second has.
/// Neither server ends a write that takes long by itself: MySQL does so to a SELECT only.
const VARIABLES: [(&str, Flavor, u64); 5] = [
    ("innodb_lock_wait_timeout", Flavor::All, 1),
    ("lock_wait_timeout", Flavor::All, 1),
    ("wait_timeout", Flavor::All, 1),
    ("max_statement_time", Flavor::MariaDb, 1),
    ("max_execution_time", Flavor::MySql, 1_000),
];

/// Which servers know it. Each skips what is in the other's kind of comment.
#[derive(Debug, Clone, Copy)]
enum Flavor {
    All,
    MariaDb,
    MySql,
}

impl Flavor {
    fn only(self, sql: &str) -> String {
        match self {
            Self::All => sql.to_owned(),
            Self::MariaDb => format!("/*M!100600 {sql} */"),
            Self::MySql => format!("/*!80000 {sql} */"),
        }
    }
}

/// A bound. The session is the service's: it gets back what it had, by variables of its own, when a transaction ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    seconds: u64,
}

impl Bound {
    /// In whole seconds, which all can be set to, and at most a year.
    pub(super) fn of(bound: Duration) -> Self {
        Self { seconds: bound.as_millis().div_ceil(1_000).clamp(1, 31_536_000) as u64 }
    }

    /// What is shorter already stays.
    pub(super) fn set(self) -> String {
        each(|name, unit| {
            let (most, was) = (self.seconds * unit, format!("COALESCE(@headwater_{name}, @@SESSION.{name})"));
            let was = format!("CAST({was} AS UNSIGNED)");
            format!("@headwater_{name} = {was}, SESSION {name} = IF({was} = 0, {most}, LEAST({was}, {most}))")
        })
    }

    /// All is as it was before.
    pub(super) fn reset(self) -> String {
        each(|name, _| {
            let was = format!("CAST(@headwater_{name} AS UNSIGNED)");
            format!("SESSION {name} = {was}, @headwater_{name} = NULL")
        })
    }
}

fn each(said: impl Fn(&str, u64) -> String) -> String {
    let each = VARIABLES.iter().enumerate().map(|(place, (name, flavor, unit))| {
        let comma = if place == 0 { "" } else { ", " };
        flavor.only(&format!("{comma}{}", said(name, *unit)))
    });
    format!("SET {}", each.collect::<Vec<_>>().concat())
}
