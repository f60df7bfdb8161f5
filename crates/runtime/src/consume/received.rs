//! What a handler is given, and what it says.

use std::error::Error as StdError;
use std::time::Duration;

use headwater_core::{Error, EventId, Kind, Record, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

/// An event as a handler sees it.
#[derive(Debug, Clone)]
pub struct Received {
    /// The event and its place.
    pub record: Record,
    /// Which try this is; the first is 1.
    pub attempt: u32,
}

impl Received {
    /// The event's id.
    pub fn id(&self) -> EventId {
        self.record.event.id
    }

    /// What happened: the event's type.
    pub fn kind(&self) -> &str {
        &self.record.event.kind
    }

    /// Its key as text, where it has one that is text.
    pub fn key(&self) -> Option<&str> {
        std::str::from_utf8(self.record.event.key.as_deref()?).ok()
    }

    /// The payload, from JSON. An event whose payload is something else is parked, if a handler passes this
    /// error on; so is one without a payload (a tombstone).
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        let payload = self.record.event.payload.as_deref().unwrap_or_default();
        serde_json::from_slice(payload).map_err(|error| self.unreadable(error))
    }

    /// What the service said that published the event through its outbox, from JSON: the `payload` in the
    /// envelope of the format `headwater`, and where there is no envelope the payload as it is.
    pub fn body<T: DeserializeOwned>(&self) -> Result<T> {
        let payload = self.record.event.payload.as_deref().unwrap_or_default();
        let envelope = serde_json::from_slice::<Envelope<'_>>(payload).ok();
        match envelope.filter(|envelope| envelope.id.parse() == Ok(self.id())) {
            Some(Envelope { payload, .. }) => {
                serde_json::from_str(payload.get()).map_err(|error| self.unreadable(error))
            }
            None => self.json(),
        }
    }

    fn unreadable(&self, error: serde_json::Error) -> Error {
        let event = &self.record.event;
        let doing = format!("reading event {} ({}) of {}", event.id, event.kind, event.stream);
        Error::new(Kind::Decode, doing).because(error)
    }
}

/// What the format `headwater` puts around a payload.
#[derive(Deserialize)]
struct Envelope<'a> {
    id: &'a str,
    #[serde(borrow)]
    payload: &'a RawValue,
}

/// The longest wait.
pub(super) const YEAR: Duration = Duration::from_hours(366 * 24);

/// The most characters that are kept of an error: some hold the whole payload.
const SAID: usize = 4_000;

/// Why an event was not handled.
#[derive(Debug)]
pub struct Failure {
    pub(super) error: String,
    pub(super) then: Then,
    /// Which of the events failed, where that is known.
    pub(super) at: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Retry(Option<Duration>),
    Park,
}

impl Failure {
    /// To be tried again after the usual wait.
    pub fn retry(error: impl Into<String>) -> Self {
        Self::new(error.into(), Then::Retry(None))
    }

    /// To be tried again, not before `after`, which is a year at most.
    pub fn retry_after(error: impl Into<String>, after: Duration) -> Self {
        Self::new(error.into(), Then::Retry(Some(after.min(YEAR))))
    }

    /// Not to be tried again: it waits for a person, and its key with it.
    pub fn park(error: impl Into<String>) -> Self {
        Self::new(error.into(), Then::Park)
    }

    fn new(mut error: String, then: Then) -> Self {
        if let Some((end, _)) = error.char_indices().nth(SAID) {
            error.truncate(end);
        }
        Self { error, then, at: None }
    }

    /// Says which of several events failed, by its place among them: only that one is tried alone.
    #[must_use]
    pub fn at(self, place: usize) -> Self {
        Self { at: Some(place), ..self }
    }
}

/// Any error may be passed on: the event is tried again. One that says that it cannot be read is parked.
impl<E: StdError + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let unreadable = (&error as &dyn std::any::Any)
            .downcast_ref::<Error>()
            .is_some_and(|error| error.kind() == Kind::Decode);
        let mut text = error.to_string();
        let mut cause = error.source();
        // Our own errors print their chain themselves.
        while let Some(source) = cause.filter(|_| !(&error as &dyn std::any::Any).is::<Error>()) {
            text = format!("{text}: {source}");
            cause = source.source();
        }
        if unreadable { Self::park(text) } else { Self::retry(text) }
    }
}

#[cfg(test)]
mod tests {
    use headwater_core::{Event, Position};

    use super::*;

    fn received(payload: Option<&str>) -> Received {
        let event = Event {
            id: EventId::from_bytes([7; 16]),
            stream: "orders".into(),
            partition: Some(0),
            kind: "Placed".into(),
            key: Some("42".into()),
            payload: payload.map(|text| text.to_owned().into()),
            headers: Default::default(),
            time: 0,
            position: Position::ZERO,
        };
        Received { record: Record { offset: 1, event }, attempt: 1 }
    }

    #[test]
    fn a_body_is_what_is_in_the_envelope_or_all_of_it() {
        let id = EventId::from_bytes([7; 16]);
        let wrapped = format!("{{\"id\":\"{id}\",\"payload\":[1,2],\"x\":1}}");
        assert_eq!(received(Some(&wrapped)).body::<Vec<i32>>().unwrap(), [1, 2]);
        assert_eq!(received(Some("[3]")).body::<Vec<i32>>().unwrap(), [3]);
        // Somebody's own fields of those names.
        let own = received(Some("{\"id\":\"x\",\"payload\":[1]}"));
        assert_eq!(own.body::<serde_json::Value>().unwrap()["id"], "x");
    }

    #[test]
    fn what_cannot_be_read_is_parked_and_all_else_tried_again() {
        for payload in [None, Some("{"), Some("\"text\"")] {
            let failure = Failure::from(received(payload).json::<i32>().unwrap_err());
            assert_eq!(failure.then, Then::Park);
            assert!(failure.error.contains("(Placed) of orders"), "{failure:?}");
        }
        let failure = Failure::from(std::io::Error::other("no route"));
        assert_eq!((failure.then, failure.error.as_str()), (Then::Retry(None), "no route"));
        let long = format!("{}é", "x".repeat(SAID - 1)) + &"é".repeat(1 << 20);
        assert_eq!(Failure::park(long).error.chars().count(), SAID);
        let away = Error::new(Kind::Unavailable, "away").because(std::io::Error::other("cut"));
        assert_eq!(Failure::from(away).error, "away: cut");
    }
}
