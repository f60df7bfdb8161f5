//! `https://host/{stream}/{payload.user.id}`: text with members of an event in it.

use std::borrow::Cow;
use std::collections::HashMap;

use headwater_core::Event;
use serde::Deserialize;
use serde_json::value::RawValue;

/// Text with places for what an event says, each percent-encoded.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Stream,
    Key,
    Type,
    Op,
    Id,
    Payload(Vec<String>),
}

impl TryFrom<String> for Template {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (mut parts, mut rest) = (Vec::new(), text.as_str());
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or("a { is not closed")?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::named(name)?);
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self(parts))
    }
}

impl Part {
    fn named(name: &str) -> Result<Self, String> {
        Ok(match name {
            "stream" => Self::Stream,
            "key" => Self::Key,
            "type" => Self::Type,
            "op" => Self::Op,
            "id" => Self::Id,
            _ => match name.strip_prefix("payload.") {
                Some(path) if path.split('.').all(|member| !member.is_empty()) => {
                    Self::Payload(path.split('.').map(str::to_owned).collect())
                }
                _ => {
                    return Err(format!(
                        "there is no {{{name}}}; there are {{stream}}, {{key}}, {{type}}, {{op}}, {{id}} and \
                         {{payload.member}}"
                    ));
                }
            },
        })
    }
}

impl Template {
    /// Whether it is the same for every event of a stream.
    pub(super) fn is_of_stream(&self) -> bool {
        self.0.iter().all(|part| matches!(part, Part::Text(_) | Part::Stream))
    }

    /// Whether nothing of an event stands before the path: it must not say which host is asked.
    pub(super) fn has_fixed_host(&self) -> bool {
        let Some(Part::Text(first)) = self.0.first() else { return false };
        // More slashes than two are left out when a URL is read: what is behind them is the host all the same.
        let host = first.split_once("://").map(|(_, rest)| rest.trim_start_matches(['/', '\\']));
        host.is_some_and(|rest| self.0.len() == 1 || rest.contains('/'))
    }

    /// What it may look like.
    pub(super) fn example(&self) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            _ => "x".to_owned(),
        };
        self.0.iter().map(part).collect()
    }

    /// Filled in; the error says which member the event does not have.
    pub(super) fn fill(&self, event: &Event, json: &Parsed<'_>) -> Result<String, String> {
        let mut filled = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Stream => place(event.stream.as_bytes(), &mut filled)?,
                Part::Type => place(event.kind.as_bytes(), &mut filled)?,
                Part::Op => place(json.op(event).as_bytes(), &mut filled)?,
                Part::Id => filled.push_str(&event.id.to_string()),
                Part::Key => match event.key.as_deref() {
                    Some(key) => place(key, &mut filled)?,
                    None => return Err("the event has no key, and the template wants {key}".to_owned()),
                },
                Part::Payload(path) => {
                    let text = json.member(path).ok_or_else(|| {
                        format!(
                            "the event has no value at {{payload.{}}}, which the template wants",
                            path.join(".")
                        )
                    })?;
                    place(text.as_bytes(), &mut filled)?;
                }
            }
        }
        Ok(filled)
    }
}

/// A value of only dots would be a step in the path, escaped or not, and an empty one another place: they are refused.
fn place(value: &[u8], into: &mut String) -> Result<(), String> {
    if value.is_empty() {
        return Err("a value for the template is empty".to_owned());
    }
    if value.iter().all(|byte| *byte == b'.') {
        return Err("a value for the template is only dots, which a URL cannot carry".to_owned());
    }
    encode(value, into);
    Ok(())
}

/// What may stand anywhere in a URL stays, all else is escaped.
pub(super) fn encode(bytes: &[u8], into: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(byte) {
            into.push(char::from(*byte));
        } else {
            into.push('%');
            into.push(char::from(HEX[usize::from(byte >> 4)]));
            into.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

/// An event's payload, read as JSON. What is in it stays as it is written: every digit of its numbers.
pub(super) struct Parsed<'a> {
    whole: Option<&'a RawValue>,
    /// What an outbox row said, or the row after the change (before it, where it is gone), if there is an envelope.
    inner: Option<&'a RawValue>,
    /// The envelope's `op`.
    op: Option<String>,
}

impl<'a> Parsed<'a> {
    pub(super) fn of(event: &'a Event) -> Self {
        let whole = event.payload.as_deref().and_then(|payload| serde_json::from_slice(payload).ok());
        let members = whole.and_then(members).unwrap_or_default();
        let text =
            |name: &str| members.get(name).and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
        let is_envelope = text("id").is_some_and(|id| id == event.id.to_string());
        let of_it = ["payload", "after", "before"].map(|name| members.get(name).copied());
        let inner = of_it.into_iter().flatten().find(|value| value.get() != "null").filter(|_| is_envelope);
        Self { whole, inner, op: text("op") }
    }

    pub(super) fn is_json(&self) -> bool {
        self.whole.is_some()
    }

    /// What is in the envelope, if there is one.
    pub(super) fn inner(&self) -> Option<&'a RawValue> {
        self.inner
    }

    /// What was done: the envelope's `op`, otherwise the type.
    pub(super) fn op(&'a self, event: &'a Event) -> &'a str {
        self.op.as_deref().unwrap_or(&event.kind)
    }

    fn member(&self, path: &[String]) -> Option<String> {
        let walk = |from: &'a RawValue| {
            let found =
                path.iter().try_fold(from, |value, name| members(value)?.get(name.as_str()).copied())?;
            match found.get().as_bytes().first()? {
                b'"' => serde_json::from_str(found.get()).ok().filter(|text: &String| !text.is_empty()),
                b'{' | b'[' | b'n' => None,
                _ => Some(found.get().to_owned()),
            }
        };
        self.inner.and_then(walk).or_else(|| walk(self.whole?))
    }
}

/// The members of an object.
fn members(object: &RawValue) -> Option<HashMap<Cow<'_, str>, &RawValue>> {
    serde_json::from_str(object.get()).ok()
}

#[cfg(test)]
mod tests {
    use headwater_core::{EventId, Position};

    use super::*;

    fn event(payload: &str) -> Event {
        Event {
            id: EventId::from_bytes([7; 16]),
            stream: "orders".into(),
            partition: Some(0),
            kind: "update".into(),
            key: Some("a/b".into()),
            payload: Some(payload.to_owned().into()),
            headers: Default::default(),
            time: 0,
            position: Position::ZERO,
        }
    }

    fn fill(template: &str, payload: &str) -> Result<String, String> {
        let event = event(payload);
        Template::try_from(template.to_owned())?.fill(&event, &Parsed::of(&event))
    }

    #[test]
    fn members_are_filled_in_and_escaped() {
        assert_eq!(fill("/{stream}/{key}/{type}", "").unwrap(), "/orders/a%2Fb/update");
        let id = EventId::from_bytes([7; 16]);
        let envelope = format!("{{\"id\":\"{id}\",\"op\":\"u\",\"after\":{{\"user\":{{\"id\":\"ü ..\"}}}}}}");
        assert_eq!(fill("/{payload.user.id}?{op}", &envelope).unwrap(), "/%C3%BC%20..?u");
        assert_eq!(fill("/{payload.after.user.id}", &envelope).unwrap(), "/%C3%BC%20..");
        assert_eq!(fill("/{payload.x}", "{\"x\":\"../..\"}").unwrap(), "/..%2F..");
        assert!(fill("/{payload.x}", "{\"x\":\"..\"}").unwrap_err().contains("only dots"));
        for number in ["12", "12345678901234567890123", "1.10", "-0.5", "true"] {
            let payload = format!("{{\"x\": {number} }}");
            assert_eq!(fill("/{payload.x}", &payload).unwrap(), format!("/{number}"), "as it is written");
        }
        assert_eq!(fill("/{payload.\"ü}", "{\"\\\"\\u00fc\":\"a\\nb\"}").unwrap(), "/a%0Ab");
    }

    #[test]
    fn a_payload_is_handed_on_as_it_was_written() {
        let id = EventId::from_bytes([7; 16]);
        let inner = "{\"b\": 12345678901234567890123, \"a\":1}";
        for envelope in [
            format!("{{\"id\":\"{id}\",\"payload\":{inner}}}"),
            format!("{{\"id\":\"{id}\",\"after\":null,\"before\":{inner}}}"),
        ] {
            let event = event(&envelope);
            assert_eq!(Parsed::of(&event).inner().map(RawValue::get), Some(inner));
        }
        assert!(Parsed::of(&event(inner)).inner().is_none(), "it is no envelope");
    }

    #[test]
    fn an_event_does_not_say_which_host_is_asked() {
        let fixed = |text: &str| Template::try_from(text.to_owned()).unwrap().has_fixed_host();
        for good in ["http://h", "https://h/{key}", "https://h:1/a?x={payload.y}"] {
            assert!(fixed(good), "{good}");
        }
        for bad in [
            "https://{payload.host}/x",
            "https://api.{key}/",
            "https://h{key}",
            "{key}",
            "http:///{key}/x",
            "http://\\/{key}/x",
            "http:/{key}/x",
        ] {
            assert!(!fixed(bad), "{bad}");
        }
    }

    #[test]
    fn what_is_missing_or_unknown_is_said() {
        for payload in ["{}", "{\"x\":null}", "{\"x\":{}}", "{\"x\":\"\"}", "no json"] {
            assert!(fill("/{payload.x}", payload).unwrap_err().contains("{payload.x}"), "{payload}");
        }
        assert!(fill("/{user}", "{}").unwrap_err().contains("there is no {user}"));
        assert!(fill("/{key", "{}").unwrap_err().contains("not closed"));
    }
}
