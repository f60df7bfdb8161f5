//! A database of a test, and the source that is to capture it.
#![allow(clippy::unwrap_used, dead_code, reason = "each test file uses a part of it")]

use headwater_connect::postgres::client::{Connection, Mode};
use headwater_connect::postgres::setup::{self, Prepared};
use headwater_connect::postgres::url::ConnectOptions;
use headwater_connect::postgres::{Names, PostgresConfig, State};
use headwater_core::{Error, Result};
use headwater_testkit::servers::{Database, Postgres};

/// A database, and the config and names of a source of it. Slots are the whole server's, so the source
/// is called like the database.
pub struct Place {
    /// The database.
    pub database: Database,
    /// The source's settings.
    pub config: PostgresConfig,
    /// Its names.
    pub names: Names,
}

impl Place {
    pub async fn new(sql: &str, tables: &[&str]) -> Self {
        Self::on(Postgres::shared().await.unwrap(), sql, tables).await
    }

    pub async fn on(server: &Postgres, sql: &str, tables: &[&str]) -> Self {
        let database = server.create_database().await.unwrap();
        database.execute(sql).await.unwrap();
        let config = PostgresConfig::new(ConnectOptions::parse(database.url()).unwrap(), tables);
        let names = config.names(database.name()).unwrap();
        Self { database, config, names }
    }

    /// As a new user without any rights, who may replicate if `replication`.
    pub async fn user(mut self, replication: bool) -> Self {
        let user = format!("user_{}", self.database.name());
        let right = if replication { "REPLICATION" } else { "NOREPLICATION" };
        self.database.execute(&format!("CREATE ROLE {user} LOGIN {right}")).await.unwrap();
        self.config.url.user = user;
        self
    }

    /// The server's major version.
    pub async fn version(&self) -> u32 {
        let server = setup::Server::read(&mut self.connect().await).await.unwrap();
        server.version / 10_000
    }

    pub async fn connect(&self) -> Connection {
        setup::connect(&self.config.url).await.unwrap()
    }

    pub async fn prepare(&self, stored: Option<&State>) -> Result<Prepared> {
        setup::prepare(&mut self.connect().await, &self.names, &self.config, stored).await
    }

    pub async fn error(&self) -> Error {
        self.prepare(None).await.unwrap_err()
    }

    /// The slot, made as a source makes it, and a checkpoint at its beginning.
    pub async fn slot(&self) -> State {
        let mut connection = self.connect().await;
        let created = setup::create_slot(&mut connection, &self.names.slot, false, false).await.unwrap();
        let server = setup::Server::read(&mut connection).await.unwrap();
        State {
            system_id: server.system_id,
            database: server.database,
            timeline: server.timeline,
            slot: self.names.slot.clone(),
            epoch: 1,
            confirmed: created.consistent_point,
            ..State::default()
        }
    }

    pub async fn query(&self, sql: &str) -> Vec<String> {
        let options = ConnectOptions::parse(self.database.unix_url()).unwrap();
        let mut connection = Connection::connect(&options, Mode::Sql).await.unwrap();
        connection.query("SET search_path = public").await.unwrap();
        let rows = connection.query(sql).await.unwrap();
        rows.iter().map(|row| row.text(0).unwrap().to_owned()).collect()
    }

    /// What is published: `publication table` lines.
    pub async fn published(&self) -> Vec<String> {
        self.query("SELECT pubname || ' ' || tablename FROM pg_publication_tables ORDER BY 1").await
    }
}
