//! Headwater's own JSON.

use std::sync::Arc;

use headwater_core::{Error, Kind, Result, Row, Table};

use super::{Contract, Encoder, EventView, Headers, OutboxEncoder, OutboxRow, OutboxView};

/// Writes the `headwater` format.
pub(super) struct HeadwaterEncoder {}

impl HeadwaterEncoder {
    pub(super) fn new(contract: &Contract, table: &Arc<Table>) -> Result<Self> {
        for (column, _) in &contract.columns {
            contract.locate(table, column)?;
            contract.exposed(column);
        }
        Ok(Self {})
    }
}

impl Encoder for HeadwaterEncoder {
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

/// Writes outbox events in the `headwater` format.
pub(super) struct HeadwaterOutbox {}

impl HeadwaterOutbox {
    pub(super) fn new(_version: u32) -> Self {
        Self {}
    }
}

impl OutboxEncoder for HeadwaterOutbox {
    fn key(&mut self, _: &OutboxRow<'_>, _: &mut Vec<u8>) -> Result<()> {
        Err(Error::new(Kind::Internal, "not yet"))
    }

    fn payload(&mut self, _: &OutboxView<'_>, _: &mut Vec<u8>) -> Result<bool> {
        Err(Error::new(Kind::Internal, "not yet"))
    }

    fn headers(&mut self, _: &OutboxView<'_>, _: &mut Headers) -> Result<()> {
        Ok(())
    }
}
