//! The tables and the procedure of an outbox.

use headwater_core::ports::{Finding, LANES};
use headwater_core::{Error, Kind, Result};
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, Row as _};

use super::{KEY, NAME, Names, Queue, SLOTS, place_of_key, place_of_time};
use crate::mysql::errors::failed;
use crate::mysql::url::ConnectOptions;
use crate::outbox::{DROP_PATIENCE, check_name, held, unpublished};

/// The procedure's name.
pub(super) const PUBLISH: &str = "headwater_publish";

/// A UUID of version 7 (RFC 9562): 48 bits of time in milliseconds, the rest by chance.
const UUID7: &str = "LOWER(CONCAT(\
     INSERT(LPAD(HEX(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) DIV 1000), 12, '0'), 9, 0, '-'), \
     '-7', LEFT(SHA2(UUID(), 256), 3), '-', ELT(1 + FLOOR(RAND() * 4), '8', '9', 'a', 'b'), LEFT(SHA2(UUID(), 256), 3), '-', \
     LEFT(SHA2(UUID(), 256), 12)))";

/// The SQL that makes the outbox `table` (`schema.name`, or a name in the connection's database) and what
/// belongs to it, for the programs `mysql` and `mariadb`. A name that is too long is an error of kind `Config`.
pub fn script(table: &str) -> Result<String> {
    check_name(table)?;
    let names = Names::new(table);
    let tables: String = tables(&names).iter().map(|statement| format!("{statement};\n\n")).collect();
    Ok(format!("{tables}{STRICT};\nDELIMITER //\n{}//\nDELIMITER ;\n", procedure(&names)))
}

/// The SQL that takes the outbox and all that belongs to it away.
pub fn removal_script(table: &str) -> String {
    let names = Names::new(table);
    removal(&names).iter().map(|statement| format!("{statement};\n")).collect()
}

/// For so many seconds the removal waits for relays, once nobody publishes any more.
const REST_PATIENCE: u32 = 60;

/// A procedure keeps the mode that it was made in: what does not fit is refused, never cut off.
const STRICT: &str = "SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')";

fn tables(names: &Names) -> Vec<String> {
    let (lease, relay, slot) = (names.lease(), names.relay(), names.slot());
    let of_lanes = (0..LANES).map(|lane| format!("({lane})")).collect::<Vec<_>>().join(", ");
    let end = "ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin";
    let each = f64::from(SLOTS).sqrt() as u32;
    vec![
        outbox(names, end),
        format!(
            "-- Which relay works which lane.\n\
             CREATE TABLE {lease} (\n  \
               `lane` TINYINT UNSIGNED NOT NULL PRIMARY KEY,\n  \
               `relay` VARCHAR({NAME}),\n  \
               `epoch` BIGINT NOT NULL DEFAULT 0,\n  \
               `until` DATETIME(6) NOT NULL DEFAULT '1970-01-01'\n\
             ) {end}"
        ),
        format!("INSERT INTO {lease} (`lane`) VALUES {of_lanes}"),
        format!(
            "-- Which relays are alive.\n\
             CREATE TABLE {relay} (`relay` VARCHAR({NAME}) NOT NULL PRIMARY KEY, `until` DATETIME(6) NOT NULL) {end}"
        ),
        format!(
            "-- The locks of keys: nothing is ever written here.\n\
             CREATE TABLE {slot} (`slot` SMALLINT UNSIGNED NOT NULL PRIMARY KEY) {end}"
        ),
        format!(
            "INSERT INTO {slot} (`slot`) SELECT `number` FROM (WITH RECURSIVE n (n) AS \
             (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < {}) \
             SELECT a.n * {each} + b.n AS `number` FROM n AS a CROSS JOIN n AS b) AS slots",
            each - 1
        ),
    ]
}

fn outbox(names: &Names, end: &str) -> String {
    let mask = LANES - 1;
    let queue = |queue: Queue| queue.number();
    format!(
        "CREATE TABLE {outbox} (\n  \
           `seq` BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,   -- rises within a key in the order of commits\n  \
           `id` VARCHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT ({UUID7})\n    \
             CHECK (COALESCE(LENGTH(UNHEX(REPLACE(`id`, '-', ''))), 0) = 16),\n  \
           `stream` VARCHAR({NAME}) NOT NULL,\n  \
           `type` VARCHAR({NAME}) NOT NULL,\n  \
           `key` VARCHAR({KEY}),                               -- what the event is about; none: no order\n  \
           `payload` LONGTEXT CHECK (JSON_VALID(`payload`)),   -- JSON, kept as it is written\n  \
           `headers` LONGTEXT CHECK (JSON_VALID(`headers`) AND JSON_TYPE(`headers`) = 'OBJECT'),  -- of strings\n  \
           `version` INT NOT NULL DEFAULT 1,                   -- of the event's schema\n  \
           `created_at` DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),\n  \
           `lane` TINYINT UNSIGNED AS (IF(`key` IS NULL, CRC32(`id`), CRC32(`key`)) & {mask}) STORED,\n  \
           `state` ENUM ('new', 'waiting', 'retrying', 'parked', 'published', 'dropped') NOT NULL DEFAULT 'new',\n  \
           `attempts` INT NOT NULL DEFAULT 0,\n  \
           `next_try` DATETIME(6),\n  \
           `error` TEXT,\n  \
           `settled_at` DATETIME(6),\n  \
           -- In which queue the row stands, by state and lane, and where in it, by its time or its key: for the one index.\n  \
           `queue` TINYINT UNSIGNED AS (CASE `state` WHEN 'new' THEN `lane` WHEN 'waiting' THEN {waiting} + `lane`\n    \
             WHEN 'retrying' THEN {retrying} + `lane` WHEN 'parked' THEN {parked} + `lane` ELSE {done} END) STORED,\n  \
           `place` BIGINT AS ({place}) STORED,\n  \
           {WORK_KEY}\n\
         ) {end}",
        outbox = names.outbox(),
        waiting = queue(Queue::Waiting(0)),
        retrying = queue(Queue::Retrying(0)),
        parked = queue(Queue::Parked(0)),
        done = queue(Queue::Done),
        place = place(),
    )
}

/// What only the layout of an earlier version answers, which had a column `due` in the place of `place`.
pub(super) fn of_earlier(names: &Names) -> String {
    format!("SELECT `seq`, `queue`, `due` FROM {} LIMIT 0", names.outbox())
}

/// What mends it. A stored column is made by a copy of the table, for which publishers wait: a small one is copied at
/// once. The ALTER waits for no long transaction, as everybody would wait behind it.
pub(super) fn earlier(names: &Names) -> Finding {
    let (outbox, done) = (names.outbox(), Queue::Done.number());
    let hint = format!(
        "as the owner, while no relay of an earlier version runs. Publishers wait while the table is copied: delete first what \
         is published, until nothing of it is left:\n\
         DELETE FROM {outbox} WHERE `queue` = {done} LIMIT 1000;\n\
         then, again where it does not get the table within the time:\n\
         SET SESSION lock_wait_timeout = 5;\n\
         ALTER TABLE {outbox} DROP KEY `{WORK}`, DROP COLUMN `due`, ADD COLUMN `place` BIGINT AS ({}) STORED, \
         ADD {WORK_KEY};",
        place().replace("\n    ", " ")
    );
    Finding::error(format!("the outbox {} is as an earlier version made it", names.plain()), hint)
}

/// What an owner has to mend of an outbox that is there.
pub async fn to_mend(url: &ConnectOptions, table: &str) -> Result<Vec<Finding>> {
    let mut database = Database::connect(url, Names::new(table)).await?;
    let ask = of_earlier(&database.names);
    let found = database.run(&ask).await.is_ok().then(|| earlier(&database.names));
    database.leave().await;
    Ok(found.into_iter().collect())
}

/// What the column `place` is computed from: of rows that are new, or parked, nothing.
fn place() -> String {
    let (next_try, settled) = (place_of_time("`next_try`"), place_of_time("`settled_at`"));
    format!(
        "CASE `state` WHEN 'waiting' THEN {}\n    \
         WHEN 'retrying' THEN {next_try} WHEN 'published' THEN {settled} WHEN 'dropped' THEN {settled} END",
        place_of_key("")
    )
}

/// The index that every statement of a relay reads.
pub(super) const WORK: &str = "work";

/// Its definition.
pub(in crate::mysql) const WORK_KEY: &str = "KEY `work` (`queue`, `place`, `seq`)";

/// Publishes in the caller's transaction. The lock of the key is held until that ends.
fn procedure(names: &Names) -> String {
    format!(
        "CREATE PROCEDURE {publish} (\n  \
           p_stream VARCHAR({NAME}) CHARACTER SET utf8mb4, p_type VARCHAR({NAME}) CHARACTER SET utf8mb4,\n  \
           p_key VARCHAR({KEY}) CHARACTER SET utf8mb4, p_payload LONGTEXT CHARACTER SET utf8mb4,\n  \
           p_headers LONGTEXT CHARACTER SET utf8mb4, p_version INT, p_id VARCHAR(36) CHARACTER SET ascii)\n\
         MODIFIES SQL DATA SQL SECURITY INVOKER\n\
         COMMENT 'Headwater: publishes an event in the transaction of the caller; NULL stands for the default'\n\
         BEGIN\n  \
           DECLARE held SMALLINT UNSIGNED;\n  \
           IF p_id IS NULL THEN SET p_id = {UUID7}; END IF;\n  \
           IF p_key IS NOT NULL THEN\n    \
             SELECT `slot` INTO held FROM {slot} WHERE `slot` = (CRC32(p_key) & {mask}) FOR UPDATE;\n  \
           END IF;\n  \
           INSERT INTO {outbox} (`id`, `stream`, `type`, `key`, `payload`, `headers`, `version`)\n    \
             VALUES (p_id, p_stream, p_type, p_key, p_payload, p_headers, COALESCE(p_version, 1));\n\
         END",
        publish = names.publish(),
        slot = names.slot(),
        outbox = names.outbox(),
        mask = SLOTS - 1,
    )
}

fn removal(names: &Names) -> Vec<String> {
    let tables = [names.slot(), names.relay(), names.lease(), names.outbox()].join(", ");
    vec![format!("DROP PROCEDURE IF EXISTS {}", names.publish()), format!("DROP TABLE IF EXISTS {tables}")]
}

/// Makes the outbox where it is missing; says whether it was. One that is there is left as it is.
pub async fn install(url: &ConnectOptions, table: &str) -> Result<bool> {
    let names = Names::new(table);
    let mut database = Database::connect(url, names).await?;
    if database.exists().await? {
        return Ok(false);
    }
    check_name(table)?;
    database.is_new_enough().await?;
    if database.has_procedure().await? {
        let what =
            format!("a procedure {} is there that belongs to another outbox", database.names.publish());
        return Err(Error::new(Kind::Refused, what).hint("choose another database: one outbox for each"));
    }
    let statements = tables(&database.names);
    let procedure = procedure(&database.names);
    for statement in statements.iter().map(String::as_str).chain([STRICT, &procedure]) {
        if let Err(error) = database.run(statement).await {
            // A statement that makes a table cannot be rolled back. Nobody can have used these yet.
            for statement in removal(&database.names) {
                database.run(&statement).await.ok();
            }
            let doing = format!("making the outbox {}", database.names.plain());
            let hint = format!(
                "run the SQL of `headwater init URL --outbox {table} --print` as a user with the rights CREATE, DROP \
                 and CREATE ROUTINE"
            );
            return Err(Error::new(Kind::Refused, doing).because(error).hint(hint));
        }
    }
    database.leave().await;
    Ok(true)
}

/// Takes the outbox away, with the rows that are in it; says whether it was there. Refuses, unless told
/// otherwise, while rows wait to be published.
pub async fn remove(url: &ConnectOptions, table: &str, force: bool) -> Result<bool> {
    let mut database = Database::connect(url, Names::new(table)).await?;
    if !database.exists().await? {
        return Ok(false);
    }
    let outbox = database.names.outbox();
    let own = format!("SELECT `seq`, `queue`, `lane`, `state`, `settled_at` FROM {outbox} LIMIT 0");
    database.run(&own).await?;
    let rest = format!("FROM {outbox} FORCE INDEX (`{WORK}`) WHERE `queue` < {}", Queue::Done.number());
    // Counted while services go on publishing.
    if !force {
        let waiting = database.number(&format!("SELECT COUNT(*) {rest}")).await?;
        if waiting > 0 {
            return Err(unpublished(&database.names.plain(), Some(waiting.unsigned_abs())));
        }
    }
    // Whoever has published and not committed is waited for, and nobody writes to it until it is gone.
    database.run(&format!("SET SESSION lock_wait_timeout = {DROP_PATIENCE}")).await?;
    database.run(&format!("LOCK TABLES {outbox} WRITE")).await.map_err(|error| match error.kind() {
        Kind::Busy => held(&database.names.plain(), error),
        _ => error,
    })?;
    if !force && database.number(&format!("SELECT EXISTS (SELECT 1 {rest})")).await? != 0 {
        return Err(unpublished(&database.names.plain(), None));
    }
    database.run(&format!("DROP TABLE {outbox}")).await?;
    database.run("UNLOCK TABLES").await?;
    database.run(&format!("SET SESSION lock_wait_timeout = {REST_PATIENCE}")).await?;
    for statement in removal(&database.names) {
        database.run(&statement).await?;
    }
    database.leave().await;
    Ok(true)
}

/// A connection that makes things.
struct Database {
    connection: MySqlConnection,
    names: Names,
}

impl Database {
    async fn connect(url: &ConnectOptions, names: Names) -> Result<Self> {
        let connection = MySqlConnection::connect_with(&url.sqlx()).await;
        let connection =
            connection.map_err(|error| failed(error, &format!("connecting to {url}"), &names.plain()))?;
        Ok(Self { connection, names })
    }

    async fn leave(self) {
        self.connection.close().await.ok();
    }

    async fn run(&mut self, sql: &str) -> Result<()> {
        let done = sqlx::Executor::execute(&mut self.connection, sqlx::raw_sql(AssertSqlSafe(sql))).await;
        let doing = || sql.lines().find(|line| !line.starts_with("--")).unwrap_or_default().to_owned();
        done.map(drop).map_err(|error| failed(error, &doing(), &self.names.plain()))
    }

    async fn number(&mut self, sql: &str) -> Result<i64> {
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut self.connection).await;
        let number = row.and_then(|row| row.try_get(0));
        number.map_err(|error| failed(error, "looking at the database", &self.names.plain()))
    }

    async fn exists(&mut self) -> Result<bool> {
        let tables = format!(
            "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = {} AND TABLE_NAME = {}",
            self.schema(),
            literal(&self.names.name)
        );
        Ok(self.number(&tables).await? > 0)
    }

    async fn has_procedure(&mut self) -> Result<bool> {
        let procedures = format!(
            "SELECT COUNT(*) FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {} AND ROUTINE_NAME = '{PUBLISH}'",
            self.schema()
        );
        Ok(self.number(&procedures).await? > 0)
    }

    fn schema(&self) -> String {
        self.names.schema.as_deref().map_or_else(|| "DATABASE()".to_owned(), literal)
    }

    /// Older ones have no CHECK, or no expressions as defaults.
    async fn is_new_enough(&mut self) -> Result<()> {
        let row = sqlx::query("SELECT VERSION()").fetch_one(&mut self.connection).await;
        let version: sqlx::Result<String> = row.and_then(|row| row.try_get(0));
        let version =
            version.map_err(|error| failed(error, "asking for the server's version", &self.names.plain()))?;
        if supported(&version) {
            return Ok(());
        }
        let what = format!("the server is version {version}");
        Err(Error::new(Kind::Refused, what).hint("an outbox needs MySQL 8.0.16 or MariaDB 10.6, or newer"))
    }
}

fn supported(version: &str) -> bool {
    let numbers = version.split(|other: char| !other.is_ascii_digit()).map_while(|part| part.parse().ok());
    let numbers: Vec<u32> = numbers.take(3).collect();
    let oldest: &[u32] = if version.contains("MariaDB") { &[10, 6] } else { &[8, 0, 16] };
    numbers.as_slice() >= oldest
}

/// A text as SQL writes it, whatever `sql_mode` says of backslashes.
fn literal(text: &str) -> String {
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("CONVERT(x'{hex}' USING utf8mb4)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_servers_are_told_from_new_ones() {
        for new in [
            "8.0.16",
            "8.4.3-log",
            "9.7.4-2",
            "10.6.0-MariaDB",
            "10.11.19-MariaDB-0+deb12u1",
            "11.8.2-MariaDB",
        ] {
            assert!(supported(new), "{new}");
        }
        for old in ["5.7.44", "8.0.15", "10.5.29-MariaDB", ""] {
            assert!(!supported(old), "{old}");
        }
    }
}
