//! The outbox in a service's own SQLite database: its tables, writing to it, and what relays need of it.
//!
//! One transaction writes at a time, so sequences become visible in the order in which they are drawn: no key
//! needs a lock, and nothing commits late. There is one lane.

mod check;
mod held;
mod layout;
mod lease;
mod news;
mod pools;
mod settle;
mod shelf;
mod store;
mod writer;

use std::sync::Arc;

use headwater_core::{Error, Kind, Result, Table};

pub(super) use held::Held;
pub(super) use layout::{clean, exists, make, tables};
pub use layout::{install, removal_script, remove, script};
pub use shelf::SqliteOutboxShelf;
pub use store::SqliteOutboxStore;
pub use writer::SqliteOutbox;

use super::layout::ident;
use super::plan::bare;
pub use crate::outbox::Keep;
use crate::sqlx_errors::SqlxExt as _;

/// How the leases of sources begin that read an outbox by triggers.
const TRIGGERS: &str = "log:";

/// The names of an outbox's tables.
#[derive(Debug, Clone)]
pub(super) struct Names {
    name: String,
}

impl Names {
    /// Of `name` or `main.name`.
    fn new(table: &str) -> Self {
        Self { name: bare(table).to_owned() }
    }

    /// The outbox itself, quoted.
    fn outbox(&self) -> String {
        ident(&self.name)
    }

    /// Who works its lane, quoted.
    fn lease(&self) -> String {
        self.part("lease")
    }

    /// Who is alive, quoted.
    fn relay(&self) -> String {
        self.part("relay")
    }

    /// An index, or another table that goes by the outbox's name, quoted.
    fn part(&self, part: &str) -> String {
        ident(&format!("{}_{part}", self.name))
    }

    /// Takes away a trigger of capture.
    fn drop_trigger(&self, word: &str) -> String {
        format!("DROP TRIGGER IF EXISTS {}", ident(&format!("headwater_{word}_{}", self.name)))
    }

    fn table(&self) -> Arc<Table> {
        crate::outbox::table("main", &self.name)
    }
}

/// An error of sqlx, with its kind and with what an operator can do.
fn failed<T>(done: sqlx::Result<T>, doing: &str, names: &Names) -> Result<T> {
    let message = done.as_ref().err().map(sqlx::Error::to_string).unwrap_or_default();
    let hint = if message.contains("no such table") {
        format!("make it: headwater init sqlite://FILE --outbox {}", names.name)
    } else if message.contains("no such column") || message.contains("no such index") {
        "this table was not made by `headwater init`, or by another version of it: `headwater check` says what is \
         missing. Where nothing of it is Headwater's, choose another name, or leave out `relay`"
            .to_owned()
    } else {
        return done.sqlx(doing);
    };
    done.map_err(|error| Error::new(Kind::Refused, doing).because(error).hint(hint))
}
