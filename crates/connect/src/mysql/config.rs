//! What the operator may set.

use serde::{Deserialize, Deserializer};

use super::url::ConnectOptions;
use crate::settings::Outbox;

/// `[source.NAME] kind = "mysql"`: the outbox of a MySQL or MariaDB database.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MySqlConfig {
    /// Where the database is and who connects: `mysql://user:password@host:3306/database?ssl-mode=...`.
    #[serde(deserialize_with = "connect_options")]
    pub url: ConnectOptions,
    /// The outbox: a table whose rows are events.
    pub outbox: Outbox,
    /// Always: the outbox is emptied by query.
    #[serde(default = "always", deserialize_with = "relay")]
    pub relay: bool,
}

impl MySqlConfig {
    /// The outbox of one database.
    pub fn new(url: ConnectOptions, outbox: Outbox) -> Self {
        Self { url, outbox, relay: always() }
    }
}

fn connect_options<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ConnectOptions, D::Error> {
    ConnectOptions::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

const fn always() -> bool {
    true
}

fn relay<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    if bool::deserialize(deserializer)? {
        return Ok(true);
    }
    Err(serde::de::Error::custom("the log of MySQL is not read yet: the outbox is always emptied by query"))
}
