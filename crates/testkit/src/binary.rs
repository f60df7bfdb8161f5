//! Running the `headwater` binary as a user would: a process with a config, killed at will.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// A running `headwater`; killed when dropped.
pub struct Headwater {
    child: Child,
    log: PathBuf,
}

impl Headwater {
    /// Starts `program` with `arguments`; what it prints is appended to `log`.
    pub fn start(program: &Path, arguments: &[&str], log: &Path) -> Self {
        let open = || std::fs::OpenOptions::new().create(true).append(true).open(log).expect("the log opens");
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(open())
            .stderr(open())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", program.display()));
        Self { child, log: log.to_path_buf() }
    }

    /// Its process id; `None` once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Kills it at once, as `kill -9`, and waits until it is gone.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("it can be killed");
    }

    /// Asks it to stop (SIGTERM) and waits; a process that takes more than `patience` is an error.
    pub async fn stop(mut self, patience: Duration) -> Result<ExitStatus, String> {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id as i32));
        kill_process(pid.ok_or("it has ended already")?, Signal::TERM).map_err(|error| error.to_string())?;
        match tokio::time::timeout(patience, self.child.wait()).await {
            Ok(status) => status.map_err(|error| error.to_string()),
            Err(_) => Err(format!("it did not stop within {patience:?}:\n{}", self.log_tail())),
        }
    }

    /// Whether it ended by itself, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// The end of what it printed.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let from = text.len().saturating_sub(6000);
        String::from_utf8_lossy(&text[from..]).into_owned()
    }

    /// Waits until `address` (its `[http] listen`) answers `/readyz` with 200.
    pub async fn ready(&mut self, address: &str, patience: Duration) -> Result<(), String> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let answer = get(address, "/readyz").await;
            if matches!(&answer, Ok((200, _))) {
                return Ok(());
            }
            if let Some(status) = self.ended() {
                return Err(format!("it ended with {status}:\n{}", self.log_tail()));
            }
            if tokio::time::Instant::now() > deadline {
                return Err(format!("not ready after {patience:?} ({answer:?}):\n{}", self.log_tail()));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// One plain HTTP GET: status and body.
pub async fn get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}
