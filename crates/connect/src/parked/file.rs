//! `parked.db`: how it is made, and brought up from an earlier version.

use std::path::Path;

use headwater_core::{Error, Kind, Result};
use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::store::{self, Access, SqlExt};

/// The version of `schema.sql`, in the file's `user_version`; that of version 1 is 0.
const VERSION: u32 = 2;

/// Opens the file to write, making it if there is none.
pub fn open(path: &Path) -> Result<Connection> {
    let doing = || format!("opening {}", path.display());
    let connection = store::open(path, Access::Create)?;
    let set = || -> rusqlite::Result<()> {
        store::write_ahead(&connection)?;
        connection.pragma_update(None, "synchronous", "FULL")
    };
    set().sql(&doing())?;
    match upgrade(&connection).sql(&doing())? {
        VERSION => Ok(connection),
        version => Err(Error::new(Kind::Config, doing())
            .because(format!("it is of version {version}, this headwater knows up to {VERSION}"))
            .hint("a newer headwater wrote it: run that one")),
    }
}

/// The version of the file, after it was brought to [`VERSION`] if it was of an earlier one.
fn upgrade(connection: &Connection) -> rusqlite::Result<u32> {
    let version = |of: &Connection| of.pragma_query_value(None, "user_version", |row| row.get(0));
    if version(connection)? >= VERSION {
        return version(connection);
    }
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    // Another process may have been first.
    if version(&transaction)? < VERSION {
        let old = transaction.table_exists(None, "parked")?;
        if old {
            transaction.execute_batch(
                "DROP TRIGGER parked_added; DROP TRIGGER parked_removed; DROP INDEX parked_by_key;
                 ALTER TABLE parked RENAME TO parked_1;",
            )?;
        }
        transaction.execute_batch(include_str!("schema.sql"))?;
        if old {
            transaction.execute_batch(include_str!("from_1.sql"))?;
        }
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()?;
    version(connection)
}
