//! What Debezium's PostgreSQL connector (3.x) writes through Kafka Connect's JSON converter without schemas.

mod options;

use std::sync::Arc;

use headwater_core::{Error, Kind, Result, Row, Table};

use super::{Contract, Encoder, EventView, Headers, OutboxEncoder, OutboxRow, OutboxView};

pub use options::{BinaryMode, DebeziumOptions, DecimalMode, HstoreMode, IntervalMode, TimeMode};

/// Writes the `debezium` format.
pub(super) struct DebeziumEncoder {}

impl DebeziumEncoder {
    pub(super) fn new(_: &DebeziumOptions, contract: &Contract, table: &Arc<Table>) -> Result<Self> {
        for (column, _) in &contract.columns {
            contract.locate(table, column)?;
        }
        Ok(Self {})
    }
}

impl Encoder for DebeziumEncoder {
    fn key(&mut self, _: &Row, _: &mut Vec<u8>) -> Result<bool> {
        Err(Error::new(Kind::Internal, "not yet"))
    }

    fn payload(&mut self, _: &EventView<'_>, _: &mut Vec<u8>) -> Result<()> {
        Err(Error::new(Kind::Internal, "not yet"))
    }

    fn headers(&mut self, _: &EventView<'_>, _: &mut Headers) -> Result<()> {
        Ok(())
    }
}

/// Writes what Debezium's outbox event router writes.
pub(super) struct DebeziumOutbox {}

impl DebeziumOutbox {
    pub(super) fn new(_: &DebeziumOptions) -> Self {
        Self {}
    }
}

impl OutboxEncoder for DebeziumOutbox {
    fn key(&mut self, _: &OutboxRow<'_>, _: &mut Vec<u8>) -> Result<bool> {
        Err(Error::new(Kind::Internal, "not yet"))
    }

    fn payload(&mut self, _: &OutboxView<'_>, _: &mut Vec<u8>) -> Result<bool> {
        Err(Error::new(Kind::Internal, "not yet"))
    }

    fn headers(&mut self, _: &OutboxView<'_>, _: &mut Headers) -> Result<()> {
        Ok(())
    }
}
