//! A shop on SQLite and the `headwater` binary on it.

#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use headwater_testkit::binary::Headwater;
use rusqlite::Connection;
use tempfile::TempDir;

/// The binary under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_headwater");

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with shop.db (a table `orders`) and headwater.toml.
pub struct Shop {
    pub dir: TempDir,
    pub listen: String,
}

impl Shop {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listen = free_address();
        let shop = Self { dir, listen };
        shop.sql("CREATE TABLE orders (id INTEGER PRIMARY KEY, status TEXT NOT NULL)");
        shop.write_config("");
        shop
    }

    pub fn write_config(&self, more: &str) {
        let listen = &self.listen;
        let text = format!(
            "[source.shop]\nkind = \"sqlite\"\npath = \"shop.db\"\ntables = [\"orders\"]\noutbox = \"outbox\"\n\
             [stream.orders]\nfrom = \"shop.orders\"\ncolumns = {{ id = \"id\", state = \"status\" }}\npartitions = 2\n\
             [http]\nlisten = \"{listen}\"\n{more}"
        );
        std::fs::write(self.config(), text).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn config(&self) -> PathBuf {
        self.path().join("headwater.toml")
    }

    /// The config's path, as an argument.
    pub fn config_text(&self) -> String {
        self.config().to_str().unwrap().to_owned()
    }

    /// Runs SQL on the shop.
    pub fn sql(&self, sql: &str) {
        let connection = Connection::open(self.path().join("shop.db")).unwrap();
        connection.busy_timeout(PATIENCE).unwrap();
        connection.execute_batch(sql).unwrap();
    }

    /// Starts `headwater run` and waits until it is ready.
    pub async fn run(&self) -> Headwater {
        let mut headwater = self.start();
        headwater.ready(&self.listen, PATIENCE).await.unwrap();
        headwater
    }

    pub fn start(&self) -> Headwater {
        let config = self.config_text();
        Headwater::start(Path::new(PROGRAM), &["run", &config], &self.path().join("run.log"))
    }

    /// Lets nothing be written to the bus any more: what is read cannot become durable until these are dropped.
    pub fn lock_bus(&self) -> Vec<Connection> {
        let files = std::fs::read_dir(self.path().join("data/bus")).unwrap();
        let files = files.map(|entry| entry.unwrap().path());
        let segments = files.filter(|path| path.extension().is_some_and(|extension| extension == "db"));
        let locks: Vec<_> = segments.map(|path| Connection::open(path).unwrap()).collect();
        assert!(!locks.is_empty());
        locks.iter().for_each(|lock| lock.execute_batch("BEGIN IMMEDIATE").unwrap());
        locks
    }

    /// Runs a command to its end; the config's path stands for `CONFIG`.
    pub fn headwater(&self, arguments: &[&str]) -> Ended {
        let config = self.config_text();
        let arguments: Vec<&str> = arguments
            .iter()
            .map(|argument| if *argument == "CONFIG" { &config } else { *argument })
            .collect();
        headwater(self.path(), &arguments)
    }
}

/// What a command did.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Runs a command to its end in `dir`.
pub fn headwater(dir: &Path, arguments: &[&str]) -> Ended {
    let mut command = Command::new(PROGRAM);
    command.current_dir(dir).args(arguments).stdin(Stdio::null()).env_remove("RUST_LOG");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: status.code(), out: text(stdout), err: text(stderr) }
}

/// What a command printed.
pub fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// An address that nobody listens on.
pub fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Waits for a level.
pub fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
