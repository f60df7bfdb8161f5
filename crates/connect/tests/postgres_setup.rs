//! Getting a PostgreSQL database ready: what is made, what is refused, and what the hints say.
#![allow(clippy::unwrap_used)]

use headwater_connect::postgres::client::{Connection, Mode};
use headwater_connect::postgres::setup::{self, Prepared};
use headwater_connect::postgres::url::ConnectOptions;
use headwater_connect::postgres::{Names, PostgresConfig, State};
use headwater_connect::settings::{Outbox, SnapshotMode};
use headwater_core::{Error, Kind, Result};
use headwater_testkit::servers::{Database, Postgres};

/// A database, and the config and names of a source of it. Slots are the whole server's, so the source
/// is called like the database.
struct Place {
    server: &'static Postgres,
    database: Database,
    config: PostgresConfig,
    names: Names,
}

impl Place {
    async fn new(sql: &str, tables: &[&str]) -> Self {
        let server = Postgres::shared().await.unwrap();
        let database = server.create_database().await.unwrap();
        database.execute(sql).await.unwrap();
        let config = PostgresConfig::new(ConnectOptions::parse(database.url()).unwrap(), tables);
        let names = config.names(database.name()).unwrap();
        Self { server, database, config, names }
    }

    /// As a new user without any rights, who may replicate if `replication`.
    async fn user(mut self, replication: bool) -> Self {
        let user = format!("user_{}", self.database.name());
        let right = if replication { "REPLICATION" } else { "NOREPLICATION" };
        self.database.execute(&format!("CREATE ROLE {user} LOGIN {right}")).await.unwrap();
        self.config.url.user = user;
        self
    }

    async fn connect(&self) -> Connection {
        setup::connect(&self.config.url).await.unwrap()
    }

    async fn prepare(&self, stored: Option<&State>) -> Result<Prepared> {
        setup::prepare(&mut self.connect().await, &self.names, &self.config, stored).await
    }

    async fn error(&self) -> Error {
        self.prepare(None).await.unwrap_err()
    }

    /// The slot, made as a source makes it, and a checkpoint at its beginning.
    async fn slot(&self) -> State {
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
            snapshots: Default::default(),
            request: None,
        }
    }

    async fn query(&self, sql: &str) -> Vec<String> {
        let options = ConnectOptions::parse(self.database.unix_url()).unwrap();
        let mut connection = Connection::connect(&options, Mode::Sql).await.unwrap();
        let rows = connection.query(sql).await.unwrap();
        rows.iter().map(|row| row.text(0).unwrap().to_owned()).collect()
    }

    /// What is published: `publication table` lines.
    async fn published(&self) -> Vec<String> {
        self.query("SELECT pubname || ' ' || tablename FROM pg_publication_tables ORDER BY 1").await
    }
}

#[tokio::test]
async fn tables_without_identity_are_published_for_inserts_only() {
    let place = Place::new(
        "CREATE TABLE keyed (id int PRIMARY KEY); CREATE TABLE bare (a int); INSERT INTO bare VALUES (1)",
        &["public.*"],
    )
    .await;
    let ready = place.prepare(None).await.unwrap();
    let Names { publication, inserts, .. } = &place.names;
    assert_eq!(ready.publications, [publication.clone(), inserts.clone()]);
    assert_eq!(place.published().await, [format!("{publication} keyed"), format!("{inserts} bare")]);
    let whole: Vec<_> =
        ready.tables.iter().map(|table| (table.full_name(), table.inserts_only.is_none())).collect();
    assert_eq!(whole, [("public.bare".to_owned(), false), ("public.keyed".to_owned(), true)]);
    // What it is for: the owner's work goes on.
    place.database.execute("UPDATE bare SET a = 2; DELETE FROM bare").await.unwrap();
}
