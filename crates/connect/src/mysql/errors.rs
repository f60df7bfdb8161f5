//! What a server's errors mean to an operator of an outbox.

use headwater_core::Error;
use sqlx::mysql::MySqlDatabaseError;

use super::outbox::WORK_KEY;
use crate::sqlx_errors::wrapped;

/// The numbers that say that a right is missing.
pub(super) const RIGHTS: [u16; 6] = [1044, 1045, 1142, 1143, 1227, 1370];

/// The server's number of an error, where it is the server's.
pub(super) fn number(error: &sqlx::Error) -> Option<u16> {
    let error = error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>()?;
    Some(error.number())
}

/// An error with its kind and with what an operator can do; `table` is the outbox.
pub(super) fn failed(error: sqlx::Error, doing: &str, table: &str) -> Error {
    let hint = match number(&error) {
        // No such database, table, procedure.
        Some(1049 | 1146 | 1305) => format!("make it: headwater init URL --outbox {table}"),
        Some(1054) => {
            "this table was not made by `headwater init`, or by an earlier version of it: `headwater check` says \
             what to do; where it is no outbox, choose another name"
                .to_owned()
        }
        // No such index: statements name the one that they go by.
        Some(1176) => format!(
            "make it again: SET SESSION lock_wait_timeout = 5; ALTER TABLE {table} ADD {WORK_KEY}"
        ),
        Some(number) if RIGHTS.contains(&number) => format!(
            "as an administrator: GRANT SELECT, INSERT, UPDATE, DELETE ON {table}, {table}_lease, {table}_relay and \
             {table}_slot TO the user"
        ),
        Some(1205 | 1213) => "run the transaction again: others held locks that it needs".to_owned(),
        Some(1153) => "the event is larger than the server's max_allowed_packet: raise it".to_owned(),
        Some(1665) => "set binlog_format to ROW or MIXED".to_owned(),
        Some(3819 | 4025) => "payload has to be JSON, headers a JSON object of strings".to_owned(),
        _ => return wrapped(error, doing),
    };
    wrapped(error, doing).hint(hint)
}
