//! The outbox in a service's own database: its tables, writing to it, and what relays need of it.

mod behind;
mod check;
mod horizon;
mod layout;
mod lease;
mod sessions;
mod settle;
mod shelf;
mod store;
mod wake;
mod writer;

use std::sync::Arc;

use headwater_core::{Error, Table};

pub use crate::outbox::Keep;
pub(super) use behind::{Behind, Settling};
pub(super) use check::check_log;
pub(super) use layout::indexes;
pub use layout::{install, removal_script, remove, script};
pub use shelf::PostgresOutboxShelf;
pub use store::PostgresOutboxStore;
pub use wake::PostgresWaker;
pub use writer::PostgresOutbox;

use super::client::quote_ident;
use crate::sqlx_errors::wrapped;

/// The names of an outbox's tables, quoted.
#[derive(Debug, Clone)]
pub(super) struct Names {
    schema: String,
    name: String,
}

impl Names {
    /// Of `schema.name`, or of a name in `public`.
    pub(super) fn new(table: &str) -> Self {
        let (schema, name) = table.split_once('.').unwrap_or(("public", table));
        Self { schema: schema.to_owned(), name: name.to_owned() }
    }

    /// The outbox itself.
    pub(super) fn outbox(&self) -> String {
        self.of("")
    }

    /// Who works which lane.
    pub(super) fn lease(&self) -> String {
        self.of("_lease")
    }

    /// Who is alive.
    fn relay(&self) -> String {
        self.of("_relay")
    }

    /// The name of an index, unquoted.
    fn index(&self, part: &str) -> String {
        format!("{}_{part}", self.name)
    }

    /// A function of the outbox's schema.
    fn function(&self, name: &str) -> String {
        format!("{}.{}", quote_ident(&self.schema), quote_ident(name))
    }

    fn of(&self, suffix: &str) -> String {
        format!("{}.{}", quote_ident(&self.schema), quote_ident(&format!("{}{suffix}", self.name)))
    }

    fn table(&self) -> Arc<Table> {
        crate::outbox::table(&self.schema, &self.name)
    }
}

/// An error of sqlx, with its kind and with what an operator can do.
fn failed(error: sqlx::Error, doing: &str, names: &Names) -> Error {
    let hint = match error.as_database_error().and_then(|error| error.code()).as_deref() {
        Some("42P01" | "3F000" | "42883") => {
            format!("make it: headwater init URL --outbox {}.{}", names.schema, names.name)
        }
        Some("42703") => {
            "this table was not made by `headwater init`: a relay needs the columns that it makes. Choose \
             another name, or read the table from the log"
                .to_owned()
        }
        Some("42501") => format!(
            "as the owner: GRANT SELECT, INSERT, UPDATE, DELETE ON {}, {}, {} TO the user",
            names.outbox(),
            names.lease(),
            names.relay()
        ),
        _ => return wrapped(error, doing),
    };
    wrapped(error, doing).hint(hint)
}
