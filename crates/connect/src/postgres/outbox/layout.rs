//! The tables, indexes and functions of an outbox.

use headwater_core::ports::LANES;
use headwater_core::{Error, Kind, Result};

use super::Names;
use crate::outbox::{DROP_PATIENCE, any_left, check_name, held, unpublished};
use crate::postgres::client::{Connection, Mode, PgError, quote_literal};
use crate::postgres::indexes::{Index, Rows};
use crate::postgres::url::ConnectOptions;

/// The class of the advisory locks that publishing takes: the letters HW. Each key has a lock of its own,
/// by its 32-bit hash: were there fewer, a transaction that stays open would hold up keys that are not its own.
pub(super) const LOCKS: i32 = 0x4857;

/// The SQL that makes the outbox `table` (`schema.name`, or a name in `public`) and what belongs to it.
pub fn script(table: &str) -> Result<String> {
    check_name(table)?;
    let names = Names::new(table);
    let indexes = indexes(&names).map(|index| format!("{};\n", index.sql("", &index.name))).concat();
    let small = "-- Small, whatever is published: each holds only the rows that are in its states.\n";
    Ok(format!("{}{small}{indexes}{}", tables(&names), function(&names)))
}

fn tables(names: &Names) -> String {
    let (outbox, lease, relay) = (names.outbox(), names.lease(), names.relay());
    let uuid7 = names.function("headwater_uuid7");
    let last = LANES - 1;
    format!(
        "-- A UUID of version 7 (RFC 9562): its first 48 bits are the time in milliseconds.\n\
         CREATE OR REPLACE FUNCTION {uuid7}() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE AS $$\n    \
             SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) PLACING\n        \
                 substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6),\n        \
                 52, 1), 53, 1), 'hex')::uuid\n\
         $$;\n\n\
         CREATE TABLE {outbox} (\n    \
             id uuid PRIMARY KEY DEFAULT {uuid7}(),\n    \
             seq bigint GENERATED ALWAYS AS IDENTITY,   -- rises within a key in the order of commits\n    \
             stream text NOT NULL,\n    \
             type text NOT NULL,\n    \
             key text,                                  -- what the event is about; none: no order\n    \
             payload json,\n    \
             headers json,                              -- an object of strings\n    \
             version integer NOT NULL DEFAULT 1,        -- of the event's schema\n    \
             created_at timestamptz NOT NULL DEFAULT clock_timestamp(),\n    \
             lane smallint GENERATED ALWAYS AS ((hashtext(coalesce(key, id::text)) & {last})::smallint) STORED,\n    \
             state text NOT NULL DEFAULT 'new',         -- new, waiting, retrying, parked, published, dropped\n    \
             attempts integer NOT NULL DEFAULT 0,\n    \
             next_try timestamptz,\n    \
             error text,\n    \
             settled_at timestamptz\n\
         );\n\n\
         -- Which relay works which lane.\n\
         CREATE TABLE {lease} (\n    \
             lane smallint PRIMARY KEY,\n    \
             relay text,\n    \
             epoch bigint NOT NULL DEFAULT 0,\n    \
             until timestamptz NOT NULL DEFAULT '-infinity'\n\
         );\n\
         INSERT INTO {lease} (lane) SELECT generate_series(0, {last});\n\n\
         -- Which relays are alive.\n\
         CREATE TABLE {relay} (relay text PRIMARY KEY, until timestamptz NOT NULL);\n\n"
    )
}

/// The place of a row's stream and key in the index of what waits: a key itself may be longer than an index holds.
/// `of` is the row's alias and a dot, or nothing.
pub(super) fn place(of: &str) -> String {
    format!("hashtextextended({of}key, hashtextextended({of}stream, 0))")
}

/// The indexes of the outbox.
pub(in crate::postgres) fn indexes(names: &Names) -> [Index; 4] {
    let index = |part: &str, columns: &'static str, states: &'static [&'static str]| Index {
        schema: names.schema.clone(),
        table: names.name.clone(),
        name: names.index(part),
        columns,
        computed: format!("({})", place("")),
        rows: Rows::In(states),
    };
    [
        index("new", "lane, seq", &["new"]),
        index("waiting", "lane, (), seq", &["waiting"]),
        index("heads", "lane, next_try", &["retrying", "parked"]),
        index("done", "settled_at", &["published", "dropped"]),
    ]
}

fn function(names: &Names) -> String {
    let (outbox, publish) = (names.outbox(), names.function("headwater_publish"));
    let uuid7 = names.function("headwater_uuid7");
    format!(
        "\n-- Publishes an event in the caller's transaction. The lock of the key is held until that ends.\n\
         CREATE FUNCTION {publish}(stream text, type text, key text, payload json,\n        \
             headers json DEFAULT NULL, version integer DEFAULT 1, id uuid DEFAULT NULL)\n\
         RETURNS uuid LANGUAGE plpgsql AS $$\n\
         DECLARE\n    \
             published uuid := coalesce($7, {uuid7}());\n\
         BEGIN\n    \
             PERFORM pg_advisory_xact_lock({LOCKS}, hashtext($3));\n    \
             INSERT INTO {outbox} (id, stream, type, key, payload, headers, version)\n    \
                 VALUES (published, $1, $2, $3, $4, $5, $6);\n    \
             RETURN published;\n\
         END $$;\n",
    )
}

/// The SQL that takes the outbox and all that belongs to it away.
pub fn removal_script(table: &str) -> String {
    let names = Names::new(table);
    format!(
        "DROP FUNCTION IF EXISTS {}(text, text, text, json, json, integer, uuid);\n\
         DROP TABLE IF EXISTS {}, {}, {};\n\
         DROP FUNCTION IF EXISTS {}();\n",
        names.function("headwater_publish"),
        names.outbox(),
        names.lease(),
        names.relay(),
        names.function("headwater_uuid7"),
    )
}

/// Makes the outbox where it is missing; says whether it was. One that is there is left as it is.
pub async fn install(url: &ConnectOptions, table: &str) -> Result<bool> {
    let names = Names::new(table);
    let mut connection = Connection::connect(url, Mode::Sql).await?;
    if exists(&mut connection, &names.outbox()).await? {
        return Ok(false);
    }
    let doing = format!("making the outbox {}", names.outbox());
    // Several statements of one query are one transaction.
    connection.query(&script(table)?).await.map_err(|error| {
        let hint = format!(
            "run the SQL of `headwater init URL --outbox {table} --print` as a user that may create tables in schema {}; \
             a function headwater_publish that is there belongs to another outbox of that schema: choose another schema",
            names.schema
        );
        Error::new(Kind::Refused, doing).because(error).hint(hint)
    })?;
    Ok(true)
}

/// Takes the outbox away, with the rows that are in it; says whether it was there. Refuses, unless told
/// otherwise, while rows wait to be published.
pub async fn remove(url: &ConnectOptions, table: &str, force: bool) -> Result<bool> {
    let names = Names::new(table);
    let mut connection = Connection::connect(url, Mode::Sql).await?;
    if !exists(&mut connection, &names.outbox()).await? {
        return Ok(false);
    }
    let own = format!("SELECT seq, lane, state, settled_at FROM {} LIMIT 0", names.outbox());
    connection.query(&own).await.map_err(|error| {
        let doing = format!("looking whether {} is an outbox that `headwater init` made", names.outbox());
        Error::new(Kind::Refused, doing)
            .because(error)
            .hint("a table of another layout is yours: DROP TABLE it when no service writes to it any more")
    })?;
    // Counted while services go on publishing: that may read the whole table.
    if !force {
        let waiting =
            format!("SELECT count(*) FROM {} WHERE state NOT IN ('published', 'dropped')", names.outbox());
        let waiting: u64 = connection.query(&waiting).await?.first().map_or(Ok(0), |row| row.number(0))?;
        if waiting > 0 {
            return Err(unpublished(&names.outbox(), Some(waiting)));
        }
    }
    let or_held = |error| match PgError::code_of(&error) {
        Some("55P03") => held(&names.outbox(), error),
        _ => error,
    };
    // Until it is gone nobody writes to it.
    let lock = format!(
        "BEGIN; SET LOCAL lock_timeout = '{DROP_PATIENCE}s'; LOCK TABLE {} IN ACCESS EXCLUSIVE MODE",
        names.outbox()
    );
    connection.query(&lock).await.map_err(or_held)?;
    if !force {
        // Those whose transactions were waited for.
        let some = connection.query(&any_left(&names.outbox())).await?;
        if some.first().is_none_or(|row| row.is_true(0)) {
            return Err(unpublished(&names.outbox(), None));
        }
    }
    connection.query(&format!("{}COMMIT", removal_script(table))).await.map_err(or_held)?;
    Ok(true)
}

async fn exists(connection: &mut Connection, relation: &str) -> Result<bool> {
    let sql = format!("SELECT to_regclass({}) IS NOT NULL", quote_literal(relation));
    Ok(connection.query(&sql).await?.first().is_some_and(|row| row.is_true(0)))
}
