//! Settings that every source has, read in one way.

use std::fmt;

use headwater_wire::format::OutboxColumns;
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// When a source reads whole tables before it follows their changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotMode {
    /// Each table once: when the source first captures it.
    #[default]
    Initial,
    /// Not at all: only changes made from now on.
    Never,
    /// Every table at every start.
    Always,
}

/// The outbox of a source: a table's name, or `{ table = "...", id = "...", ... }` to name its columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbox {
    /// The table: `schema.name`, or the name alone for the default schema.
    pub table: String,
    /// Its columns.
    pub columns: OutboxColumns,
}

impl Outbox {
    /// The outbox in `table`, with the widespread names of columns.
    pub fn new(table: impl Into<String>) -> Self {
        Self { table: table.into(), columns: OutboxColumns::default() }
    }
}

impl<'de> Deserialize<'de> for Outbox {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OutboxVisitor)
    }
}

struct OutboxVisitor;

impl<'de> Visitor<'de> for OutboxVisitor {
    type Value = Outbox;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table's name, or a table with `table` and names of columns")
    }

    fn visit_str<E: de::Error>(self, table: &str) -> Result<Outbox, E> {
        Ok(Outbox::new(table))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Outbox, A::Error> {
        let mut table = None;
        let columns =
            OutboxColumns::deserialize(MapAccessDeserializer::new(Without { map, table: &mut table }))?;
        let table = table.ok_or_else(|| de::Error::missing_field("table"))?;
        Ok(Outbox { table, columns })
    }
}

/// A map without its entry `table`, which is put aside.
struct Without<'a, A> {
    map: A,
    table: &'a mut Option<String>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Without<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: de::DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        loop {
            match self.map.next_key::<String>()? {
                None => return Ok(None),
                Some(key) if key == "table" => *self.table = Some(self.map.next_value()?),
                Some(key) => return seed.deserialize(StrDeserializer::new(&key)).map(Some),
            }
        }
    }

    fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outbox_is_a_name_or_a_table_of_names() {
        let read = |json: &str| serde_json::from_str::<Outbox>(json);
        assert_eq!(read(r#""public.outbox""#).unwrap(), Outbox::new("public.outbox"));
        let named = read(r#"{"aggregateid": "key", "table": "events", "headers": "meta"}"#).unwrap();
        let columns = OutboxColumns {
            aggregateid: "key".into(),
            headers: Some("meta".into()),
            ..OutboxColumns::default()
        };
        assert_eq!(named, Outbox { table: "events".into(), columns });
        assert!(read(r#"{"id": "a"}"#).unwrap_err().to_string().contains("missing field `table`"));
        assert!(
            read(r#"{"table": "a", "idd": "b"}"#).unwrap_err().to_string().contains("unknown field `idd`")
        );
    }
}
