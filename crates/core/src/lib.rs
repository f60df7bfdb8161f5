//! Headwater's words as types, and its ports as traits.
//!
//! A source reads [`Change`]s, shaping turns them into [`Event`]s, a [`ports::Bus`] holds them in
//! streams. This crate does no I/O and knows no async runtime; everything else in Headwater meets here.

mod change;
mod checkpoint;
mod error;
mod event;
mod partition;
pub mod ports;
mod position;
mod row;
mod stream;
mod table;

pub use change::{Batch, Change, Op, Origin, Transaction};
pub use checkpoint::Checkpoint;
pub use error::{Error, Kind, Result, ResultExt};
pub use event::{Event, EventId, Header, Record};
pub use partition::{murmur2, partition_of};
pub use position::{ParsePositionError, Position};
pub use row::{Cell, CellKind, Row, RowBuilder, Value};
pub use stream::{Retention, StreamSpec, check_stream_name};
pub use table::{Column, ColumnType, Field, Identity, Table};

/// Microseconds since 1970-01-01T00:00:00Z: the one clock unit inside Headwater.
pub type Micros = i64;
