//! PostgreSQL servers for tests.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use headwater_core::{Error, Kind, Result, ResultExt};
use rustix::process::Signal;
use sqlx::{Connection, PgConnection};

use super::process::{Process, User, free_port};
use super::proxy::Proxy;

/// How long a server may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A PostgreSQL server of its own, with `wal_level = logical`; superuser `postgres`.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    bin: PathBuf,
    port: u16,
}

/// What is unusual about a server; see [`Postgres::settings`].
#[derive(Debug, Clone)]
pub struct PostgresSettings {
    settings: Vec<(String, String)>,
    hba: String,
    files: Vec<(String, Vec<u8>)>,
    initdb: Vec<String>,
}

impl PostgresSettings {
    /// Sets a line of postgresql.conf; the last of a name wins.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((name.into(), value.to_string()));
        self
    }

    /// Sets the rules for TCP clients in pg_hba.conf, `host all all 127.0.0.1/32 trust` by default.
    /// The Unix socket is open to everyone always.
    #[must_use]
    pub fn hba(mut self, rules: &str) -> Self {
        self.hba = rules.into();
        self
    }

    /// Puts a file into the data directory (a certificate, a key), readable by the server alone.
    #[must_use]
    pub fn file(mut self, name: &str, contents: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.into(), contents.into()));
        self
    }

    /// Adds an option for initdb, e.g. `--encoding=SQL_ASCII`; the last of a name wins.
    #[must_use]
    pub fn initdb(mut self, option: &str) -> Self {
        self.initdb.push(option.into());
        self
    }

    /// Starts a server that is like this; returns when it answers queries.
    pub async fn start(self) -> Result<Postgres> {
        let bin = binaries()?;
        let process = Process::new("postgres", User::instead_of_root("postgres")?)?;
        let data = process.dir().join("data");
        let mut initdb = Command::new(bin.join("initdb"));
        initdb.args([
            "--no-sync",
            "--auth=trust",
            "--username=postgres",
            "--locale=C.UTF-8",
            "--encoding=UTF8",
        ]);
        process.run(initdb.args(&self.initdb).arg("--pgdata").arg(&data))?;
        let port = free_port();
        process.write(
            &data.join("pg_hba.conf"),
            format!("local all all trust\nlocal replication all trust\n{}\n", self.hba).as_bytes(),
        )?;
        let line = |(name, value): &(String, String)| format!("{name} = '{}'\n", value.replace('\'', "''"));
        let own = format!("port = {port}\nunix_socket_directories = '{}'\n", process.dir().display());
        let conf: String = self.settings.iter().map(line).collect();
        process.write(&data.join("postgresql.conf"), (own + &conf).as_bytes())?;
        for (name, contents) in &self.files {
            process.write(&data.join(name), contents)?;
        }
        let server = Postgres { process, bin, port };
        server.launch().await?;
        Ok(server)
    }
}

impl Postgres {
    /// A server with everything at its default, fsync off: it survives `kill -9` of the server, not
    /// of the machine.
    pub async fn start() -> Result<Self> {
        Self::settings().start().await
    }

    /// What to change before starting.
    pub fn settings() -> PostgresSettings {
        let settings = PostgresSettings {
            settings: Vec::new(),
            hba: "host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust".into(),
            files: Vec::new(),
            initdb: Vec::new(),
        };
        settings
            .set("listen_addresses", "127.0.0.1")
            .set("wal_level", "logical")
            .set("max_wal_senders", 64)
            .set("max_replication_slots", 256)
            .set("shared_buffers", "64MB")
            .set("max_wal_size", "4GB")
            .set("fsync", "off")
    }

    /// One server for all tests of this process, which is never stopped or killed; use
    /// [`Postgres::create_database`] for a place of one's own in it. Roles and replication slots are
    /// the whole server's: name them after the database.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: tokio::sync::OnceCell<Postgres> = tokio::sync::OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    /// Makes a new, empty database.
    pub async fn create_database(&self) -> Result<Database> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.database("postgres").execute(&format!("CREATE DATABASE {name} TEMPLATE template0")).await?;
        Ok(self.database(&name))
    }

    /// A database that is there.
    pub fn database(&self, name: &str) -> Database {
        let url = format!("postgresql://postgres@127.0.0.1:{}/{name}", self.port);
        let dir = self.process.dir().display();
        let unix_url = format!("postgresql:///{name}?host={dir}&port={}&user=postgres", self.port);
        Database { name: name.into(), url, unix_url }
    }

    /// The TCP port on 127.0.0.1; also of the Unix socket.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where the Unix socket lies; `data` in it is the data directory.
    pub fn dir(&self) -> &std::path::Path {
        self.process.dir()
    }

    /// Where this version's programs lie: psql, pg_recvlogical, pg_dump.
    pub fn bin(&self) -> &std::path::Path {
        &self.bin
    }

    /// The pid of the postmaster while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    /// Kills the postmaster and every backend with SIGKILL.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Stops it in good order (fast shutdown: clients are cut off).
    pub async fn stop(&self) -> Result<()> {
        self.process.signal(Signal::INT);
        self.process.wait_end(PATIENCE).await
    }

    /// Starts it again after [`Postgres::kill`] or [`Postgres::stop`] (stops it first where it runs),
    /// with the same port and data; returns when it answers queries.
    pub async fn restart(&self) -> Result<()> {
        if self.process.is_running() {
            self.stop().await?;
        }
        self.launch().await
    }

    /// Freezes every process of the server (SIGSTOP): connections stay, nothing answers.
    pub fn pause(&self) {
        self.process.signal_all(Signal::STOP);
    }

    /// Lets a paused server go on.
    pub fn resume(&self) {
        self.process.signal_all(Signal::CONT);
    }

    async fn launch(&self) -> Result<()> {
        let data = self.process.dir().join("data").display().to_string();
        self.process.start(&self.bin.join("postgres"), &["-D".into(), data])?;
        let admin = self.database("postgres");
        let deadline = Instant::now() + PATIENCE;
        while admin.connect().await.is_err() {
            if !self.process.is_running() {
                return Err(self.process.error("ended while starting"));
            }
            if Instant::now() > deadline {
                return Err(self.process.error("did not answer in time"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

/// A database of a server, by the superuser.
#[derive(Debug, Clone)]
pub struct Database {
    name: String,
    url: String,
    unix_url: String,
}

impl Database {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address by TCP.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its address by the Unix socket.
    pub fn unix_url(&self) -> &str {
        &self.unix_url
    }

    /// Its address through a proxy.
    pub fn url_through(&self, proxy: &Proxy) -> String {
        self.url_at(proxy.port())
    }

    /// Its address if its server listened on this port.
    pub fn url_at(&self, port: u16) -> String {
        format!("postgresql://postgres@127.0.0.1:{port}/{}", self.name)
    }

    /// Connects, by the Unix socket.
    pub async fn connect(&self) -> Result<PgConnection> {
        let doing = || format!("connecting to {}", self.name);
        PgConnection::connect(&self.unix_url).await.doing(Kind::Unavailable, doing)
    }

    /// Runs statements, separated by semicolons, on a new connection.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        let mut connection = self.connect().await?;
        let doing = || format!("running in {}: {}", self.name, sql.chars().take(200).collect::<String>());
        let statement = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
        sqlx::Executor::execute(&mut connection, statement).await.doing(Kind::Refused, doing)?;
        connection.close().await.doing(Kind::Unavailable, || format!("leaving {}", self.name))
    }
}

/// The newest PostgreSQL of this machine, or the one that `HEADWATER_PG_BIN` names.
fn binaries() -> Result<PathBuf> {
    if let Some(bin) = std::env::var_os("HEADWATER_PG_BIN") {
        return Ok(bin.into());
    }
    let version = |dir: &PathBuf| dir.file_name()?.to_str()?.parse::<u32>().ok();
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut dirs: Vec<PathBuf> = installed.map(|entry| entry.path()).collect();
    dirs.sort_by_key(version);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut bins = dirs.iter().rev().map(|dir| dir.join("bin")).chain(std::env::split_paths(&path));
    bins.find(|bin| bin.join("postgres").exists() && bin.join("initdb").exists()).ok_or_else(|| {
        Error::new(Kind::Config, "there is no PostgreSQL server on this machine")
            .hint("install it (Debian: apt-get install postgresql) or set HEADWATER_PG_BIN to the directory of initdb")
    })
}
