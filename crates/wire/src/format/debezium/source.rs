//! The `source` of an event, as Debezium's PostgreSQL connector has it.

use std::sync::Arc;

use headwater_core::{Op, Position, Transaction};

use super::super::json;

/// Writes `source`. What a transaction's events share is written once and kept.
pub(super) struct Source {
    name: Option<String>,
    schema: String,
    table: String,
    transaction: Option<Arc<Transaction>>,
    /// Of that transaction: up to `snapshot`, from there to `sequence`, from there to `lsn`.
    parts: [Vec<u8>; 3],
}

impl Source {
    pub(super) fn new(name: Option<String>, schema: &str, table: &str) -> Self {
        let (schema, table) = (schema.to_owned(), table.to_owned());
        Self { name, schema, table, transaction: None, parts: Default::default() }
    }

    /// Appends `,"source":{...}`.
    pub(super) fn write(
        &mut self,
        out: &mut Vec<u8>,
        op: Op,
        transaction: &Arc<Transaction>,
        position: &Position,
    ) {
        // The kept `Arc` holds the allocation, so that its address cannot become another transaction's.
        if !self.transaction.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, transaction)) {
            self.prepare(transaction);
        }
        let [to_snapshot, to_sequence, to_lsn] = &self.parts;
        let snapshot = op == Op::Read;
        // Both connectors put the commit's place first; PostgreSQL's second is the row's own.
        let [commit, row, _] = position.numbers();
        let lsn = if snapshot || row == 0 { commit } else { row };
        let mut buffer = itoa::Buffer::new();
        out.extend_from_slice(to_snapshot);
        out.extend_from_slice(if snapshot { b"true" } else { b"false" });
        out.extend_from_slice(to_sequence);
        if snapshot {
            out.extend_from_slice(b"[null,\\\"");
        } else {
            out.extend_from_slice(b"[\\\"");
            out.extend_from_slice(buffer.format(commit).as_bytes());
            out.extend_from_slice(b"\\\",\\\"");
        }
        let lsn = buffer.format(lsn).as_bytes();
        out.extend_from_slice(lsn);
        out.extend_from_slice(b"\\\"]");
        out.extend_from_slice(to_lsn);
        out.extend_from_slice(lsn);
        out.extend_from_slice(b",\"xmin\":null}");
    }

    fn prepare(&mut self, transaction: &Arc<Transaction>) {
        let origin = &transaction.origin;
        let connector = if origin.connector == "postgres" { "postgresql" } else { origin.connector.as_str() };
        let micros = transaction.committed_at;
        let [to_snapshot, to_sequence, to_lsn] = &mut self.parts;

        to_snapshot.clear();
        to_snapshot.extend_from_slice(
            concat!(",\"source\":{\"version\":\"", env!("CARGO_PKG_VERSION"), "\",\"connector\":").as_bytes(),
        );
        json::str(to_snapshot, connector);
        to_snapshot.extend_from_slice(b",\"name\":");
        json::str(to_snapshot, self.name.as_ref().unwrap_or(&origin.source));
        to_snapshot.extend_from_slice(b",\"ts_ms\":");
        json::integer(to_snapshot, micros.div_euclid(1000));
        to_snapshot.extend_from_slice(b",\"snapshot\":\"");

        to_sequence.clear();
        to_sequence.extend_from_slice(b"\",\"db\":");
        json::str(to_sequence, &origin.database);
        to_sequence.extend_from_slice(b",\"sequence\":\"");

        to_lsn.clear();
        to_lsn.extend_from_slice(b"\",\"ts_us\":");
        json::integer(to_lsn, micros);
        to_lsn.extend_from_slice(b",\"ts_ns\":");
        json::integer(to_lsn, micros.saturating_mul(1000));
        to_lsn.extend_from_slice(b",\"schema\":");
        json::str(to_lsn, &self.schema);
        to_lsn.extend_from_slice(b",\"table\":");
        json::str(to_lsn, &self.table);
        to_lsn.extend_from_slice(b",\"txId\":");
        // A snapshot's name is no number.
        match transaction.id.parse() {
            Ok(id) => json::integer(to_lsn, id),
            Err(_) => to_lsn.extend_from_slice(b"null"),
        }
        to_lsn.extend_from_slice(b",\"lsn\":");
        self.transaction = Some(Arc::clone(transaction));
    }
}
