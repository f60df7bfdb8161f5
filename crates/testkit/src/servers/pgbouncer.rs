//! A connection pooler in front of a PostgreSQL server.

use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr as _;
use std::time::{Duration, Instant};

use headwater_core::{Error, Kind, Result, ResultExt};
use sqlx::ConnectOptions as _;
use sqlx::postgres::PgConnectOptions;

use super::postgres::{Database, Postgres};
use super::process::{Process, User, free_port};

/// How long it may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A PgBouncer with all databases of a server, and a few of its connections for each.
#[derive(Debug)]
pub struct PgBouncer {
    process: Process,
    port: u16,
}

impl PgBouncer {
    /// One that lends a connection of the server for a `session`, or a `transaction`, and leaves out the settings `ignored`
    /// that clients ask for at their start; returns when it answers.
    pub async fn start(server: &Postgres, pool_mode: &str, ignored: &str) -> Result<Self> {
        let process = Process::new("pgbouncer", User::instead_of_root("postgres")?)?;
        let (port, server_port) = (free_port(), server.port());
        let prepared =
            if Self::knows_prepared_statements()? { "max_prepared_statements = 100\n" } else { "" };
        let ini = format!(
            "[databases]\n* = host=127.0.0.1 port={server_port} user=postgres\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = {pool_mode}\ndefault_pool_size = 20\nignore_startup_parameters = {ignored}\n{prepared}"
        );
        let path = process.dir().join("pgbouncer.ini");
        process.write(&path, ini.as_bytes())?;
        process.start(&program()?, &[path.display().to_string()])?;
        let pooler = Self { process, port };
        let doing = || "reading the address of PgBouncer".into();
        let url = PgConnectOptions::from_str(&pooler.url(&server.database("postgres")))
            .doing(Kind::Config, doing)?;
        let url = url.extra_float_digits(None);
        let deadline = Instant::now() + PATIENCE;
        while url.connect().await.is_err() {
            if !pooler.process.is_running() {
                return Err(pooler.process.error("ended while starting"));
            }
            if Instant::now() > deadline {
                return Err(pooler.process.error("did not answer in time"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(pooler)
    }

    /// Whether the one of this machine keeps apart what clients prepare that share a connection for a transaction each.
    pub fn knows_prepared_statements() -> Result<bool> {
        let said = Command::new(program()?).arg("--version").output();
        let said = said.doing(Kind::Config, || "asking PgBouncer for its version".into())?.stdout;
        let said = String::from_utf8_lossy(&said);
        let version = said.split_whitespace().nth(1).unwrap_or_default();
        let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        Ok((parts.next(), parts.next()) >= (Some(1), Some(21)))
    }

    /// The address of a database through it.
    pub fn url(&self, database: &Database) -> String {
        database.url_at(self.port)
    }
}

fn program() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian's is where only root looks for programs.
    let mut dirs = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    let found = dirs.find_map(|dir| Some(dir.join("pgbouncer")).filter(|program| program.exists()));
    found.ok_or_else(|| {
        Error::new(Kind::Config, "there is no PgBouncer on this machine")
            .hint("install it (Debian: apt-get install pgbouncer)")
    })
}
