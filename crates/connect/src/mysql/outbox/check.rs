//! Whether an outbox is ready for relays.

use headwater_core::ports::Finding;
use sqlx::{AssertSqlSafe, MySqlPool, Row};

use super::layout::{WORK, earlier, of_earlier};
use super::{Names, Queue};
use crate::lent::Lent;
use crate::mysql::errors::{RIGHTS, number};

/// No more rows are counted.
const MANY: i64 = 100_000;

/// Looks at its tables, the rights on them, what waits in it, and who works it.
pub(super) async fn check(pool: &MySqlPool, names: &Names) -> sqlx::Result<Vec<Finding>> {
    // A server that is not there is said at once.
    Lent::of(pool).await?.back();
    let of_earlier = sqlx::query(AssertSqlSafe(of_earlier(names))).persistent(false);
    if of_earlier.fetch_all(pool).await.is_ok() {
        return Ok(vec![earlier(names)]);
    }
    // The names of the columns tell whether it is this layout; where it is not, the error says so.
    let layout = format!(
        "SELECT o.`seq`, o.`queue`, o.`place`, l.`epoch`, r.`until` FROM {} AS o, {} AS l, {} AS r LIMIT 0",
        names.outbox(),
        names.lease(),
        names.relay()
    );
    sqlx::query(AssertSqlSafe(layout)).fetch_all(pool).await?;
    let mut findings = rights(pool, names).await?;
    if findings.is_empty() {
        let text = format!("the outbox {} is there, with the rights that a relay needs", names.plain());
        findings.push(Finding::ok(text));
    }
    if sqlx::query_scalar("SELECT @@GLOBAL.read_only <> 0").fetch_one(pool).await? {
        findings.push(Finding::error(
            "the server takes no writes: read_only is on, as on a replica",
            "name the primary in the url: a relay writes down what it has published",
        ));
    }
    findings.push(backlog(pool, names).await?);
    let parked = count(pool, names, Queue::Parked(0), Queue::Done).await?;
    if parked > 0 {
        findings.push(Finding::warning(
            format!("{parked} of its events are parked, and hold back the later ones of their keys"),
            "`headwater parked` says why; `headwater parked retry` lets them go",
        ));
    }
    findings.push(workers(pool, names).await?);
    Ok(findings)
}

/// A statement is explained only to those who may run it.
async fn rights(pool: &MySqlPool, names: &Names) -> sqlx::Result<Vec<Finding>> {
    let (outbox, lease, relay) = (names.outbox(), names.lease(), names.relay());
    let needed = [
        ("UPDATE", &outbox, format!("UPDATE {outbox} SET `attempts` = 0 WHERE `seq` = 0")),
        ("DELETE", &outbox, format!("DELETE FROM {outbox} WHERE `seq` = 0")),
        ("UPDATE", &lease, format!("UPDATE {lease} SET `epoch` = 0 WHERE `lane` = 99")),
        ("INSERT", &relay, format!("INSERT INTO {relay} VALUES ('', UTC_TIMESTAMP(6))")),
        ("UPDATE", &relay, format!("UPDATE {relay} SET `until` = UTC_TIMESTAMP(6) WHERE `relay` = ''")),
        ("DELETE", &relay, format!("DELETE FROM {relay} WHERE `relay` = ''")),
    ];
    let mut findings = Vec::new();
    for (right, table, statement) in needed {
        let explain = format!("EXPLAIN {statement}");
        match sqlx::query(AssertSqlSafe(explain)).persistent(false).fetch_all(pool).await {
            Err(error) if number(&error).is_some_and(|number| RIGHTS.contains(&number)) => {
                findings.push(Finding::error(
                    format!("the right {right} on {table} is missing"),
                    format!("as an administrator: GRANT {right} ON {table} TO the user of the url"),
                ));
            }
            explained => drop(explained?),
        }
    }
    Ok(findings)
}

async fn backlog(pool: &MySqlPool, names: &Names) -> sqlx::Result<Finding> {
    let waiting = count(pool, names, Queue::New(0), Queue::Retrying(0)).await?;
    Ok(Finding::ok(match waiting {
        0 => "nothing in it waits to be published".to_owned(),
        1..MANY => format!("{waiting} events in it wait to be published"),
        _ => format!("{MANY} events or more in it wait to be published"),
    }))
}

/// How many rows are in some queues.
async fn count(pool: &MySqlPool, names: &Names, first: Queue, end: Queue) -> sqlx::Result<i64> {
    let sql = format!(
        "SELECT COUNT(*) FROM (SELECT 1 FROM {} FORCE INDEX (`{WORK}`) WHERE `queue` >= {} AND `queue` < {} \
         LIMIT {MANY}) AS waits",
        names.outbox(),
        first.number(),
        end.number()
    );
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(pool).await
}

/// Whose lanes they are.
async fn workers(pool: &MySqlPool, names: &Names) -> sqlx::Result<Finding> {
    let sql = format!(
        "SELECT `relay`, COUNT(*) FROM {} WHERE `until` > UTC_TIMESTAMP(6) AND `relay` IS NOT NULL \
         GROUP BY `relay` ORDER BY `relay`",
        names.lease()
    );
    let mut held = Vec::new();
    for row in sqlx::query(AssertSqlSafe(sql)).fetch_all(pool).await? {
        let (relay, lanes): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
        held.push(format!("{relay} ({lanes} lanes)"));
    }
    Ok(Finding::ok(match held.is_empty() {
        true => "no relay works it now".to_owned(),
        false => format!("relays that work it now: {}", held.join(", ")),
    }))
}
