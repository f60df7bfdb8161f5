//! What is missing for a relay to work.

use headwater_core::ports::Finding;
use sqlx::{AssertSqlSafe, Row, SqlitePool};

use super::{Names, layout};
use crate::sqlite::install::SHARED_LOCK;
use crate::store::now;

/// Counting ends here.
const MANY: i64 = 10_000;

/// Looks, and changes nothing.
pub(super) async fn check(pool: &SqlitePool, names: &Names) -> sqlx::Result<Vec<Finding>> {
    let outbox = names.outbox();
    // The names of the columns tell whether it is this layout; where it is not, the error says so.
    let layout = format!("SELECT seq, state, attempts, next_try, error, settled_at FROM {outbox} LIMIT 0");
    sqlx::query(AssertSqlSafe(layout)).fetch_all(pool).await?;
    let missing = indexes(pool, names).await?;
    if !missing.is_empty() {
        return Ok(missing);
    }
    let mut findings = vec![Finding::ok(format!("the outbox {outbox} is there")), Finding::ok(SHARED_LOCK)];
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(pool).await?;
    if !mode.eq_ignore_ascii_case("wal") {
        findings.push(Finding::warning(
            format!("journal mode is {mode}: readers and writers wait for each other"),
            "run in the database: PRAGMA journal_mode = WAL",
        ));
    }
    let waits = count(pool, names, "new", "state = 'new'").await?
        + count(pool, names, "waiting", "state = 'waiting'").await?;
    findings.push(Finding::ok(match waits {
        0 => "nothing in it waits to be published".to_owned(),
        1..MANY => format!("{waits} events in it wait to be published"),
        _ => format!("{MANY} events or more in it wait to be published"),
    }));
    let parked = "state IN ('retrying', 'parked') AND state = 'parked'";
    let parked = count(pool, names, "heads", parked).await?;
    if parked > 0 {
        findings.push(Finding::warning(
            format!("{parked} of its events are parked, and hold back the later ones of their keys"),
            "`headwater parked` says why; `headwater parked retry` lets them go",
        ));
    }
    findings.push(worker(pool, names).await?);
    Ok(findings)
}

/// Statements name the indexes that they go by.
async fn indexes(pool: &SqlitePool, names: &Names) -> sqlx::Result<Vec<Finding>> {
    let there = "SELECT count(*) FROM sqlite_schema WHERE type = 'index' AND name = ? COLLATE NOCASE";
    let mut findings = Vec::new();
    for (name, sql) in layout::indexes(names) {
        if sqlx::query_scalar::<_, i64>(there).bind(&*name).fetch_one(pool).await? == 0 {
            let text = format!("the outbox {} has no index {name}", names.outbox());
            findings.push(Finding::error(text, format!("run in the database: {sql}")));
        }
    }
    Ok(findings)
}

async fn count(pool: &SqlitePool, names: &Names, index: &str, which: &str) -> sqlx::Result<i64> {
    let (outbox, index) = (names.outbox(), names.part(index));
    let sql = format!(
        "SELECT count(*) FROM (SELECT 1 FROM {outbox} INDEXED BY {index} WHERE {which} LIMIT {MANY})"
    );
    sqlx::query(AssertSqlSafe(sql)).fetch_one(pool).await?.try_get(0)
}

/// Who empties it.
async fn worker(pool: &SqlitePool, names: &Names) -> sqlx::Result<Finding> {
    let sql = format!("SELECT relay FROM {} WHERE until > ? AND relay IS NOT NULL", names.lease());
    let relay: Option<String> =
        sqlx::query_scalar(AssertSqlSafe(sql)).bind(now() / 1_000).fetch_optional(pool).await?;
    Ok(match relay {
        None => Finding::ok("no relay works it now"),
        Some(relay) if relay.starts_with(super::TRIGGERS) => Finding::warning(
            format!("it is being read by triggers now ({relay})"),
            "a relay has nothing to do while that runs: stop it, or leave out `relay`",
        ),
        Some(relay) => Finding::ok(format!("the relay {relay} works it now")),
    })
}
