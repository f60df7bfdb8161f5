//! An event in one line: for people, and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use headwater_core::{Event, Micros, Record};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::{Colour, human, one_line, paint};

/// One line of JSON for an event, as `tail --json` prints it.
#[derive(Serialize)]
pub struct EventJson<'a> {
    id: String,
    stream: &'a str,
    partition: Option<u32>,
    offset: u64,
    #[serde(rename = "type")]
    kind: &'a str,
    key: Option<String>,
    headers: BTreeMap<&'a str, Option<String>>,
    payload: Option<&'a RawValue>,
    /// Only of a payload that is not JSON: the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_text: Option<&'a str>,
    /// Only of a payload that is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    time: Option<String>,
    /// From commit to here; only of events that were committed while this process was reading.
    latency_ms: Option<f64>,
}

impl<'a> EventJson<'a> {
    /// The line for a record that took `latency` to get here.
    pub fn new(record: &'a Record, latency: Option<Micros>) -> Self {
        let event = &record.event;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let payload = event.payload.as_deref();
        let json = payload.and_then(|payload| serde_json::from_slice::<&RawValue>(payload).ok());
        let other = payload.filter(|_| json.is_none());
        let payload_text = other.and_then(|payload| std::str::from_utf8(payload).ok());
        let base64 = |payload| base64::engine::general_purpose::STANDARD.encode(payload);
        let headers = event.headers.iter().map(|h| (&*h.name, h.value.as_deref().map(text)));
        Self {
            id: event.id.to_string(),
            stream: &event.stream,
            partition: event.partition,
            offset: record.offset,
            kind: &event.kind,
            key: event.key.as_deref().map(text),
            headers: headers.collect(),
            payload: json,
            payload_text,
            payload_base64: other.filter(|_| payload_text.is_none()).map(base64),
            time: human::instant(event.time),
            latency_ms: latency.map(|micros| micros as f64 / 1e3),
        }
    }
}

/// What an event says, in as few words as possible: of an update, what it changed.
pub fn summary(event: &Event) -> String {
    let Some(payload) = event.payload.as_deref() else { return "(tombstone)".into() };
    let Ok(text) = std::str::from_utf8(payload) else {
        return format!("({} of binary)", human::bytes(payload.len() as u64));
    };
    let Some(envelope) = object(text) else { return one_line(text) };
    let part = |name: &str| envelope.get(name).and_then(|raw| object(raw.get()));
    match (part("before"), part("after"), part("payload")) {
        (Some(before), Some(after), _) => difference(&before, &after),
        (None, Some(row), _) | (Some(row), None, _) | (None, None, Some(row)) => row.show(),
        (None, None, None) => one_line(text),
    }
}

/// When it was committed, its stream (where `stream`), what happened, its key, how long it took, and what
/// it says, as far as the terminal is wide.
pub fn human_line(record: &Record, latency: Option<Micros>, now: Micros, stream: bool) -> String {
    let event = &record.event;
    let colour = super::coloured();
    let key = one_line(&event.key.as_deref().map_or("-".into(), String::from_utf8_lossy));
    let latency = latency.map_or("-".into(), human::micros);
    let time = human::clock(event.time, now);
    let stream = if stream { format!("{:<12}  ", event.stream) } else { String::new() };
    let kind = format!("{:<14}", event.kind);
    let rest = format!("{key:<8}  {latency:>9}");
    let used = [&time, &stream, &kind, &rest].iter().map(|part| part.chars().count()).sum::<usize>() + 6;
    let text = summary(event);
    let text = match super::width() {
        Some(width) => shorten(&text, width.saturating_sub(used).max(20)),
        None => text,
    };
    let (time, kind) = (paint(&time, Colour::Dim, colour), paint(&kind, kind_colour(&event.kind), colour));
    format!("{time}  {stream}{kind}  {rest}  {text}")
}

/// The colour of what happened.
fn kind_colour(kind: &str) -> Colour {
    match kind {
        "create" | "read" => Colour::Green,
        "update" => Colour::Yellow,
        "delete" | "truncate" => Colour::Red,
        _ => Colour::Cyan,
    }
}

/// At most `width` characters of a text.
pub fn shorten(text: &str, width: usize) -> String {
    match text.char_indices().nth(width) {
        None => text.to_owned(),
        Some(_) => text.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
    }
}

fn difference(before: &Object<'_>, after: &Object<'_>) -> String {
    let changed = |(name, new): &(String, &RawValue)| {
        let old = before.get(name)?;
        (old.get() != new.get()).then(|| format!("{name}: {} → {}", value(old), value(new)))
    };
    let changes: Vec<String> = after.0.iter().filter_map(changed).collect();
    if changes.is_empty() { after.show() } else { one_line(&changes.join("  ")) }
}

/// A JSON object with its keys in the order they were written.
struct Object<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Object<'a> {
    fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| *value)
    }

    fn show(&self) -> String {
        let parts: Vec<String> = self.0.iter().map(|(name, raw)| format!("{name}={}", value(raw))).collect();
        one_line(&parts.join(" "))
    }
}

/// A value without the quotes of a plain string.
fn value(raw: &RawValue) -> String {
    match serde_json::from_str::<String>(raw.get()) {
        Ok(text) if !text.is_empty() && !text.contains([' ', '=', '\n']) => text,
        _ => raw.get().to_owned(),
    }
}

fn object(text: &str) -> Option<Object<'_>> {
    serde_json::from_str(text).ok()
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Object(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use headwater_core::{EventId, Position};

    fn event(payload: Option<&str>) -> Event {
        Event {
            id: EventId::derive(1_700_000_000_000_000, &[b"x"]),
            stream: "orders".into(),
            partition: Some(3),
            kind: "update".into(),
            key: Some("7".into()),
            payload: payload.map(|text| text.to_owned().into()),
            headers: Default::default(),
            time: 1_700_000_000_000_000,
            position: Position::ZERO,
        }
    }

    #[test]
    fn a_summary_says_what_changed() {
        let say = |payload: &str| summary(&event(Some(payload)));
        assert_eq!(say(r#"{"before":{"id":1,"s":"new"},"after":{"id":1,"s":"paid"}}"#), "s: new → paid");
        assert_eq!(say(r#"{"op":"create","before":null,"after":{"z":1,"a":"b c"}}"#), "z=1 a=\"b c\"");
        assert_eq!(say(r#"{"before":{"id":1},"after":null}"#), "id=1");
        assert_eq!(say(r#"{"payload":{"total":5}}"#), "total=5");
        assert_eq!(say("a\x1b[31m"), "a [31m");
        assert_eq!(summary(&event(None)), "(tombstone)");
        assert_eq!([shorten("abcd", 4), shorten("abcde", 4)], ["abcd", "abc…"]);
    }

    #[test]
    fn json_keeps_the_payload_as_it_is() {
        let record = Record { offset: 5, event: event(Some(r#"{"n":1.10}"#)) };
        let json = serde_json::to_string(&EventJson::new(&record, Some(1500))).unwrap();
        let expected = r#"{"id":"018bcfe5-6800-"#;
        assert!(json.starts_with(expected), "{json}");
        let rest = r#""stream":"orders","partition":3,"offset":5,"type":"update","key":"7","headers":{},"payload":{"n":1.10},"time":"2023-11-14T22:13:20Z","latency_ms":1.5}"#;
        assert!(json.ends_with(rest), "{json}");
    }
}
