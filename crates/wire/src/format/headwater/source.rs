//! The `source` of an event.

use std::sync::Arc;

use headwater_core::{Position, Transaction};

use super::super::{json, time};

/// Writes `source`. What a transaction's events share is written once and kept.
pub(super) struct Source {
    /// `"schema":...,"table":...`, with a comma in front.
    table: Vec<u8>,
    transaction: Option<Arc<Transaction>>,
    /// Of that transaction: what stands before the position.
    before: Vec<u8>,
    /// And after it.
    after: Vec<u8>,
}

impl Source {
    pub(super) fn new(schema: &str, table: &str) -> Self {
        let mut text = b",\"schema\":".to_vec();
        json::str(&mut text, schema);
        text.extend_from_slice(b",\"table\":");
        json::str(&mut text, table);
        Self { table: text, transaction: None, before: Vec::new(), after: Vec::new() }
    }

    /// Appends `,"source":{...}`.
    pub(super) fn write(&mut self, out: &mut Vec<u8>, transaction: &Arc<Transaction>, position: &Position) {
        // The kept `Arc` holds the allocation, so that its address cannot become another transaction's.
        if !self.transaction.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, transaction)) {
            self.prepare(transaction);
        }
        out.extend_from_slice(&self.before);
        out.extend_from_slice(itoa::Buffer::new().format(position.epoch()).as_bytes());
        out.push(b'-');
        json::hex(out, position.bytes());
        out.extend_from_slice(&self.after);
    }

    fn prepare(&mut self, transaction: &Arc<Transaction>) {
        let origin = &transaction.origin;
        let before = &mut self.before;
        before.clear();
        before.extend_from_slice(b",\"source\":{\"connector\":");
        json::str(before, &origin.connector);
        before.extend_from_slice(b",\"name\":");
        json::str(before, &origin.source);
        before.extend_from_slice(b",\"database\":");
        json::str(before, &origin.database);
        before.extend_from_slice(&self.table);
        before.extend_from_slice(b",\"transaction\":");
        json::str(before, &transaction.id);
        before.extend_from_slice(b",\"position\":\"");
        self.after.clear();
        self.after.extend_from_slice(b"\",\"committed_at\":\"");
        time::write_instant(&mut self.after, transaction.committed_at);
        self.after.extend_from_slice(b"\"}");
        self.transaction = Some(Arc::clone(transaction));
    }
}
