//! The outbox in a service's own database: its tables, writing to it, and what relays need of it.

mod behind;
mod horizon;
mod layout;
mod lease;
mod settle;
mod shelf;
mod store;
mod writer;

use std::sync::Arc;

use headwater_core::{Error, Kind, Table};

pub use behind::Keep;
pub(super) use behind::{Behind, Settling};
pub use layout::{install, removal_script, remove, script};
pub use shelf::PostgresOutboxShelf;
pub use store::PostgresOutboxStore;
pub use writer::PostgresOutbox;

use super::client::quote_ident;

/// The names of an outbox's tables, quoted.
#[derive(Debug, Clone)]
pub(super) struct Names {
    schema: String,
    name: String,
}

impl Names {
    /// Of `schema.name`, or of a name in `public`.
    fn new(table: &str) -> Self {
        let (schema, name) = table.split_once('.').unwrap_or(("public", table));
        Self { schema: schema.to_owned(), name: name.to_owned() }
    }

    /// The outbox itself.
    fn outbox(&self) -> String {
        self.of("")
    }

    /// Who works which lane.
    fn lease(&self) -> String {
        self.of("_lease")
    }

    /// Who is alive.
    fn relay(&self) -> String {
        self.of("_relay")
    }

    /// The name of an index, or of something else that goes by the table's name, unquoted.
    fn part(&self, part: &str) -> String {
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
fn failed(error: sqlx::Error, doing: impl Into<String>, names: &Names) -> Error {
    let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
    let (kind, hint) = match &*code {
        "42P01" | "3F000" | "42883" => (Kind::Refused, format!("make it: headwater init URL --outbox {}.{}", names.schema, names.name)),
        "42703" => (Kind::Refused, "this table was not made by `headwater init`: a relay needs the columns that it makes. Choose another name, \
             or read the table from the log".to_owned()),
        "42501" => (Kind::Refused, format!(
            "as the owner: GRANT SELECT, INSERT, UPDATE, DELETE ON {}, {}, {} TO the user", names.outbox(), names.lease(), names.relay())),
        // Serialisation, deadlocks, a server that starts or stops, full disks, too many connections.
        code if code.is_empty() || matches!(&code[..2], "40" | "53" | "57" | "08" | "55") => (Kind::Unavailable, String::new()),
        _ => (Kind::Refused, String::new()),
    };
    let kind = if matches!(error, sqlx::Error::Configuration(_)) { Kind::Config } else { kind };
    let error = Error::new(kind, doing).because(error);
    if hint.is_empty() { error } else { error.hint(hint) }
}
