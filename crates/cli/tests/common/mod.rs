//! What the end-to-end tests share: a config in a directory, the binary, and tables rebuilt from events.

#![allow(dead_code)] // each test binary uses a part of it
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // clippy.toml knows tests by their attribute only

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_connect::embedded::{EmbeddedBus, EmbeddedConfig};
use headwater_core::ports::{Bus, Delivery, Start, Subscribe, Subscription};
use headwater_testkit::binary::Headwater;
use headwater_testkit::servers::{Database, free_port};
use serde_json::Value;
use sqlx::{Executor, Row};

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_headwater"))
}

/// A config file and its data_dir, in a directory that goes with the test.
pub struct Place {
    /// The directory.
    pub dir: tempfile::TempDir,
    /// Where `[http]` listens.
    pub listen: String,
}

impl Place {
    /// Writes `headwater.toml`: `sections` below data_dir and `[http]`.
    pub fn new(sections: &str) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap(), listen: format!("127.0.0.1:{}", free_port()) };
        place.configure(sections);
        place
    }

    /// Writes it anew.
    pub fn configure(&self, sections: &str) {
        let (data, listen) = (self.data(), &self.listen);
        let head = format!("data_dir = \"{}\"\n[http]\nlisten = \"{listen}\"\n", data.display());
        std::fs::write(self.config(), head + sections).unwrap();
    }

    /// The config file.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("headwater.toml")
    }

    /// The data_dir.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// `headwater run` with it; what it prints goes to headwater.log.
    pub fn start(&self) -> Headwater {
        let config = self.config();
        Headwater::start(
            program(),
            &["run", config.to_str().unwrap()],
            &self.dir.path().join("headwater.log"),
        )
    }

    /// `headwater run`, ready.
    pub async fn run(&self) -> Headwater {
        let mut headwater = self.start();
        headwater.ready(&self.listen, PATIENCE).await.unwrap();
        headwater
    }

    /// What `/status` says.
    pub async fn status(&self) -> Value {
        let (_, body) = headwater_testkit::binary::get(&self.listen, "/status").await.unwrap();
        serde_json::from_str(&body).unwrap()
    }

    /// A reader of streams of the embedded bus, from their beginning.
    pub async fn read(&self, streams: &[&str]) -> Box<dyn Subscription> {
        let bus = EmbeddedBus::open_reader(&self.data(), EmbeddedConfig::default()).await.unwrap();
        subscribe(&bus, streams).await
    }
}

/// Reads streams from their beginning, without a group.
pub async fn subscribe(bus: &dyn Bus, streams: &[&str]) -> Box<dyn Subscription> {
    let streams: Vec<Arc<str>> = streams.iter().map(|stream| (*stream).into()).collect();
    bus.subscribe(Subscribe { streams, group: None, start: Start::Beginning }).await.unwrap()
}

/// Tables as their events tell them: stream, then partition and key, then the row.
#[derive(Debug, Default)]
pub struct Tables(BTreeMap<String, BTreeMap<(u32, String), Value>>);

impl Tables {
    /// Reads events until `done` says so; panics with `what` when that takes too long.
    pub async fn until(
        &mut self,
        what: &str,
        events: &mut dyn Subscription,
        mut done: impl FnMut(&Self) -> bool,
    ) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
            let Ok(delivery) = tokio::time::timeout(Duration::from_millis(200), events.next()).await else {
                continue;
            };
            if let Delivery::Batch { records, .. } = delivery.unwrap() {
                for record in records {
                    let payload = record.event.payload.as_deref().unwrap();
                    let partition = record.event.partition.unwrap();
                    self.apply(&record.event.stream, partition, &serde_json::from_slice(payload).unwrap());
                }
            }
        }
    }

    fn apply(&mut self, stream: &str, partition: u32, event: &Value) {
        let table = self.0.entry(stream.to_owned()).or_default();
        let key = (partition, event["key"].to_string());
        match event["op"].as_str().unwrap() {
            "delete" => drop(table.remove(&key)),
            // Each partition has its own: the barrier stands between the events of that partition.
            "truncate" => table.retain(|(other, _), _| *other != partition),
            _ => {
                let mut row = event["after"].clone();
                for column in event["unchanged"].as_array().into_iter().flatten() {
                    let column = column.as_str().unwrap();
                    row[column] = table.get(&key).map_or(Value::Null, |old| old[column].clone());
                }
                table.insert(key, texts(row));
            }
        }
    }

    /// The rows of a stream, in no order.
    pub fn rows(&self, stream: &str) -> Vec<String> {
        let mut rows: Vec<String> =
            self.0.get(stream).into_iter().flatten().map(|(_, row)| row.to_string()).collect();
        rows.sort();
        rows
    }
}

/// Numbers as their text, so that a number and PostgreSQL's text of it compare.
fn texts(mut row: Value) -> Value {
    for value in row.as_object_mut().unwrap().values_mut() {
        if value.is_number() || value.is_boolean() {
            *value = Value::String(value.to_string());
        }
    }
    row
}

/// The rows of a PostgreSQL table in the same shape, in no order.
pub async fn rows_of(database: &Database, table: &str) -> Vec<String> {
    let mut connection = database.connect().await.unwrap();
    let columns = format!(
        "select string_agg(case when data_type like 'timestamp%' then
             format('to_char(%1$I, ''YYYY-MM-DD\"T\"HH24:MI:SS'') as %1$I', column_name)
             else format('%1$I::text', column_name) end, ', ')
         from information_schema.columns where table_name = '{table}'"
    );
    let columns: String = connection.fetch_one(sqlx::AssertSqlSafe(columns)).await.unwrap().get(0);
    let sql = format!("select to_json(t)::text from (select {columns} from {table}) t");
    let rows = connection.fetch_all(sqlx::AssertSqlSafe(sql)).await.unwrap();
    let parse = |row: sqlx::postgres::PgRow| {
        serde_json::from_str::<Value>(&row.get::<String, _>(0)).unwrap().to_string()
    };
    let mut rows: Vec<String> = rows.into_iter().map(parse).collect();
    rows.sort();
    rows
}
