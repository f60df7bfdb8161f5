//! Whether an outbox is ready for relays, or to be read from the log.

use headwater_core::Result;
use headwater_core::ports::Finding;
use sqlx::{AssertSqlSafe, PgPool, Row};

use super::Names;
use crate::postgres::client::{Connection, quote_literal};
use crate::postgres::indexes::{self, There};

/// No more rows are counted.
const MANY: i64 = 100_000;

/// Looks at its tables, the rights on them, what waits in it, and who works it.
pub(super) async fn check(pool: &PgPool, names: &Names) -> sqlx::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let missing = rights(pool, names).await?;
    if missing.is_empty() {
        let text = format!("the outbox {} is there, with the rights that a relay needs", names.outbox());
        findings.push(Finding::ok(text));
    }
    findings.extend(missing);
    let read_only = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on'";
    if sqlx::query_scalar(read_only).fetch_one(pool).await? {
        findings.push(Finding::error(
            "the server takes no writes: it is a standby, or default_transaction_read_only is on",
            "name the primary in the url: a relay writes down what it has published",
        ));
    }
    findings.extend(indexes(pool, names).await?);
    findings.push(backlog(pool, names).await?);
    let parked = format!(
        "SELECT count(*) FROM {} WHERE state IN ('retrying', 'parked') AND state = 'parked'",
        names.outbox()
    );
    let parked: i64 = sqlx::query(AssertSqlSafe(parked)).fetch_one(pool).await?.try_get(0)?;
    if parked > 0 {
        findings.push(Finding::warning(
            format!("{parked} of its events are parked, and hold back the later ones of their keys"),
            "`headwater parked` says why; `headwater parked retry` lets them go",
        ));
    }
    findings.push(workers(pool, names).await?);
    Ok(findings)
}

async fn rights(pool: &PgPool, names: &Names) -> sqlx::Result<Vec<Finding>> {
    // The names of the columns tell whether it is this layout; where it is not, the error says so.
    let layout = format!(
        "SELECT seq, lane, state, attempts, next_try, error, settled_at FROM {} LIMIT 0",
        names.outbox()
    );
    sqlx::query(AssertSqlSafe(layout)).fetch_all(pool).await?;
    let mut findings = Vec::new();
    for table in [names.outbox(), names.lease(), names.relay()] {
        let asked = format!(
            "SELECT string_agg(kind, ', ') FROM unnest('{{SELECT,INSERT,UPDATE,DELETE}}'::text[]) AS kind \
             WHERE NOT has_table_privilege({}, kind)",
            quote_literal(&table)
        );
        let missing: Option<String> = sqlx::query(AssertSqlSafe(asked)).fetch_one(pool).await?.try_get(0)?;
        if let Some(missing) = missing {
            findings.push(missing_rights(&missing, &table));
        }
    }
    Ok(findings)
}

/// Its own, and those of the inboxes beside it.
async fn indexes(pool: &PgPool, names: &Names) -> sqlx::Result<Vec<Finding>> {
    let rows = sqlx::query(AssertSqlSafe(indexes::question(Some(names)))).fetch_all(pool).await?;
    let there = rows.iter().map(There::of_sqlx).collect::<sqlx::Result<Vec<_>>>()?;
    Ok(indexes::findings(Some(names), &there))
}

async fn backlog(pool: &PgPool, names: &Names) -> sqlx::Result<Finding> {
    let of = |state: &str| format!("(SELECT FROM {} WHERE state = '{state}' LIMIT {MANY})", names.outbox());
    let waiting = format!("SELECT count(*) FROM ({} UNION ALL {}) AS waits", of("new"), of("waiting"));
    let waiting: i64 = sqlx::query(AssertSqlSafe(waiting)).fetch_one(pool).await?.try_get(0)?;
    Ok(Finding::ok(match waiting {
        0 => "nothing in it waits to be published".to_owned(),
        1..MANY => format!("{waiting} events in it wait to be published"),
        _ => format!("{MANY} events or more in it wait to be published"),
    }))
}

/// Whose lanes they are.
async fn workers(pool: &PgPool, names: &Names) -> sqlx::Result<Finding> {
    let sql = format!(
        "SELECT relay, count(*) FROM {} WHERE until > clock_timestamp() AND relay IS NOT NULL GROUP BY relay ORDER BY relay",
        names.lease()
    );
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(pool).await?;
    let mut held = Vec::new();
    for row in &rows {
        let (relay, lanes): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
        if relay.starts_with("log:") {
            return Ok(Finding::warning(
                format!("it is being emptied from the log now ({relay})"),
                "a relay has no lanes while that runs: stop it, or leave out `relay`",
            ));
        }
        held.push(format!("{relay} ({lanes} lanes)"));
    }
    Ok(Finding::ok(match held.is_empty() {
        true => "no relay works it now".to_owned(),
        false => format!("relays that work it now: {}", held.join(", ")),
    }))
}

/// What is missing to settle its rows while it is read from the log; nothing where the table is none of Headwater's own.
pub async fn check_log(connection: &mut Connection, table: &str) -> Result<Vec<Finding>> {
    let names = Names::new(table);
    let own = format!(
        "SELECT to_regclass({}) IS NOT NULL AND NOT pg_is_in_recovery()",
        quote_literal(&names.lease())
    );
    if !connection.query(&own).await?.first().is_some_and(|row| row.is_true(0)) {
        return Ok(Vec::new());
    }
    let mut findings = Vec::new();
    for (table, rights) in [(names.outbox(), "SELECT,UPDATE,DELETE"), (names.lease(), "SELECT,UPDATE")] {
        let asked = format!(
            "SELECT string_agg(kind, ', ') FROM unnest('{{{rights}}}'::text[]) AS kind \
             WHERE NOT has_table_privilege({}, kind)",
            quote_literal(&table)
        );
        if let Some(missing) = connection.query(&asked).await?.first().and_then(|row| row.get(0)) {
            findings.push(missing_rights(missing, &table));
        }
    }
    Ok(findings)
}

fn missing_rights(missing: &str, table: &str) -> Finding {
    Finding::error(
        format!("the rights {missing} on {table} are missing"),
        format!("as the owner: GRANT {missing} ON {table} TO the user of the url"),
    )
}
