//! A server process in a directory of its own, which cannot outlive whoever started it.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use headwater_core::{Error, Kind, Result, ResultExt};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// What the watchdog runs: when its standard input ends, the server and its children are killed and
/// their directory goes. The server is stopped first so that it starts no more children meanwhile.
const WATCHDOG: &str = r#"
read -r _
if pid=$(cat "$1/pid" 2>/dev/null); then
    kill -STOP "$pid"
    children=$(cat "/proc/$pid/task/$pid/children")
    kill -s KILL -- "$pid" "-$pid" $children
fi
rm -rf "$1" || { sleep 1; rm -rf "$1"; }
"#;

/// Writes the pid where the watchdog finds it before it becomes the server: there is no moment at
/// which the server runs and the watchdog could not find it.
const LAUNCH: &str = r#"echo $$ >"$0"; exec "$@""#;

/// Who a server runs as, where that is not us: PostgreSQL refuses to be root.
#[derive(Debug, Clone, Copy)]
pub(super) struct User {
    uid: u32,
    gid: u32,
}

impl User {
    /// The user of that name, when we are root and so must not run the server ourselves.
    pub fn instead_of_root(name: &str) -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let passwd =
            fs::read_to_string("/etc/passwd").doing(Kind::Config, || "reading /etc/passwd".into())?;
        let find = |line: &str| {
            let mut fields = line.split(':');
            (fields.next()? == name).then_some(())?;
            Some(Self { uid: fields.nth(1)?.parse().ok()?, gid: fields.next()?.parse().ok()? })
        };
        let missing = || Error::new(Kind::Config, format!("there is no user {name} to run the server as"));
        passwd.lines().find_map(find).map(Some).ok_or_else(missing)
    }
}

/// A server's directory and, while it runs, its process.
#[derive(Debug)]
pub(super) struct Process {
    name: &'static str,
    dir: PathBuf,
    user: Option<User>,
    child: Mutex<Option<Child>>,
    watchdog: Child,
}

impl Process {
    /// Makes the directory and its watchdog; nothing runs yet.
    pub fn new(name: &'static str, user: Option<User>) -> Result<Self> {
        let doing = || format!("making a directory for {name}");
        let temp = tempfile::Builder::new().prefix(&format!("headwater-{name}-")).tempdir();
        // From here on the watchdog removes it.
        let dir = temp.doing(Kind::Config, doing)?.keep();
        let watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "headwater-watchdog"])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C is for us; the watchdog still has its work to do.
            .process_group(0)
            .spawn()
            .doing(Kind::Config, || format!("starting the watchdog of {name}"))?;
        let process = Self { name, dir, user, child: Mutex::new(None), watchdog };
        process.own(&process.dir)?;
        Ok(process)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a file that only the server's user may read.
    pub fn write(&self, path: &Path, contents: &[u8]) -> Result<()> {
        let write = || {
            let mut file = File::create(path)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(contents)
        };
        write().doing(Kind::Config, || format!("writing {}", path.display()))?;
        self.own(path)
    }

    fn own(&self, path: &Path) -> Result<()> {
        let Some(user) = self.user else { return Ok(()) };
        chown(path, Some(user.uid), Some(user.gid))
            .doing(Kind::Config, || format!("giving {} to the server's user", path.display()))
    }

    /// Runs a command to its end as the server's user.
    pub fn run(&self, command: &mut Command) -> Result<()> {
        let what = command.get_program().to_string_lossy().into_owned();
        let output = self.as_user(command).output();
        let output = output.doing(Kind::Config, || format!("running {what}"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stdout, output.stderr].concat();
        Err(Error::new(Kind::Refused, format!("{what}: {}", String::from_utf8_lossy(&said))))
    }

    fn as_user<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command.current_dir(&self.dir)
    }

    /// Starts the server; what it says goes to its log.
    pub fn start(&self, program: &Path, args: &[String]) -> Result<()> {
        let doing = || format!("starting {}", program.display());
        let log =
            File::options().create(true).append(true).open(self.log_path()).doing(Kind::Config, doing)?;
        let log_too = log.try_clone().doing(Kind::Config, doing)?;
        let mut command = Command::new("sh");
        command.args(["-c", LAUNCH]).arg(self.dir.join("pid")).arg(program).args(args);
        command.stdin(Stdio::null()).stdout(log).stderr(log_too).process_group(0);
        let child = self.as_user(&mut command).spawn().doing(Kind::Config, doing)?;
        *self.lock() = Some(child);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// What the server said so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// The last lines of the server's log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// The pid of the server while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.lock().as_ref().map(Child::id)
    }

    /// Whether it was started and did not end by itself.
    pub fn is_running(&self) -> bool {
        self.lock().as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Kills the server and all its children with SIGKILL; on return they are gone.
    pub fn kill(&self) {
        // Stopped, it makes no more children; dead, it can no longer say which it had.
        self.signal(Signal::STOP);
        let children = self.children();
        self.signal_all(Signal::KILL);
        if let Some(mut child) = self.lock().take() {
            child.wait().ok();
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while children.iter().any(|pid| is_alive(*pid)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends a signal to the server itself.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid().and_then(as_pid) {
            kill_process(pid, signal).ok();
        }
    }

    /// Sends a signal to the server and its children.
    pub fn signal_all(&self, signal: Signal) {
        let (Some(server), children) = (self.pid().and_then(as_pid), self.children()) else { return };
        kill_process(server, signal).ok();
        kill_process_group(server, signal).ok();
        for child in children.into_iter().filter_map(as_pid) {
            kill_process(child, signal).ok();
        }
    }

    /// PostgreSQL puts each child into a process group of its own, so that the group alone is not enough.
    fn children(&self) -> Vec<u32> {
        let Some(pid) = self.pid() else { return Vec::new() };
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// Waits until the server has ended after a signal that asks it to.
    pub async fn wait_end(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while self.is_running() {
            if Instant::now() > deadline {
                return Err(self.error("did not stop in time"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.lock().take();
        Ok(())
    }

    /// An error about this server, with the tail of its log.
    pub fn error(&self, what: &str) -> Error {
        let message = format!("{} {what}; the end of its log:\n{}", self.name, self.log_tail());
        Error::new(Kind::Unavailable, message)
    }
}

/// One way out, whether by drop or by the end of the process: the watchdog.
impl Drop for Process {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        self.watchdog.wait().ok();
        if let Some(mut child) = self.lock().take() {
            child.wait().ok();
        }
    }
}

fn as_pid(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

/// Whether a process runs; one that ended and that nobody asked about yet does not.
pub(super) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// A port of 127.0.0.1 that nobody listens on, from below the range that outgoing connections use:
/// a server that is down for a moment keeps its port. It is given out once in this process.
pub fn free_port() -> u16 {
    listener().1
}

/// Listens on a port as [`free_port`] gives it out.
pub(super) fn listener() -> (TcpListener, u16) {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let port = rand::random_range(12_000..32_000);
        if !given.contains(&port)
            && let Ok(listener) = TcpListener::bind(("127.0.0.1", port))
        {
            given.insert(port);
            return (listener, port);
        }
    }
}
