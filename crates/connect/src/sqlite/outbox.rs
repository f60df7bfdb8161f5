//! The outbox table that is made where a config names one that is not there.

use super::layout::ident;
use super::shape::{Column, Place, Shape};
use crate::settings::Outbox;

/// The columns a new outbox has: name, and what follows it in the statement.
fn columns(outbox: &Outbox) -> Vec<(&str, &'static str)> {
    let names = &outbox.columns;
    let mut columns = vec![
        (names.id.as_str(), " TEXT NOT NULL PRIMARY KEY DEFAULT (lower(hex(randomblob(16))))"),
        (names.aggregatetype.as_str(), " TEXT NOT NULL"),
        (names.aggregateid.as_str(), " TEXT"),
        (names.kind.as_str(), " TEXT"),
        (names.payload.as_str(), ""),
        (names.headers.as_deref().unwrap_or("headers"), " TEXT"),
    ];
    columns.extend(names.timestamp.as_deref().map(|name| (name, "")));
    columns
}

/// What makes it.
pub fn create(table: &str, outbox: &Outbox) -> String {
    let columns = columns(outbox).into_iter().map(|(name, rest)| format!("{}{rest}", ident(name)));
    format!("CREATE TABLE {} ({})", ident(table), columns.collect::<Vec<_>>().join(", "))
}

/// What it will look like.
pub fn shape(table: &str, outbox: &Outbox) -> Shape {
    let column = |(name, _): (&str, &str)| Column {
        name: name.to_owned(),
        key: name == outbox.columns.id,
        generated: false,
        fallback: None,
    };
    Shape {
        name: table.to_owned(),
        columns: columns(outbox).into_iter().map(column).collect(),
        computed: Vec::new(),
        place: Place::Rowid { name: "rowid".into(), stable: false },
        unique: Vec::new(),
        checks: Vec::new(),
    }
}
