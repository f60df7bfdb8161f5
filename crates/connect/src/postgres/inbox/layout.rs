//! The tables of an inbox.

use headwater_core::{Error, Kind, Result};

use crate::postgres::client::{Connection, Mode, quote_ident, quote_literal};
use crate::postgres::indexes::{Index, Rows};
use crate::postgres::url::ConnectOptions;

/// The names of the tables, quoted.
#[derive(Debug, Clone)]
pub(super) struct Tables {
    pub(super) inbox: String,
    pub(super) cursor: String,
    pub(super) parked: String,
}

impl Tables {
    pub(super) fn of(schema: &str) -> Self {
        let name = |table: &str| format!("{}.{}", quote_ident(schema), quote_ident(table));
        Self {
            inbox: name("headwater_inbox"),
            cursor: name("headwater_cursor"),
            parked: name("headwater_parked"),
        }
    }
}

/// The SQL that makes the tables of an inbox in `schema`. What is there already is left as it is.
pub fn script(schema: &str) -> String {
    let Tables { inbox, cursor, parked } = Tables::of(schema);
    let indexes = indexes(schema).map(|index| index.sql("IF NOT EXISTS ", &index.name) + ";\n").concat();
    format!(
        "CREATE TABLE IF NOT EXISTS {inbox} (\n    \
             consumer text NOT NULL,\n    \
             event_id uuid NOT NULL,\n    \
             handled_at timestamptz NOT NULL DEFAULT clock_timestamp(),\n    \
             PRIMARY KEY (consumer, event_id)\n\
         );\n\
         CREATE TABLE IF NOT EXISTS {cursor} (\n    \
             consumer text NOT NULL,\n    \
             stream text NOT NULL,\n    \
             partition int NOT NULL,\n    \
             \"offset\" bigint NOT NULL,\n    \
             PRIMARY KEY (consumer, stream, partition)\n\
         ) WITH (fillfactor = 50);\n\
         CREATE TABLE IF NOT EXISTS {parked} (\n    \
             seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,\n    \
             consumer text NOT NULL,\n    \
             stream text NOT NULL,\n    \
             partition int NOT NULL,\n    \
             \"offset\" bigint NOT NULL,\n    \
             event_id uuid NOT NULL,\n    \
             key bytea, -- what keeps its order and waits; event_key is the event's own\n    \
             event_key bytea,\n    \
             type text NOT NULL,\n    \
             headers json NOT NULL, -- [[name, value], ...]\n    \
             payload bytea,\n    \
             time timestamptz NOT NULL,\n    \
             state text NOT NULL CHECK (state IN ('parked', 'waiting', 'retrying')),\n    \
             attempts int NOT NULL DEFAULT 0,\n    \
             error text,\n    \
             next_try timestamptz,\n    \
             parked_at timestamptz NOT NULL DEFAULT clock_timestamp()\n\
         );\n\
         -- Of a key itself an index takes a part of a page only.\n\
         {indexes}"
    )
}

/// The tables that have indexes beside the primary key.
pub(in crate::postgres) const TABLES: [&str; 2] = ["headwater_inbox", "headwater_parked"];

/// The indexes of an inbox in `schema`.
pub(in crate::postgres) fn indexes(schema: &str) -> [Index; 3] {
    let index = |table: usize, part: &str, columns: &'static str, rows: Rows| Index {
        schema: schema.to_owned(),
        table: TABLES[table].to_owned(),
        name: format!("{}_{part}", TABLES[table]),
        columns,
        computed: "sha256(key)".to_owned(),
        rows,
    };
    [
        index(0, "handled_at", "consumer, handled_at", Rows::All),
        index(1, "key", "consumer, stream, (), seq", Rows::Keyed),
        index(1, "retrying", "consumer, next_try", Rows::In(&["retrying"])),
    ]
}

/// Makes the tables of an inbox in `schema` where they are missing; says whether any was.
pub async fn install(url: &ConnectOptions, schema: &str) -> Result<bool> {
    let mut connection = Connection::connect(url, Mode::Sql).await?;
    let Tables { inbox, cursor, parked } = Tables::of(schema);
    let there =
        [inbox, cursor, parked].map(|table| format!("to_regclass({}) IS NOT NULL", quote_literal(&table)));
    let found = connection.query(&format!("SELECT {}", there.join(" AND "))).await?;
    if found.first().is_some_and(|row| row.is_true(0)) {
        return Ok(false);
    }
    connection.query(&script(schema)).await.map_err(|error| {
        Error::new(Kind::Refused, format!("making the tables of the inbox in schema {schema}"))
            .because(error)
            .hint("the schema has to be there: its owner may run this, or the SQL of `headwater init URL --inbox --print`")
    })?;
    Ok(true)
}
