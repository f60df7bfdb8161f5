//! What is set for a session.

use headwater_core::{Error, Kind, Result};

use super::error::POOLER;
use super::{Connection, Mode};
use crate::postgres::url::ConnectOptions;

/// Settings under which values have the canonical text of `ColumnType`, and names mean what they should:
/// without a search path nobody's function or operator takes the place of the server's own (CVE-2018-1058).
pub(super) const CANONICAL: [(&str, &str); 10] = [
    ("search_path", ""),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("TimeZone", "UTC"),
    ("IntervalStyle", "iso_8601"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "1"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
];

impl Connection {
    /// Makes the settings ours. They were asked for at the start; what stands before the server may have left them out, and
    /// then they are set, unless that would be for whoever a pooler lends the session next.
    pub(super) async fn make_canonical(
        &mut self,
        options: &ConnectOptions,
        mode: Mode,
        tls: bool,
    ) -> Result<()> {
        let canonical = CANONICAL.map(|(name, value)| format!("('{name}', '{value}')")).join(", ");
        let canonical = format!("(VALUES {canonical}) AS canonical (name, value)");
        // DateStyle has more to it.
        let missing = format!(
            "SELECT pg_catalog.count(*) FROM {canonical} WHERE \
             pg_catalog.split_part(pg_catalog.current_setting(name), ',', 1) OPERATOR(pg_catalog.<>) value"
        );
        if self.one(&missing).await?.as_deref() != Some("0") {
            // Nobody lends a session that reads the log.
            if mode == Mode::Sql && self.is_lent(options, tls).await? {
                let doing = format!("logging in to PostgreSQL at {options}");
                let why =
                    "a pooler lends a session of the server for one transaction only, without our settings";
                return Err(Error::new(Kind::Refused, doing).because(why).hint(POOLER));
            }
            self.query(&format!("SELECT pg_catalog.set_config(name, value, false) FROM {canonical}")).await?;
        }
        self.settle().await
    }

    /// Whether another connection beside this one has its session.
    async fn is_lent(&mut self, options: &ConnectOptions, tls: bool) -> Result<bool> {
        const SESSION: &str = "SELECT pg_catalog.pg_backend_pid()";
        let mut other = Self::logged_in(options, Mode::Sql, tls).await?;
        Ok(self.one(SESSION).await? == other.one(SESSION).await?)
    }

    async fn one(&mut self, sql: &str) -> Result<Option<String>> {
        Ok(self.query(sql).await?.first().and_then(|row| row.get(0)).map(str::to_owned))
    }

    /// Settings that not every server has.
    async fn settle(&mut self) -> Result<()> {
        let mut sql = "SELECT set_config(name, '0', false) FROM pg_settings \
            WHERE name IN ('idle_session_timeout', 'transaction_timeout')"
            .to_owned();
        // The bytes of such a database may be anything; the server would refuse those that are not UTF-8.
        if self.parameter("server_encoding") == Some("SQL_ASCII") {
            // One statement: the first releases of 14 take no more at a time where the log is read.
            sql += " UNION ALL SELECT set_config('client_encoding', 'SQL_ASCII', false)";
        }
        self.query(&sql).await.map(drop)
    }
}
