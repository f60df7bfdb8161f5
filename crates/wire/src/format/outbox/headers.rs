//! The headers column of an outbox row.

use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::super::json;
use super::super::malformed::{Malformed, Result};
use super::super::text::HstoreReader;

/// Names and values, in the order they are written in.
type Pairs = Vec<(String, Option<String>)>;

/// Headers from a JSON object: strings as they are, null as no value, all else as its JSON.
pub(super) fn from_json(text: &[u8]) -> Result<Pairs> {
    let text = json::utf8(text)?;
    let not = |_| Malformed::Not("a JSON object of headers");
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let pairs = deserializer.deserialize_map(PairsVisitor).map_err(not)?;
    deserializer.end().map_err(not)?;
    Ok(pairs)
}

/// Headers from an hstore.
pub(super) fn from_hstore(text: &[u8]) -> Result<Pairs> {
    let mut reader = HstoreReader::new(text);
    let mut pairs = Vec::new();
    let owned = |text: &[u8]| json::utf8(text).map(str::to_owned);
    while let Some((name, value)) = reader.next()? {
        pairs.push((owned(&name)?, value.map(|value| owned(&value)).transpose()?));
    }
    Ok(pairs)
}

struct PairsVisitor;

impl<'de> Visitor<'de> for PairsVisitor {
    type Value = Pairs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
        let mut pairs = Vec::new();
        while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
            let value = match value.get() {
                "null" => None,
                json => Some(serde_json::from_str::<String>(json).unwrap_or_else(|_| json.to_owned())),
            };
            pairs.push((name, value));
        }
        Ok(pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_and_hstores() {
        let pair = |name: &str, value: Option<&str>| (name.to_owned(), value.map(str::to_owned));
        assert_eq!(
            from_json(br#"{"trace": "a\"b", "n": 1, "none": null, "o": {"x": [1]}}"#),
            Ok(vec![
                pair("trace", Some("a\"b")),
                pair("n", Some("1")),
                pair("none", None),
                pair("o", Some("{\"x\": [1]}"))
            ])
        );
        assert_eq!(
            from_hstore(b"\"a\"=>\"1\", \"b\"=>NULL"),
            Ok(vec![pair("a", Some("1")), pair("b", None)])
        );
        for bad in ["", "[]", "1", "{\"a\":1} x", "{"] {
            assert!(from_json(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
