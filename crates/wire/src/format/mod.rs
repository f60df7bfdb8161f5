//! How events are written as bytes.
//!
//! A [`Format`] is compiled with a stream's [`Contract`] and a table into an [`Encoder`], once for each
//! version of the table. Encoders write straight into the output; no value is ever built in between.
//! What each format looks like is shown in docs/formats.md, what each type becomes in docs/types.md.

mod bytea;
mod columns;
mod contract;
mod debezium;
mod encoder;
mod headwater;
mod json;
mod key;
mod malformed;
mod options;
mod outbox;
mod text;
mod time;

pub use contract::Contract;
pub use debezium::{
    BinaryMode, DebeziumOptions, DecimalMode, HstoreMode, IntervalMode, PlacedField, Placement, TimeMode,
};
pub use encoder::{Encoder, EventView, Headers, Moved, OutboxEncoder, OutboxView};
pub use key::KeyWriter;
pub use options::Format;
pub use outbox::{OutboxColumns, OutboxReader, OutboxRow, Payload};
