//! The tables of an inbox.

use headwater_core::{Error, Kind, Result};

use crate::postgres::client::{Connection, Mode, quote_ident, quote_literal};
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
    format!(
        "CREATE TABLE IF NOT EXISTS {inbox} (\n    \
             consumer text NOT NULL,\n    \
             event_id uuid NOT NULL,\n    \
             handled_at timestamptz NOT NULL DEFAULT clock_timestamp(),\n    \
             PRIMARY KEY (consumer, event_id)\n\
         );\n\
         CREATE INDEX IF NOT EXISTS headwater_inbox_handled_at ON {inbox} (consumer, handled_at);\n\
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
         CREATE INDEX IF NOT EXISTS headwater_parked_key ON {parked} (consumer, stream, sha256(key), seq)\n    \
             WHERE key IS NOT NULL; -- of a key itself an index takes a part of a page only\n\
         CREATE INDEX IF NOT EXISTS headwater_parked_retrying ON {parked} (consumer, next_try) WHERE state = 'retrying';\n"
    )
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
            .hint("run `headwater init URL --print` and have its SQL run by the owner of the schema")
    })?;
    Ok(true)
}
