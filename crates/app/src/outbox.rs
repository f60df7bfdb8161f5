//! Publishing in a service's own transaction.

use std::fmt::Display;
use std::time::{SystemTime, UNIX_EPOCH};

use headwater_core::ports::{NewEvent, OutboxWriter};
use headwater_core::{Error, EventId, Kind, Result, check_stream_name};
use serde::Serialize;

use crate::trace;

/// The header of the trace context, by the W3C's recommendation.
const TRACEPARENT: &str = "traceparent";

/// Publishes events by writing them in a transaction of the service's database: what commits with it is
/// published, and nothing else.
///
/// ```no_run
/// use headwater::connect::postgres::outbox::PostgresOutbox;
/// use headwater::{Event, Outbox};
///
/// # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// let outbox = Outbox::new(PostgresOutbox::new("public.outbox"));
/// let mut tx = pool.begin().await?;
/// sqlx::query("INSERT INTO orders VALUES (42, 'placed')").execute(&mut *tx).await?;
/// let event = Event::new("orders", "OrderPlaced").key(42).payload(&serde_json::json!({ "id": 42 }));
/// outbox.publish(&mut tx, event).await?;
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Outbox<W> {
    writer: W,
}

impl<W: OutboxWriter> Outbox<W> {
    /// An outbox that an adapter writes to.
    pub fn new(writer: W) -> Self {
        Self { writer }
    }

    /// Writes one event. Until the transaction ends it keeps the lock of the event's key, so that events of one
    /// key are published in the order of their commits.
    pub async fn publish(&self, transaction: &mut W::Transaction<'_>, event: Event) -> Result<()> {
        self.publish_all(transaction, [event]).await
    }

    /// Writes events, in order.
    pub async fn publish_all(
        &self,
        transaction: &mut W::Transaction<'_>,
        events: impl IntoIterator<Item = Event> + Send,
    ) -> Result<()> {
        let events: Vec<NewEvent> = events.into_iter().map(Event::finish).collect::<Result<_>>()?;
        self.writer.insert(transaction, &events).await
    }
}

/// An event to publish.
#[derive(Debug)]
pub struct Event {
    new: NewEvent,
    failed: Option<serde_json::Error>,
}

impl Event {
    /// An event of `kind` (`OrderPlaced`) for a stream, with an id of its own: a UUID version 7 of now.
    pub fn new(stream: impl Into<String>, kind: impl Into<String>) -> Self {
        let new = NewEvent {
            id: fresh_id(),
            stream: stream.into(),
            kind: kind.into(),
            key: None,
            payload: None,
            headers: Vec::new(),
            version: 1,
        };
        Self { new, failed: None }
    }

    /// Which entity it is about. Events of one key keep their order; those without one have none.
    #[must_use]
    pub fn key(mut self, key: impl Display) -> Self {
        self.new.key = Some(key.to_string());
        self
    }

    /// What it says, as JSON.
    #[must_use]
    pub fn payload<T: Serialize + ?Sized>(mut self, payload: &T) -> Self {
        match serde_json::to_string(payload) {
            Ok(text) => self.new.payload = Some(text),
            // Said when it is published.
            Err(error) => self.failed = Some(error),
        }
        self
    }

    /// A header; one of that name that was set before goes.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let name = name.into();
        self.new.headers.retain(|(known, _)| *known != name);
        self.new.headers.push((name, value.into()));
        self
    }

    /// The trace that it belongs to, as the W3C writes it: `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`.
    /// With the feature `opentelemetry` it is the current span's where it is not set.
    #[must_use]
    pub fn traceparent(self, traceparent: impl Into<String>) -> Self {
        self.header(TRACEPARENT, traceparent)
    }

    /// The version of the payload's schema; 1 where it is not set.
    #[must_use]
    pub fn version(mut self, version: u32) -> Self {
        self.new.version = version;
        self
    }

    /// An id that is known already, instead of a fresh one.
    #[must_use]
    pub fn id(mut self, id: EventId) -> Self {
        self.new.id = id;
        self
    }

    /// What is written.
    fn finish(mut self) -> Result<NewEvent> {
        check_stream_name(&self.new.stream)?;
        if i32::try_from(self.new.version).is_err() {
            let doing = format!("version {} of an event for {}", self.new.version, self.new.stream);
            return Err(Error::new(Kind::Config, doing).hint(format!("at most {}", i32::MAX)));
        }
        if let Some(error) = self.failed {
            let doing = format!("the payload of an event for {} as JSON", self.new.stream);
            return Err(Error::new(Kind::Config, doing).because(error));
        }
        if !self.new.headers.iter().any(|(name, _)| name == TRACEPARENT)
            && let Some(current) = trace::current()
        {
            self.new.headers.push((TRACEPARENT.to_owned(), current));
        }
        Ok(self.new)
    }
}

/// A UUID version 7 of now.
fn fresh_id() -> EventId {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = u64::try_from(since.as_millis()).unwrap_or(0);
    let mut bytes: [u8; 16] = rand::random();
    bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    bytes[6] = 0x70 | bytes[6] & 0x0f;
    bytes[8] = 0x80 | bytes[8] & 0x3f;
    EventId::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn an_event_is_what_its_builder_said() {
        let event = Event::new("orders", "OrderPlaced").key(42).payload(&[1, 2]).version(3);
        let event = event.header("a", "1").header("a", "2").traceparent("00-1").finish().unwrap();
        assert_eq!(
            (&*event.stream, &*event.kind, event.key.as_deref()),
            ("orders", "OrderPlaced", Some("42"))
        );
        assert_eq!((event.payload.as_deref(), event.version), (Some("[1,2]"), 3));
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(event.headers, [header("a", "2"), header("traceparent", "00-1")]);
        assert_eq!(event.id.to_string().as_bytes()[14], b'7');
        assert_ne!(Event::new("a", "b").new.id, Event::new("a", "b").new.id);
    }

    #[test]
    fn what_cannot_be_published_is_said() {
        assert_eq!(Event::new("or/ders", "x").finish().unwrap_err().kind(), Kind::Config);
        let refused = Event::new("orders", "x").version(3_000_000_000).finish().unwrap_err();
        assert!(refused.to_string().contains("version 3000000000"), "{refused}");
        let no_json = HashMap::from([((1, 2), 3)]);
        let refused = Event::new("orders", "x").payload(&no_json).finish().unwrap_err();
        assert!(refused.to_string().contains("payload of an event for orders"), "{refused}");
    }
}
