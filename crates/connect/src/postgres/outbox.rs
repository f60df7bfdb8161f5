//! The outbox table that `headwater init` makes: the widespread layout.

use headwater_core::{Error, Kind, Result};

use super::client::{Connection, Mode, quote_ident, quote_literal};
use super::url::ConnectOptions;

/// The SQL that makes the outbox `table` (`schema.name`, or a name in `public`).
pub fn script(table: &str) -> String {
    let (schema, name) = split(table);
    format!(
        "CREATE TABLE {}.{} (\n    \
             id uuid PRIMARY KEY DEFAULT gen_random_uuid(),\n    \
             aggregatetype text NOT NULL,\n    \
             aggregateid text,\n    \
             type text NOT NULL,\n    \
             payload jsonb,\n    \
             headers jsonb,\n    \
             \"timestamp\" timestamptz NOT NULL DEFAULT clock_timestamp()\n\
         );\n",
        quote_ident(schema),
        quote_ident(name)
    )
}

/// Makes the outbox table where it is missing; says whether it was. One that is there is left as it is.
pub async fn install(url: &ConnectOptions, table: &str) -> Result<bool> {
    let mut connection = Connection::connect(url, Mode::Sql).await?;
    let (schema, name) = split(table);
    let relation = format!("{}.{}", quote_ident(schema), quote_ident(name));
    let found =
        connection.query(&format!("SELECT to_regclass({}) IS NOT NULL", quote_literal(&relation))).await?;
    if found.first().is_some_and(|row| row.is_true(0)) {
        return Ok(false);
    }
    connection.query(&script(table)).await.map_err(|error| {
        Error::new(Kind::Refused, format!("making the outbox table {relation}")).because(error).hint(format!(
            "run as the owner of schema {schema}: {}",
            script(table).split_whitespace().collect::<Vec<_>>().join(" ")
        ))
    })?;
    Ok(true)
}

fn split(table: &str) -> (&str, &str) {
    table.split_once('.').unwrap_or(("public", table))
}
