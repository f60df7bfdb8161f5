//! The outbox in a service's own database: its tables, writing to it, and what relays need of it.
//!
//! - `layout`: the tables and the procedure; `writer`: events in a service's transaction.
//! - `store`: what relays need; `check`, `claim`, `horizon`, `lease`, `settle`: its statements; `shelf`: what a person may
//!   do.
//!
//! InnoDB has no partial indexes, and each index of the table costs every writer. So there is one beside the
//! primary key: two generated columns say in which queue a row stands (`Queue`) and where in it, and every
//! statement of a relay reads stretches of it.

mod check;
mod claim;
mod horizon;
mod layout;
mod lease;
mod settle;
mod shelf;
mod store;
mod writer;

use headwater_core::ports::{LANES, Lane};

use super::sql::quoted;

pub(super) use layout::WORK_KEY;
pub use layout::{install, removal_script, remove, script, to_mend};
pub use shelf::MySqlOutboxShelf;
pub use store::MySqlOutboxStore;
pub use writer::MySqlOutbox;

/// The most characters of a stream's name, and of a type.
const NAME: usize = 255;

/// The most characters of a key.
const KEY: usize = 1024;

/// How many locks there are for keys.
const SLOTS: u32 = 4096;

/// Where a row stands: the number in the column `queue`.
#[derive(Debug, Clone, Copy)]
enum Queue {
    New(Lane),
    Waiting(Lane),
    Retrying(Lane),
    Parked(Lane),
    Done,
}

impl Queue {
    const fn number(self) -> Lane {
        match self {
            Self::New(lane) => lane,
            Self::Waiting(lane) => LANES + lane,
            Self::Retrying(lane) => 2 * LANES + lane,
            Self::Parked(lane) => 3 * LANES + lane,
            Self::Done => 4 * LANES,
        }
    }

    /// What the column says; `None` of one that no relay is to read.
    const fn of(number: Lane) -> Option<Self> {
        let lane = number % LANES;
        match number / LANES {
            0 => Some(Self::New(lane)),
            2 => Some(Self::Retrying(lane)),
            _ => None,
        }
    }
}

/// The place of a stream and a key among what waits, a number: of both to the last byte, where a comparison of texts
/// would not see spaces at their end. `of` is the row's alias and a dot, or nothing.
fn place_of_key(of: &str) -> String {
    let text = format!("CONCAT(CHAR_LENGTH({of}`stream`), ' ', {of}`stream`, {of}`key`)");
    format!("CAST(CONV(LEFT(SHA2({text}, 256), 15), 16, 10) AS SIGNED)")
}

/// The place of a time in its queue.
fn place_of_time(time: &str) -> String {
    format!("TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {time})")
}

/// The place of now.
fn place_of_now() -> String {
    place_of_time("UTC_TIMESTAMP(6)")
}

/// The names of an outbox's tables, quoted.
#[derive(Debug, Clone)]
struct Names {
    schema: Option<String>,
    name: String,
}

impl Names {
    /// Of `schema.name`, or of a name in the connection's database.
    fn new(table: &str) -> Self {
        match table.split_once('.') {
            Some((schema, name)) => Self { schema: Some(schema.to_owned()), name: name.to_owned() },
            None => Self { schema: None, name: table.to_owned() },
        }
    }

    /// The outbox itself.
    fn outbox(&self) -> String {
        self.of(&self.name)
    }

    /// Who works which lane.
    fn lease(&self) -> String {
        self.of(&format!("{}_lease", self.name))
    }

    /// Who is alive.
    fn relay(&self) -> String {
        self.of(&format!("{}_relay", self.name))
    }

    /// The locks of keys.
    fn slot(&self) -> String {
        self.of(&format!("{}_slot", self.name))
    }

    /// The procedure that publishes.
    fn publish(&self) -> String {
        self.of(layout::PUBLISH)
    }

    fn of(&self, name: &str) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quoted(schema), quoted(name)),
            None => quoted(name),
        }
    }

    /// As an operator writes it.
    fn plain(&self) -> String {
        self.schema.iter().chain([&self.name]).map(String::as_str).collect::<Vec<_>>().join(".")
    }
}
