//! What the consumer knows of the shop from events alone, and whether that is what shop.db says.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use headwater_core::{Event, EventId, Kind, Result, ResultExt};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Map, Value};

use super::shop::NEVER;

/// The streams that tables feed: their key, and the query that gives the rows their events carry.
const TABLES: [(&str, &[&str], &str); 3] = [
    ("customers", &["id"], "SELECT id, name, email FROM customers"),
    ("orders", &["id"], "SELECT id, customer_id AS customer, status, total_cents AS total, note FROM orders"),
    (
        "order_lines",
        &["order_id", "line"],
        "SELECT order_id, line, product, quantity, price_cents FROM order_lines",
    ),
];

/// The tables as their events tell them, and the ids of all outbox events.
#[derive(Debug, Default)]
pub struct Replica {
    rows: BTreeMap<(String, String), Value>,
    outbox: HashSet<EventId>,
    wrong: Vec<String>,
}

impl Replica {
    /// Takes in one event, in the order of its partition. An event that comes again changes nothing in
    /// the end: what followed it comes again too.
    pub fn apply(&mut self, event: &Event) {
        let payload = event.payload.as_deref().unwrap_or_default();
        let Ok(body) = serde_json::from_slice::<Value>(payload) else {
            self.wrong.push(format!("{} {}: the payload is not JSON", event.stream, event.id));
            return;
        };
        if body.to_string().contains(NEVER) {
            self.wrong.push(format!("{} {}: an order arrived that was rolled back", event.stream, event.id));
        }
        let Some(op) = body.get("op").and_then(Value::as_str) else {
            self.outbox.insert(event.id);
            return;
        };
        let columns = TABLES.iter().find(|(stream, ..)| *stream == &*event.stream).map(|(_, key, _)| *key);
        let row = |part: &str| body.get(part).filter(|row| row.is_object()).cloned();
        let (before, after) = (row("before"), row("after"));
        // An update may have changed the key.
        for gone in [&before, &after].into_iter().flatten().filter(|_| op != "truncate") {
            self.rows.remove(&(event.stream.to_string(), key_of(gone, columns.unwrap_or_default())));
        }
        if let (Some(row), false) = (after, op == "delete") {
            let key = key_of(&row, columns.unwrap_or_default());
            self.rows.insert((event.stream.to_string(), key), row);
        }
    }

    /// Every difference between what arrived and the database; empty when nothing was lost. Blocks.
    pub fn compare(&self, path: &Path) -> Result<Vec<String>> {
        let doing = || format!("comparing with {}", path.display());
        let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY);
        let database = database.doing(Kind::Unavailable, doing)?;
        // One snapshot for all tables.
        database.execute_batch("BEGIN").doing(Kind::Unavailable, doing)?;
        let mut differences = self.wrong.clone();
        let mut expected = BTreeMap::new();
        for (stream, key, query) in TABLES {
            for row in rows(&database, query).doing(Kind::Unavailable, doing)? {
                expected.insert((stream.to_owned(), key_of(&row, key)), row);
            }
        }
        for ((stream, key), row) in &expected {
            match self.rows.get(&(stream.clone(), key.clone())) {
                Some(arrived) if arrived == row => {}
                Some(arrived) => differences.push(format!("{stream} {key}: is {row}, arrived as {arrived}")),
                None => differences.push(format!("{stream} {key}: never arrived: {row}")),
            }
        }
        for ((stream, key), row) in &self.rows {
            if !expected.contains_key(&(stream.clone(), key.clone())) {
                differences.push(format!("{stream} {key}: is gone, its delete never arrived: {row}"));
            }
        }
        for row in rows(&database, "SELECT id, type FROM outbox").doing(Kind::Unavailable, doing)? {
            let id = row.get("id").and_then(Value::as_str).unwrap_or_default();
            if !id.parse::<EventId>().is_ok_and(|id| self.outbox.contains(&id)) {
                differences.push(format!("outbox {id}: never arrived: {row}"));
            }
        }
        Ok(differences)
    }

    /// How many rows of tables it knows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }
}

fn key_of(row: &Value, columns: &[&str]) -> String {
    let parts: Vec<String> =
        columns.iter().map(|column| row.get(column).unwrap_or(&Value::Null).to_string()).collect();
    parts.join(",")
}

fn rows(database: &Connection, query: &str) -> rusqlite::Result<Vec<Value>> {
    let mut statement = database.prepare(query)?;
    let names: Vec<String> = statement.column_names().into_iter().map(str::to_owned).collect();
    let rows = statement.query_map([], |row| {
        let mut object = Map::new();
        for (at, name) in names.iter().enumerate() {
            let value = match row.get_ref(at)? {
                ValueRef::Null => Value::Null,
                ValueRef::Integer(number) => number.into(),
                ValueRef::Real(number) => number.into(),
                ValueRef::Text(text) | ValueRef::Blob(text) => String::from_utf8_lossy(text).into(),
            };
            object.insert(name.clone(), value);
        }
        Ok(Value::Object(object))
    })?;
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use headwater_core::Position;

    fn event(stream: &str, payload: &str) -> Event {
        Event {
            id: "018f85d0-c334-7123-8567-89abcdef0123".parse().unwrap(),
            stream: stream.into(),
            partition: Some(0),
            kind: "x".into(),
            key: None,
            payload: Some(payload.to_owned().into()),
            headers: Default::default(),
            time: 0,
            position: Position::ZERO,
        }
    }

    #[test]
    fn differences_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shop.db");
        let shop = Connection::open(&path).unwrap();
        shop.execute_batch(include_str!("shop.sql")).unwrap();
        shop.execute_batch(
            "CREATE TABLE outbox (id, type);
             INSERT INTO customers VALUES (1, 'Ada', 'ada@x'), (2, 'Bob', 'bob@x');
             INSERT INTO outbox VALUES ('018f85d0c3347123856789abcdef0123', 'OrderPlaced'), ('00', 'Lost')",
        )
        .unwrap();
        let mut replica = Replica::default();
        let row = |id: i64, name: &str| {
            format!(r#"{{"id":{id},"name":"{name}","email":"{}@x"}}"#, name.to_lowercase())
        };
        let create =
            |row: &str| event("customers", &format!(r#"{{"op":"create","before":null,"after":{row}}}"#));
        replica.apply(&create(&row(1, "Eve")));
        let found = replica.compare(&path).unwrap();
        assert!(found[0].starts_with("customers 1: is {") && found[0].contains("arrived as"), "{found:?}");
        let renamed = format!(r#"{{"op":"update","before":{},"after":{}}}"#, row(1, "Eve"), row(1, "Ada"));
        replica.apply(&event("customers", &renamed));
        replica.apply(&create(&row(3, "Cat")));
        replica.apply(&event("order_events", r#"{"type":"OrderPlaced","payload":{}}"#));
        let found = replica.compare(&path).unwrap();
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("customers 2: never arrived"), "{found:?}");
        assert!(found[1].starts_with("customers 3: is gone"), "{found:?}");
        assert!(found[2].starts_with("outbox 00: never arrived"), "{found:?}");
        replica.apply(&create(&row(2, "Bob")));
        replica.apply(&event(
            "customers",
            &format!(r#"{{"op":"delete","before":{},"after":null}}"#, row(3, "Cat")),
        ));
        shop.execute_batch("DELETE FROM outbox WHERE id = '00'").unwrap();
        assert_eq!(replica.compare(&path).unwrap(), Vec::<String>::new());
        assert_eq!(replica.len(), 2);
        replica.apply(&create(&format!(r#"{{"id":9,"note":"{NEVER}"}}"#)));
        assert!(replica.compare(&path).unwrap()[0].contains("rolled back"));
    }
}
