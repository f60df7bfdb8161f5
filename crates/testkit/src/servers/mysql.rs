//! MariaDB and MySQL servers for tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use headwater_core::{Error, Kind, Result, ResultExt};
use rustix::process::Signal;
use sqlx::{Connection, MySqlConnection};

use super::process::{Process, User, free_port};
use super::proxy::Proxy;

/// How long a server may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The superuser by TCP too, where the server knows it as another one than by the socket.
const ADMIN: &str = "CREATE USER IF NOT EXISTS root@'127.0.0.1';\n\
                     GRANT ALL PRIVILEGES ON *.* TO root@'127.0.0.1' WITH GRANT OPTION;\n";

/// A MariaDB server of its own, or a MySQL server where `HEADWATER_MYSQL_BIN` names one; superuser `root`,
/// without a password.
#[derive(Debug)]
pub struct MySql {
    process: Process,
    programs: Programs,
    args: Vec<String>,
    port: u16,
}

/// What is unusual about a server; see [`MySql::settings`].
#[derive(Debug, Clone)]
pub struct MySqlSettings {
    args: Vec<String>,
}

impl MySqlSettings {
    /// Sets an option of the server; the last of a name wins.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.args.push(format!("--{name}={}", value.to_string()));
        self
    }

    /// Starts a server that is like this; returns when it answers queries.
    pub async fn start(self) -> Result<MySql> {
        let programs = Programs::find()?;
        let process = Process::new("mysql", User::instead_of_root("mysql")?)?;
        let (dir, data) = (process.dir().display().to_string(), process.dir().join("data"));
        process.run(&mut programs.initialize(&data))?;
        process.write(&process.dir().join("admin.sql"), ADMIN.as_bytes())?;
        let port = free_port();
        let mut args = vec![
            "--no-defaults".to_owned(),
            format!("--datadir={}", data.display()),
            format!("--socket={dir}/socket"),
            format!("--pid-file={dir}/server.pid"),
            format!("--init-file={dir}/admin.sql"),
            format!("--port={port}"),
            // A server that starts empties it of what others have there.
            format!("--tmpdir={dir}"),
        ];
        if programs.mysql {
            args.extend(["--mysqlx=OFF".to_owned(), "--secure-file-priv=NULL".to_owned()]);
        }
        args.extend(self.args);
        let server = MySql { process, programs, args, port };
        server.launch().await?;
        Ok(server)
    }
}

impl MySql {
    /// A server with everything at its default that does not wait for the disk: it survives `kill -9` of
    /// the server, not of the machine.
    pub async fn start() -> Result<Self> {
        Self::settings().start().await
    }

    /// What to change before starting.
    pub fn settings() -> MySqlSettings {
        MySqlSettings { args: Vec::new() }
            .set("bind-address", "127.0.0.1")
            .set("skip-name-resolve", "ON")
            .set("performance-schema", "OFF")
            .set("max-connections", 400)
            .set("sync-binlog", 0)
            .set("innodb-flush-log-at-trx-commit", 2)
    }

    /// One server for all tests of this process, which is never stopped or killed; use
    /// [`MySql::create_database`] for a place of one's own in it. Users are the whole server's: name them
    /// after the database.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: tokio::sync::OnceCell<MySql> = tokio::sync::OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    /// Makes a new, empty database.
    pub async fn create_database(&self) -> Result<MySqlDatabase> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.database("mysql").execute(&format!("CREATE DATABASE {name}")).await?;
        Ok(self.database(&name))
    }

    /// A database that is there.
    pub fn database(&self, name: &str) -> MySqlDatabase {
        let url = format!("mysql://root@127.0.0.1:{}/{name}", self.port);
        let unix_url = format!("mysql://root@localhost/{name}?socket={}/socket", self.dir().display());
        MySqlDatabase { name: name.into(), url, unix_url }
    }

    /// Runs a script in a database by the command line program of the server.
    pub fn client(&self, database: &MySqlDatabase, script: &str) -> Result<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let file = self.dir().join(format!("script-{}.sql", NUMBER.fetch_add(1, Ordering::Relaxed)));
        self.process.write(&file, script.as_bytes())?;
        let mut client = Command::new(&self.programs.client);
        client.args(["--no-defaults", "--user=root", "--default-character-set=utf8mb4"]);
        client.arg(format!("--socket={}/socket", self.dir().display())).arg(&database.name);
        let script = std::fs::File::open(&file).doing(Kind::Unavailable, || "opening a script".into())?;
        self.process.run(client.stdin(script))
    }

    /// Whether it is a MySQL server, not MariaDB.
    pub fn is_mysql(&self) -> bool {
        self.programs.mysql
    }

    /// The TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where everything of it lies; `socket` in it is the Unix socket, `data` the data directory.
    pub fn dir(&self) -> &Path {
        self.process.dir()
    }

    /// The pid of the server while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    /// Kills it with SIGKILL.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Stops it in good order.
    pub async fn stop(&self) -> Result<()> {
        self.process.signal(Signal::TERM);
        self.process.wait_end(PATIENCE).await
    }

    /// Starts it again after [`MySql::kill`] or [`MySql::stop`] (stops it first where it runs), with the
    /// same port and data; returns when it answers queries.
    pub async fn restart(&self) -> Result<()> {
        if self.process.is_running() {
            self.stop().await?;
        }
        self.launch().await
    }

    /// Freezes the server (SIGSTOP): connections stay, nothing answers.
    pub fn pause(&self) {
        self.process.signal_all(Signal::STOP);
    }

    /// Lets a paused server go on.
    pub fn resume(&self) {
        self.process.signal_all(Signal::CONT);
    }

    async fn launch(&self) -> Result<()> {
        self.process.start(&self.programs.server, &self.args)?;
        // By TCP: the server takes no connections there before the init file has been run.
        let admin = self.database("mysql");
        let deadline = Instant::now() + PATIENCE;
        while MySqlConnection::connect(admin.url()).await.is_err() {
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
pub struct MySqlDatabase {
    name: String,
    url: String,
    unix_url: String,
}

impl MySqlDatabase {
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
        format!("mysql://root@127.0.0.1:{port}/{}", self.name)
    }

    /// Connects, by the Unix socket.
    pub async fn connect(&self) -> Result<MySqlConnection> {
        let doing = || format!("connecting to {}", self.name);
        MySqlConnection::connect(&self.unix_url).await.doing(Kind::Unavailable, doing)
    }

    /// Runs statements, separated by semicolons, on a new connection.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        let mut connection = self.connect().await?;
        let doing = || format!("running in {}: {}", self.name, sql.chars().take(200).collect::<String>());
        let statement = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
        sqlx::Executor::execute(&mut connection, statement).await.doing(Kind::Refused, doing)?;
        // All is done; MySQL may hang up before it is told goodbye.
        connection.close().await.ok();
        Ok(())
    }
}

/// The programs of a server.
#[derive(Debug, Clone)]
struct Programs {
    server: PathBuf,
    client: PathBuf,
    /// Makes a data directory; MySQL's server does so itself.
    install: Option<PathBuf>,
    mysql: bool,
}

impl Programs {
    /// MariaDB of this machine, or what is in the directory that `HEADWATER_MYSQL_BIN` names.
    fn find() -> Result<Self> {
        let chosen = std::env::var_os("HEADWATER_MYSQL_BIN").map(PathBuf::from);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = match &chosen {
            Some(dir) => vec![dir.clone()],
            // Debian's server is where only root looks for programs.
            None => std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/bin".into()]).collect(),
        };
        let find = |name: &str| dirs.iter().map(|dir| dir.join(name)).find(|path| path.exists());
        let client = find("mariadb").or_else(|| find("mysql")).unwrap_or_else(|| "mysql".into());
        match (find("mariadbd"), find("mariadb-install-db"), find("mysqld").filter(|_| chosen.is_some())) {
            (Some(server), install @ Some(_), _) => Ok(Self { server, client, install, mysql: false }),
            (_, _, Some(server)) => Ok(Self { server, client, install: None, mysql: true }),
            _ => Err(Error::new(Kind::Config, "there is no MariaDB server on this machine").hint(
                "install it (Debian: apt-get install mariadb-server) or set HEADWATER_MYSQL_BIN to the directory of \
                 mariadbd and mariadb-install-db, or of MySQL's mysqld",
            )),
        }
    }

    fn initialize(&self, data: &Path) -> Command {
        let (data, tmp) = (format!("--datadir={}", data.display()), data.parent());
        let mut command = Command::new(self.install.as_ref().unwrap_or(&self.server));
        match self.install {
            Some(_) => command.args([
                "--no-defaults",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--skip-name-resolve",
                &data,
            ]),
            None => command.args(["--no-defaults", "--initialize-insecure", &data]),
        };
        command.envs(tmp.map(|tmp| ("TMPDIR", tmp)));
        command
    }
}
