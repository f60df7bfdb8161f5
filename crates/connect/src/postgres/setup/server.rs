//! What the server is, and whether it can replicate at all.

use headwater_core::{Error, Kind, Result};

use crate::postgres::client::{Connection, Mode, PgError, quote_ident};
use crate::postgres::lsn;
use crate::postgres::url::ConnectOptions;

/// The first version that has all that we use: streaming of transactions in progress.
const OLDEST: u32 = 140_000;

/// The first version that decodes its log on a standby.
const DECODES_ON_STANDBY: u32 = 160_000;

/// The first version that publishes generated columns.
const PUBLISHES_GENERATED: u32 = 180_000;

/// A server and the database that we are connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `server_version_num`: 150004 is 15.4.
    pub version: u32,
    /// The system identifier: tells this cluster's log from every other's.
    pub system_id: String,
    /// The timeline, which rises with every promotion of a standby.
    pub timeline: u32,
    /// The end of the flushed log.
    pub end: u64,
    /// The database.
    pub database: String,
    /// The user that is logged in.
    pub user: String,
    /// `server_encoding`; values come in UTF-8 except where it is `SQL_ASCII`.
    pub encoding: String,
    /// `wal_level`.
    pub wal_level: String,
    /// Whether it is a standby.
    pub standby: bool,
}

/// Connects for replication; SQL can be run on the connection too. An error's hint says what to grant.
pub async fn connect(options: &ConnectOptions) -> Result<Connection> {
    let user = &options.user;
    Connection::connect(options, Mode::Replication).await.map_err(|error| {
        let hint = match PgError::code_of(&error) {
            Some("42501") => format!("run as a superuser: ALTER ROLE {} REPLICATION;", quote_ident(user)),
            Some("53300") => "raise max_wal_senders (and max_connections) in postgresql.conf and restart PostgreSQL, or stop a replication that is no longer needed: SELECT * FROM pg_stat_replication;".to_owned(),
            Some("28P01") => format!("the password for user \"{user}\" is wrong"),
            Some("28000") => format!("let user \"{user}\" in with a line in pg_hba.conf"),
            Some("3D000") => "name a database that exists in the url".to_owned(),
            _ => return error,
        };
        error.hint(hint)
    })
}

impl Server {
    /// Asks the server who it is, on a connection made by [`connect`].
    pub async fn read(connection: &mut Connection) -> Result<Self> {
        let missing = || Error::new(Kind::Decode, "PostgreSQL did not say who it is");
        let system = connection.query("IDENTIFY_SYSTEM").await?;
        let system = system.first().ok_or_else(missing)?;
        let rows = connection
            .query(
                "SELECT current_setting('server_version_num'), current_database(), current_user, \
                 current_setting('server_encoding'), current_setting('wal_level'), pg_is_in_recovery()",
            )
            .await?;
        let row = rows.first().ok_or_else(missing)?;
        Ok(Self {
            version: row.number(0)?,
            system_id: system.text(0)?.to_owned(),
            timeline: system.number(1)?,
            end: lsn::parse(system.text(2)?)?,
            database: row.text(1)?.to_owned(),
            user: row.text(2)?.to_owned(),
            encoding: row.text(3)?.to_owned(),
            wal_level: row.text(4)?.to_owned(),
            standby: row.is_true(5),
        })
    }

    /// Whether it can decode its log for us; if not, what to change.
    pub fn ready(&self) -> Result<()> {
        let major = self.version / 10_000;
        if self.version < OLDEST {
            return Err(Error::new(Kind::Refused, format!("PostgreSQL {major} is too old"))
                .hint("Headwater needs PostgreSQL 14 or newer"));
        }
        if self.wal_level != "logical" {
            return Err(Error::new(Kind::Refused, format!("wal_level is \"{}\", not \"logical\"", self.wal_level))
                .hint("run as a superuser: ALTER SYSTEM SET wal_level = logical; then restart PostgreSQL (on Amazon RDS: set rds.logical_replication = 1 and reboot)"));
        }
        if self.standby && self.version < DECODES_ON_STANDBY {
            return Err(Error::new(
                Kind::Refused,
                format!(
                    "this server is a standby, and PostgreSQL {major} decodes its log on the primary only"
                ),
            )
            .hint("let the url name the primary"));
        }
        Ok(())
    }

    /// Whether stored generated columns are published; if not, snapshots leave them out too.
    pub fn publishes_generated(&self) -> bool {
        self.version >= PUBLISHES_GENERATED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(version: u32, wal_level: &str, standby: bool) -> Server {
        Server {
            version,
            system_id: "1".into(),
            timeline: 1,
            end: 0,
            database: "d".into(),
            user: "u".into(),
            encoding: "UTF8".into(),
            wal_level: wal_level.into(),
            standby,
        }
    }

    #[test]
    fn versions_levels_and_standbys() {
        for version in [140_000, 150_012, 160_000, 170_004, 180_001] {
            server(version, "logical", false).ready().unwrap();
        }
        server(160_001, "logical", true).ready().unwrap();
        for (unready, part) in [
            (server(130_020, "logical", false), "PostgreSQL 13 is too old"),
            (server(150_001, "replica", false), "wal_level is \"replica\""),
            (server(150_001, "logical", true), "is a standby"),
        ] {
            let error = unready.ready().unwrap_err();
            assert_eq!(error.kind(), Kind::Refused);
            assert!(error.to_string().contains(part) && error.hint_text().is_some(), "{error}");
        }
        assert!(server(180_000, "logical", false).publishes_generated());
        assert!(!server(170_009, "logical", false).publishes_generated());
    }
}
