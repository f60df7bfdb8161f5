//! The tables of an inbox.

use headwater_core::{Error, Kind, Result};
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection};

use crate::mysql::url::ConnectOptions;
use crate::sqlx_errors::SqlxExt;

/// The SQL that makes the tables of an inbox. What is there already is left as it is.
pub const SCRIPT: &str = "\
CREATE TABLE IF NOT EXISTS headwater_inbox (
    consumer VARCHAR(255) NOT NULL,
    event_id BINARY(16) NOT NULL,
    handled_at DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    taken BIGINT NOT NULL DEFAULT 0, -- by which transaction
    PRIMARY KEY (consumer, event_id),
    KEY headwater_inbox_handled_at (consumer, handled_at)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
CREATE TABLE IF NOT EXISTS headwater_cursor (
    consumer VARCHAR(255) NOT NULL,
    stream VARCHAR(255) NOT NULL,
    `partition` INT NOT NULL,
    `offset` BIGINT NOT NULL,
    PRIMARY KEY (consumer, stream, `partition`)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
CREATE TABLE IF NOT EXISTS headwater_parked (
    seq BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    consumer VARCHAR(255) NOT NULL,
    stream VARCHAR(255) NOT NULL,
    `partition` INT NOT NULL,
    `offset` BIGINT NOT NULL,
    event_id BINARY(16) NOT NULL,
    `key` LONGBLOB, -- what keeps its order and waits; event_key is the event's own
    key_hash BINARY(32), -- SHA-256 of the key, for the index
    event_key LONGBLOB,
    type VARCHAR(1000) NOT NULL,
    headers LONGTEXT NOT NULL, -- [[name, value], ...]
    payload LONGBLOB,
    time BIGINT NOT NULL, -- microseconds since 1970
    state ENUM ('parked', 'waiting', 'retrying') NOT NULL,
    attempts INT NOT NULL DEFAULT 0,
    error TEXT,
    next_try DATETIME(6),
    parked_at DATETIME(6) NOT NULL,
    KEY headwater_parked_key (consumer, stream, key_hash, seq),
    KEY headwater_parked_retrying (consumer, state, next_try)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
";

/// Makes the tables of an inbox in the database of the URL where they are missing; says whether any was.
pub async fn install(url: &ConnectOptions) -> Result<bool> {
    let connection = MySqlConnection::connect_with(&url.sqlx()).await;
    let mut connection = connection.sqlx(&format!("connecting to {url}"))?;
    let count = "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() \
         AND TABLE_NAME IN ('headwater_inbox', 'headwater_cursor', 'headwater_parked')";
    let there = sqlx::query_scalar::<_, i64>(count).fetch_one(&mut connection).await;
    let missing = there.sqlx("looking for the tables of the inbox")? < 3;
    if missing {
        let made = sqlx::Executor::execute(&mut connection, sqlx::raw_sql(AssertSqlSafe(SCRIPT))).await;
        made.map_err(|error| {
            Error::new(Kind::Refused, "making the tables of the inbox")
                .because(error)
                .hint("run the SQL of `headwater init URL --inbox --print` as a user with the right CREATE")
        })?;
    }
    connection.close().await.ok();
    Ok(missing)
}
