//! Where something may be set aside.

use std::path::Path;

use headwater_cli::config::{self, SourceConfig};
use headwater_connect::mysql;
use headwater_connect::mysql::inbox::MySqlInbox;
use headwater_connect::mysql::outbox::MySqlOutboxStore;
use headwater_connect::postgres::inbox::PostgresInbox;
use headwater_connect::postgres::outbox::PostgresOutboxStore;
use headwater_connect::sqlite;
use headwater_connect::sqlite::inbox::SqliteInbox;
use headwater_connect::sqlite::outbox::SqliteOutboxStore;
use headwater_core::ports::Shelf;
use headwater_core::{Error, Kind, Result, ResultExt};
use sqlx::sqlite::SqliteConnectOptions;

use super::pipeline::Pipeline;
use crate::args::WhichArgs;
use crate::wiring::PUSHES;

/// One place, and what kind of place it is.
pub struct Place {
    /// `pipeline`, `outbox`, `inbox` or `push`.
    pub kind: &'static str,
    /// What is set aside there.
    pub shelf: Box<dyn Shelf>,
}

/// The places that are asked: a consumer's inbox where its database is named, otherwise all that the config
/// names.
pub async fn of(which: &WhichArgs) -> Result<Vec<Place>> {
    if let Some(url) = &which.inbox {
        return Ok(vec![Place { kind: "inbox", shelf: inbox(url, &which.inbox_schema).await? }]);
    }
    let config = config::load(&which.config.config)?;
    let mut places = Vec::new();
    for (name, source) in config.sources.iter().filter(|(_, source)| source.is_relayed()) {
        let Some(outbox) = source.outbox() else { continue };
        let shelf: Box<dyn Shelf> = match source {
            SourceConfig::Postgres(config) => {
                Box::new(PostgresOutboxStore::new(&config.url, &outbox.table).shelf(name))
            }
            SourceConfig::MySql(config) => {
                Box::new(MySqlOutboxStore::new(&config.url, &outbox.table).shelf(name))
            }
            SourceConfig::Sqlite(config) => {
                Box::new(SqliteOutboxStore::new(&config.path, &outbox.table).shelf(name))
            }
        };
        places.push(Place { kind: "outbox", shelf });
    }
    // Without the file nothing was ever parked, and a question should not make one.
    if config.data_dir.join("parked.db").exists() {
        places.push(Place { kind: "pipeline", shelf: Box::new(Pipeline::open(&config).await?) });
    }
    let pushes = config.data_dir.join(PUSHES);
    if pushes.exists() {
        places.push(Place { kind: "push", shelf: sqlite_inbox(&pushes).await? });
    }
    Ok(places)
}

async fn inbox(url: &str, schema: &str) -> Result<Box<dyn Shelf>> {
    let doing = || "opening the database of the inbox".to_owned();
    match url.split(':').next().unwrap_or_default() {
        "sqlite" => sqlite_inbox(&sqlite::file_of(url)).await,
        "postgres" | "postgresql" => {
            let pool = sqlx::PgPool::connect(url).await.doing(Kind::Unavailable, doing)?;
            Ok(Box::new(PostgresInbox::in_schema(pool, schema)))
        }
        "mysql" | "mariadb" => {
            let options = mysql::url::ConnectOptions::parse(url)?.sqlx();
            let pool = sqlx::MySqlPool::connect_with(options).await.doing(Kind::Unavailable, doing)?;
            Ok(Box::new(MySqlInbox::new(pool)))
        }
        _ => Err(Error::new(Kind::Config, "--inbox is not the URL of a database that has an inbox").hint(
            "write sqlite:///path/to/file.db, postgres://user@host/database or mysql://user@host/database",
        )),
    }
}

async fn sqlite_inbox(file: &Path) -> Result<Box<dyn Shelf>> {
    let options = SqliteConnectOptions::new().filename(file).create_if_missing(false);
    let pool = sqlx::SqlitePool::connect_with(options).await;
    let pool = pool.doing(Kind::Config, || format!("opening {}", file.display()))?;
    Ok(Box::new(SqliteInbox::new(pool)))
}
