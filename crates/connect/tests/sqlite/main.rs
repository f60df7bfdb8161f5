//! What is particular to capture from SQLite; what every source does is in `source_sqlite.rs`.

#![allow(clippy::unwrap_used, clippy::panic)]

mod altered;
mod chinook;
mod holes;
mod init;
mod outbox;
mod tools;
mod values;
