//! Shapes the rows of an outbox: each is an event already.

use std::sync::Arc;

use bytes::Bytes;
use headwater_core::ports::HoldsBack;
use headwater_core::{Change, EventId, Header, Micros, Result, Row, Table};
use headwater_wire::format::{Headers, OutboxEncoder, OutboxReader, OutboxRow, OutboxView};

use super::Trouble;
use super::output::{Head, Output, Parts, To};
use super::routes::{Named, OutboxTable, Routes, version_header};
use super::shaper::trouble_id;
use crate::config::StreamConfig;

/// How the rows of one shape of an outbox table become events.
pub struct OutboxPlan {
    template: String,
    held_as: Arc<str>,
    reader: OutboxReader,
    /// Encoders by stream, each with the version of the stream's contract.
    encoders: Vec<(Arc<str>, Box<dyn OutboxEncoder>, Header)>,
    /// The event type of the row before: most often also of the next.
    kind: Arc<str>,
}

impl OutboxTable {
    /// The name under which rows are parked that do not say which stream they are for.
    pub fn held_as(&self) -> String {
        self.table.to_string()
    }
}

impl OutboxPlan {
    /// Compiles it. An error of kind `Contract` when the table lacks a column.
    pub fn new(outbox: &OutboxTable, table: &Table) -> Result<Self> {
        Ok(Self {
            template: outbox.stream.clone(),
            held_as: outbox.held_as().into(),
            reader: outbox.columns.reader(table)?,
            encoders: Vec::new(),
            kind: "".into(),
        })
    }

    /// Writes the event of a row.
    pub fn shape(
        &mut self,
        change: &Change,
        at: u32,
        captured_at: Micros,
        routes: &Routes,
        named: &mut Named,
        out: &mut Output,
    ) {
        let Some(row) = &change.after else { return };
        let trouble = |stream: Arc<str>, id, holds, reason| {
            let outbox = Some(Arc::clone(&self.held_as));
            Trouble { change: at, stream, id, holds, outbox, reason }
        };
        let row = match self.reader.read(row) {
            Ok(row) => row,
            Err(error) => {
                let (stream, holds) = self.behind(row);
                let id = trouble_id(change, &stream, &holds);
                return out.shaped.troubles.push(trouble(stream, id, holds, error.to_string()));
            }
        };
        let id = event_id(change, &row);
        let key = || order_key(row.aggregate_id.as_deref());
        let name = self.stream(&row.aggregate_type);
        let (stream, config) = match named.get(&name, routes, &mut out.shaped.new_streams) {
            Ok(found) => found,
            Err(reason) => return out.shaped.troubles.push(trouble(name.into(), id, key(), reason)),
        };
        let from = out.begin();
        let view = OutboxView {
            id,
            stream: &stream,
            row: &row,
            schema: &change.table.schema,
            table: &change.table.name,
            transaction: &change.transaction,
            position: change.position,
            captured_at,
        };
        let (encoder, version) = encoder(&mut self.encoders, &stream, &config);
        match write(encoder, &view, out) {
            Ok((parts, mut headers)) => {
                headers.push(row.version.map_or_else(|| version.clone(), version_header));
                if *self.kind != *row.kind {
                    self.kind = Arc::from(&*row.kind);
                }
                let (time, position) = (change.transaction.committed_at, change.position);
                let (kind, outbox) = (Arc::clone(&self.kind), Some(Arc::clone(&self.held_as)));
                out.push(
                    Head { change: at, outbox, id, stream, kind, headers, time, position },
                    parts,
                    To::Key(config.partitions),
                );
            }
            Err(error) => {
                out.buffer.truncate(from);
                out.shaped.troubles.push(trouble(stream, id, key(), error.to_string()));
            }
        }
    }
}

impl OutboxPlan {
    fn stream(&self, aggregate_type: &str) -> String {
        self.template.replace("{aggregatetype}", aggregate_type)
    }

    /// What must wait behind a row that cannot be read: its key; where that is what cannot be read, its
    /// stream; where it does not even say which stream it is for, the outbox.
    fn behind(&self, row: &Row) -> (Arc<str>, HoldsBack) {
        let Ok(aggregate_type) = self.reader.aggregate_type(row) else {
            return (Arc::clone(&self.held_as), HoldsBack::Stream);
        };
        let holds = self.reader.aggregate_id(row).map(|id| order_key(id.as_deref()));
        (self.stream(&aggregate_type).into(), holds.unwrap_or(HoldsBack::Stream))
    }
}

/// What waits behind a row's event.
fn order_key(aggregate_id: Option<&str>) -> HoldsBack {
    HoldsBack::key(aggregate_id.map(|id| Bytes::copy_from_slice(id.as_bytes())))
}

/// The encoder of a stream, and the version of the stream's contract.
fn encoder<'a>(
    encoders: &'a mut Vec<(Arc<str>, Box<dyn OutboxEncoder>, Header)>,
    stream: &Arc<str>,
    config: &StreamConfig,
) -> (&'a mut dyn OutboxEncoder, &'a Header) {
    let at = encoders.iter().position(|(known, ..)| Arc::ptr_eq(known, stream)).unwrap_or_else(|| {
        let encoder = config.format.outbox_encoder(config.version);
        encoders.push((Arc::clone(stream), encoder, version_header(config.version)));
        encoders.len() - 1
    });
    let (_, encoder, version) = &mut encoders[at];
    (&mut **encoder, version)
}

fn write(
    encoder: &mut dyn OutboxEncoder,
    view: &OutboxView<'_>,
    out: &mut Output,
) -> Result<(Parts, Headers)> {
    let buffer = &mut out.buffer;
    let start = buffer.len();
    let mut parts = Parts::default();
    if view.row.aggregate_id.is_some() {
        encoder.key(view.row, buffer)?;
        parts.key = Some(start..buffer.len());
        // Parking and partition go by the id itself, whatever the format makes of the key.
        let id = buffer.len();
        buffer.extend_from_slice(view.row.aggregate_id.as_deref().unwrap_or_default().as_bytes());
        parts.order_key = Some(id..buffer.len());
    }
    let start = buffer.len();
    if encoder.payload(view, buffer)? {
        parts.payload = Some(start..buffer.len());
    }
    let mut headers = Headers::new();
    encoder.headers(view, &mut headers)?;
    Ok((parts, headers))
}

/// The row's own id where it is a UUID, otherwise one derived from its text.
fn event_id(change: &Change, row: &OutboxRow<'_>) -> EventId {
    row.id.parse().unwrap_or_else(|()| {
        let system = change.transaction.origin.system_id.as_bytes();
        let table = change.table.name.as_bytes();
        EventId::derive(change.transaction.committed_at, &[system, b"outbox", table, row.id.as_bytes()])
    })
}
