//! The payload of an event that tells how an entity changed.

use serde::{Deserialize, Serialize};

/// How an entity changed: its key, what was done, and its state before and after. Everything that does not
/// apply is left out.
///
/// A service may publish it; and what Headwater captures from a table in the format `headwater` reads as one.
///
/// ```
/// use headwater::StateChange;
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Order {
///     status: String,
/// }
///
/// let change = StateChange::new("update").key(42).after(Order { status: "shipped".into() });
/// let text = serde_json::to_string(&change)?;
/// assert_eq!(text, r#"{"key":42,"op":"update","after":{"status":"shipped"}}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateChange<K, T> {
    /// The primary key.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub key: Option<K>,
    /// What was done: `create`, `update`, `delete`, or the service's own word.
    #[serde(rename = "op", alias = "operation")]
    pub operation: String,
    /// The state before.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub before: Option<T>,
    /// The state after.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub after: Option<T>,
    /// Where it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<ChangeSource>,
    /// When it was captured, in ISO 8601.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captured_at: Option<String>,
}

/// Where a change comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeSource {
    /// What it was read from: `postgres`, `outbox`, the service's own name.
    #[serde(default, alias = "connector", skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// The database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// The table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// When it happened, in ISO 8601.
    #[serde(default, alias = "committed_at", skip_serializing_if = "Option::is_none")]
    pub event_time: Option<String>,
}

/// serde's own default would ask for `T: Default`.
fn none<T>() -> Option<T> {
    None
}

impl<K, T> StateChange<K, T> {
    /// A change of which only is known what was done.
    pub fn new(operation: impl Into<String>) -> Self {
        let operation = operation.into();
        Self { key: None, operation, before: None, after: None, source: None, captured_at: None }
    }

    /// The primary key.
    #[must_use]
    pub fn key(self, key: K) -> Self {
        Self { key: Some(key), ..self }
    }

    /// The state before.
    #[must_use]
    pub fn before(self, before: T) -> Self {
        Self { before: Some(before), ..self }
    }

    /// The state after.
    #[must_use]
    pub fn after(self, after: T) -> Self {
        Self { after: Some(after), ..self }
    }

    /// Where it comes from.
    #[must_use]
    pub fn source(self, source: ChangeSource) -> Self {
        Self { source: Some(source), ..self }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_captured_change_reads_as_one() {
        let text = r#"{"id": "018f85d0-c334-7123-8567-89abcdef0123", "stream": "orders", "type": "update", "version": 1,
            "op": "update", "key": {"id": 42}, "before": null, "after": {"id": 42, "state": "paid"},
            "source": {"connector": "postgres", "name": "shop", "database": "shopdb", "schema": "public",
                "table": "orders", "transaction": "771", "committed_at": "2024-05-17T10:00:00.500000Z"},
            "captured_at": "2024-05-17T10:00:00.512345Z"}"#;
        let change: StateChange<Value, Value> = serde_json::from_str(text).unwrap();
        assert_eq!((change.operation.as_str(), change.before), ("update", None));
        assert_eq!(
            (change.key, change.after),
            (Some(json!({"id": 42})), Some(json!({"id": 42, "state": "paid"})))
        );
        let source = change.source.unwrap();
        assert_eq!((source.log.as_deref(), source.table.as_deref()), (Some("postgres"), Some("orders")));
        assert_eq!(source.event_time.as_deref(), Some("2024-05-17T10:00:00.500000Z"));
    }

    #[test]
    fn it_reads_back_as_it_was() {
        let source =
            ChangeSource { log: Some("shop".into()), table: Some("orders".into()), ..Default::default() };
        let change = StateChange::new("create").key(1).before("a".to_owned()).source(source);
        let text = serde_json::to_string(&change).unwrap();
        assert_eq!(serde_json::from_str::<StateChange<i32, String>>(&text).unwrap(), change);
    }
}
