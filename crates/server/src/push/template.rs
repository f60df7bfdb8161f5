//! `https://host/{stream}/{payload.user.id}`: text with members of an event in it.

use std::collections::BTreeMap;

use headwater_core::Event;
use serde::Deserialize;
use serde_json::Value;
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
    pub(super) fn fill(&self, event: &Event, json: &Parsed) -> Result<String, String> {
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

/// An event's payload, read as JSON.
pub(super) struct Parsed {
    whole: Option<Value>,
    id: String,
}

impl Parsed {
    pub(super) fn of(event: &Event) -> Self {
        let whole = event.payload.as_deref().and_then(|payload| serde_json::from_slice(payload).ok());
        Self { whole, id: event.id.to_string() }
    }

    pub(super) fn is_json(&self) -> bool {
        self.whole.is_some()
    }

    /// What an outbox row said, or the row after the change (before it, where it is gone); where there is no
    /// envelope, all of it.
    pub(super) fn inner(&self) -> Option<&Value> {
        let whole = self.whole.as_ref()?;
        if whole.get("id").and_then(Value::as_str) != Some(&self.id) {
            return Some(whole);
        }
        let members = ["payload", "after", "before"].map(|name| whole.get(name));
        members.into_iter().flatten().find(|value| !value.is_null()).or(Some(whole))
    }

    /// The same as it is written in the payload, every digit of its numbers.
    pub(super) fn raw_inner<'a>(&self, payload: &'a [u8]) -> Option<&'a RawValue> {
        let whole: BTreeMap<&str, &RawValue> = serde_json::from_slice(payload).ok()?;
        self.whole.as_ref()?.get("id").and_then(Value::as_str).filter(|id| *id == self.id)?;
        let members = ["payload", "after", "before"].map(|name| whole.get(name).copied());
        members.into_iter().flatten().find(|value| value.get() != "null")
    }

    /// What was done: the envelope's `op`, otherwise the type.
    pub(super) fn op<'a>(&'a self, event: &'a Event) -> &'a str {
        let op = self.whole.as_ref().and_then(|whole| whole.get("op")?.as_str());
        op.unwrap_or(&event.kind)
    }

    fn member(&self, path: &[String]) -> Option<String> {
        let walk = |from: &Value| {
            let found = path.iter().try_fold(from, |value, name| value.get(name))?;
            match found {
                Value::String(text) if !text.is_empty() => Some(text.clone()),
                Value::Number(_) | Value::Bool(_) => Some(found.to_string()),
                _ => None,
            }
        };
        walk(self.inner()?).or_else(|| walk(self.whole.as_ref()?))
    }
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
        assert_eq!(fill("/{payload.x}", "{\"x\":12}").unwrap(), "/12");
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
            let raw = Parsed::of(&event).raw_inner(envelope.as_bytes()).map(|raw| raw.get().to_owned());
            assert_eq!(raw.as_deref(), Some(inner));
        }
        assert!(Parsed::of(&event(inner)).raw_inner(inner.as_bytes()).is_none(), "it is no envelope");
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
