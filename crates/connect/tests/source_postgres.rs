//! The PostgreSQL source does what every source must.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use async_trait::async_trait;
use headwater_connect::postgres::client::{Connection, Mode};
use headwater_connect::postgres::url::ConnectOptions;
use headwater_connect::postgres::{PostgresConfig, PostgresConnector};
use headwater_connect::settings::SnapshotMode;
use headwater_core::ports::Connector;
use headwater_testkit::servers::{self, Postgres};
use headwater_testkit::suites::source::{Capabilities, Database, Factory, Session};

struct Server;

#[async_trait]
impl Factory for Server {
    async fn database(&self) -> Box<dyn Database> {
        let database = Postgres::shared().await.unwrap().create_database().await.unwrap();
        Box::new(Place { database, data: tempfile::tempdir().unwrap() })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { concurrent_writers: true, tells_transactions: true }
    }
}

struct Place {
    database: servers::Database,
    data: tempfile::TempDir,
}

#[async_trait]
impl Database for Place {
    async fn session(&self) -> Box<dyn Session> {
        let options = ConnectOptions::parse(self.database.unix_url()).unwrap();
        let mut connection = Connection::connect(&options, Mode::Sql).await.unwrap();
        connection.query("SET search_path = public").await.unwrap();
        Box::new(OneSession { connection })
    }

    async fn connector(&self, tables: &[&str], snapshot: bool) -> Arc<dyn Connector> {
        let mut config = PostgresConfig::new(ConnectOptions::parse(self.database.url()).unwrap(), tables);
        config.snapshot = if snapshot { SnapshotMode::Initial } else { SnapshotMode::Never };
        config.slot = Some(self.database.name().to_owned());
        Arc::new(PostgresConnector::new("test", config, self.data.path()).unwrap())
    }

    fn full_identity(&self, table: &str) -> Option<String> {
        Some(format!("ALTER TABLE {table} REPLICA IDENTITY FULL"))
    }
}

struct OneSession {
    connection: Connection,
}

#[async_trait]
impl Session for OneSession {
    async fn execute(&mut self, sql: &str) {
        self.connection.query(sql).await.unwrap();
    }

    async fn query(&mut self, sql: &str) -> Vec<Vec<Option<String>>> {
        let rows = self.connection.query(sql).await.unwrap();
        rows.iter().map(|row| row.values().map(|value| value.map(str::to_owned)).collect()).collect()
    }
}

headwater_testkit::source_suite!(Server);
