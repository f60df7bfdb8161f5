//! Outbox events in the `headwater` format.

use headwater_core::Result;

use super::super::outbox::Payload;
use super::super::{Headers, OutboxEncoder, OutboxRow, OutboxView, json, time};
use super::source::Source;

/// Writes outbox events in the `headwater` format.
pub(in super::super) struct HeadwaterOutbox {
    version: u32,
    /// The table that the events of late came from, and its `source`.
    source: Option<(String, String, Source)>,
}

impl HeadwaterOutbox {
    pub(in super::super) fn new(version: u32) -> Self {
        Self { version, source: None }
    }

    fn source(&mut self, schema: &str, table: &str) -> &mut Source {
        let same = self.source.as_ref().is_some_and(|(s, t, _)| s == schema && t == table);
        if !same {
            self.source = None;
        }
        let make = || (schema.to_owned(), table.to_owned(), Source::new(schema, table));
        &mut self.source.get_or_insert_with(make).2
    }
}

impl OutboxEncoder for HeadwaterOutbox {
    fn key(&mut self, row: &OutboxRow<'_>, out: &mut Vec<u8>) -> Result<bool> {
        Ok(row.write_key(out))
    }

    fn payload(&mut self, event: &OutboxView<'_>, out: &mut Vec<u8>) -> Result<bool> {
        let row = event.row;
        out.extend_from_slice(b"{\"id\":\"");
        out.extend_from_slice(&event.id.to_text());
        out.extend_from_slice(b"\",\"stream\":");
        json::str(out, event.stream);
        out.extend_from_slice(b",\"type\":");
        json::str(out, &row.kind);
        out.extend_from_slice(b",\"version\":");
        json::integer(out, i64::from(row.version.unwrap_or(self.version)));
        out.extend_from_slice(b",\"key\":");
        match &row.aggregate_id {
            Some(id) => json::str(out, id),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"payload\":");
        match &row.payload {
            None => out.extend_from_slice(b"null"),
            Some(Payload::Json(text)) => out.extend_from_slice(text.as_bytes()),
            Some(Payload::Text(text)) => json::str(out, text),
            Some(Payload::Bytes(bytes)) => {
                json::base64(out, bytes);
                out.extend_from_slice(b",\"payload_encoding\":\"base64\"");
            }
        }
        write_headers(out, &row.headers);
        if let Some(timestamp) = row.timestamp {
            out.extend_from_slice(b",\"occurred_at\":\"");
            time::write_instant(out, timestamp);
            out.push(b'"');
        }
        self.source(event.schema, event.table).write(out, event.transaction, &event.position);
        out.extend_from_slice(b",\"captured_at\":\"");
        time::write_instant(out, event.captured_at);
        out.extend_from_slice(b"\"}");
        Ok(true)
    }

    fn headers(&mut self, event: &OutboxView<'_>, headers: &mut Headers) -> Result<()> {
        event.row.add_headers(headers);
        Ok(())
    }
}

fn write_headers(out: &mut Vec<u8>, headers: &[(String, Option<String>)]) {
    out.extend_from_slice(b",\"headers\":");
    let start = out.len();
    for (name, value) in headers {
        out.push(b',');
        json::str(out, name);
        out.push(b':');
        match value {
            Some(value) => json::str(out, value),
            None => out.extend_from_slice(b"null"),
        }
    }
    json::close_object(out, start);
}
