//! The load on PostgreSQL: rows whose keys change too, a table that is truncated, and events of an outbox.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use sqlx::{Connection, Executor, PgConnection, Row};

use super::{KEYS, Shared, Writer};
use crate::checker::{History, Step};

/// The captured tables and, beside them, the history that the load keeps of them (not to be captured). Rows
/// are in `account` before the load begins, those that it will change among the others.
pub const TABLES: &str = "
    create table account (id bigint primary key, version bigint not null, note text);
    create table ledger (id bigint primary key, version bigint not null, note text);
    create table outbox (id uuid primary key default gen_random_uuid(), aggregatetype text not null,
        aggregateid text not null, type text not null, payload jsonb);
    create table history (seq bigserial primary key, stream text, id bigint, version bigint, op text);
    insert into account select n, 1, repeat('x', 200) from generate_series(0, 39999) n order by md5(n::text);
    insert into history (stream, id, version, op) select 'accounts', id, 1, 'read' from account;";

/// One writer; it knows its keys, as nobody else writes them.
pub struct Worker {
    pub url: String,
    /// Whether it works on `ledger`, which it truncates now and then; on `account` otherwise.
    pub truncates: bool,
    pub first: i64,
    /// Whether this transaction publishes by messages. Most do not: once a large one has rolled back a part
    /// after a message, the source has transactions sent whole.
    pub messages: bool,
    pub random: StdRng,
    pub shared: Shared,
}

/// The last version of a stream's key, and whether its row is there.
type Versions = HashMap<(String, i64), (i64, bool)>;

impl Writer for Worker {
    type Known = Versions;

    const BEGIN: &str = "begin;";
    const BACK: &str = "rollback to s;";

    fn random(&mut self) -> &mut StdRng {
        &mut self.random
    }

    fn step(&mut self, versions: &mut Versions, note: &str) -> String {
        match self.random.random_range(0..40) {
            0 if self.truncates => self.truncate(versions),
            1..=4 => self.publish(versions),
            5..=8 => self.change_key(versions, note),
            _ => self.change(versions, note),
        }
    }
}

impl Worker {
    /// Writes until it is stopped.
    pub async fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            if let Err(error) = self.work().await {
                // The server was killed, as kill tests do; it comes back.
                let own = |code: &str| code.starts_with("42") || code.starts_with("23");
                if error.as_database_error().and_then(|error| error.code()).is_some_and(|code| own(&code)) {
                    panic!("the load's own SQL is wrong: {error}");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    async fn work(&mut self) -> sqlx::Result<()> {
        let mut connection = PgConnection::connect(&self.url).await?;
        let mut versions = self.versions(&mut connection).await?;
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.messages = self.random.random_ratio(1, 8);
            let (sql, after, commits) = self.transaction(&versions);
            connection.execute(sqlx::AssertSqlSafe(sql)).await?;
            if commits {
                versions = after;
                self.shared.committed.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// What the database says of this worker's keys: a commit whose answer was lost may have happened.
    async fn versions(&self, connection: &mut PgConnection) -> sqlx::Result<Versions> {
        let sql = format!(
            "select distinct on (stream, id) stream, id, version, op not in ('delete', 'truncate') from history
             where id >= {} and id < {} order by stream, id, version desc",
            self.first,
            self.first + KEYS
        );
        let rows = connection.fetch_all(sqlx::AssertSqlSafe(sql)).await?;
        Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), (row.get(2), row.get(3)))).collect())
    }

    fn change(&mut self, versions: &mut Versions, note: &str) -> String {
        let (table, key) = (self.table(), self.key());
        let alive = self.alive(versions, key);
        let delete = alive && self.random.random_ratio(1, 4);
        let op = match (alive, delete) {
            (false, _) => "create",
            (true, false) => "update",
            (true, true) => "delete",
        };
        let (version, line) = next(versions, self.stream(), key, op);
        let change = match op {
            "create" => format!("insert into {table} values ({key}, {version}, '{note}')"),
            "update" => format!("update {table} set version = {version}, note = '{note}' where id = {key}"),
            _ => format!("delete from {table} where id = {key}"),
        };
        format!("{change};{line}")
    }

    /// The row of one key becomes that of another: a delete and a create.
    fn change_key(&mut self, versions: &mut Versions, note: &str) -> String {
        let (table, old, new) = (self.table(), self.key(), self.key());
        if !self.alive(versions, old) || self.alive(versions, new) {
            return self.change(versions, note);
        }
        let (_, deleted) = next(versions, self.stream(), old, "delete");
        let (version, created) = next(versions, self.stream(), new, "create");
        format!("update {table} set id = {new}, version = {version} where id = {old};{deleted}{created}")
    }

    /// All rows of the table go.
    fn truncate(&self, versions: &mut Versions) -> String {
        let keys: Vec<i64> =
            (self.first..self.first + KEYS).filter(|key| self.alive(versions, *key)).collect();
        let lines = keys.into_iter().map(|key| next(versions, self.stream(), key, "truncate").1);
        format!("truncate {};{}", self.table(), lines.collect::<String>())
    }

    /// An event, by a row of the outbox that goes at once, or by a message.
    fn publish(&mut self, versions: &mut Versions) -> String {
        let key = self.key();
        let (version, line) = next(versions, "notes", key, "event");
        let payload = format!("{{\"version\": {version}}}");
        if self.messages {
            return format!(
                "select pg_logical_emit_message(true, 'headwater', json_build_object('id', gen_random_uuid(),
                     'aggregatetype', 'notes', 'aggregateid', '{key}', 'type', 'noted', 'payload', '{payload}'::json)::text);{line}"
            );
        }
        format!(
            "insert into outbox (aggregatetype, aggregateid, type, payload) values ('notes', '{key}', 'noted', '{payload}');
             delete from outbox where aggregateid = '{key}';{line}"
        )
    }

    fn key(&mut self) -> i64 {
        self.first + self.random.random_range(0..KEYS)
    }

    fn alive(&self, versions: &Versions, key: i64) -> bool {
        versions.get(&(self.stream().to_owned(), key)).is_some_and(|(_, alive)| *alive)
    }

    fn table(&self) -> &'static str {
        if self.truncates { "ledger" } else { "account" }
    }

    fn stream(&self) -> &'static str {
        if self.truncates { "ledgers" } else { "accounts" }
    }
}

/// The key's next version, and the line of history that says so.
fn next(versions: &mut Versions, stream: &str, key: i64, op: &str) -> (i64, String) {
    let known = versions.entry((stream.to_owned(), key)).or_insert((0, false));
    *known = (known.0 + 1, !matches!(op, "delete" | "truncate"));
    let version = known.0;
    let line = format!(
        "insert into history (stream, id, version, op) values ('{stream}', {key}, {version}, '{op}');"
    );
    (version, line)
}

/// What was committed.
pub async fn history(url: &str) -> sqlx::Result<History> {
    let mut connection = PgConnection::connect(url).await?;
    let mut history = History::new();
    let rows = connection
        .fetch_all("select stream, id, version, op from history order by stream, id, version")
        .await?;
    for row in rows {
        let step = Step { version: Some(row.get(2)), op: row.get(3) };
        history.entry((row.get(0), row.get(1))).or_default().push(step);
    }
    Ok(history)
}
