//! Apache Kafka servers for tests: one KRaft node, broker and controller at once.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use headwater_core::{Error, Kind, Result, ResultExt};
use rustix::process::Signal;

use super::acls::{self, Right};
use super::process::{Process, free_port};
use super::proxy::Proxy;

/// How long a server may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// What it logs once clients are welcome.
const STARTED: &str = "Kafka Server started";

/// A Kafka server of its own.
#[derive(Debug)]
pub struct Kafka {
    process: Process,
    java: Vec<String>,
    ports: Ports,
    proxy: Option<Proxy>,
}

/// What is unusual about a server; see [`Kafka::settings`].
#[derive(Debug, Clone, Default)]
pub struct KafkaSettings {
    properties: Vec<(String, String)>,
    java: Vec<String>,
    proxy: bool,
    users: Vec<(String, String)>,
    classes: Vec<(String, String)>,
    identity: Option<String>,
}

/// Where it listens on 127.0.0.1.
#[derive(Debug, Clone, Copy)]
struct Ports {
    plain: u16,
    controller: u16,
    /// Where the proxy connects to; advertised as the proxy's own port.
    proxied: u16,
    sasl: u16,
}

impl KafkaSettings {
    /// Sets a line of server.properties; the last of a name wins.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.properties.push((name.into(), value.to_string()));
        self
    }

    /// Adds an option for the Java machine, e.g. `-Xmx1g`; the last of a kind wins.
    #[must_use]
    pub fn java(mut self, option: &str) -> Self {
        self.java.push(option.into());
        self
    }

    /// Gives it a class of this name, whose Java source is `source`.
    #[must_use]
    pub fn class(mut self, name: &str, source: &str) -> Self {
        self.classes.push((name.into(), source.into()));
        self
    }

    /// Puts a [`Proxy`] before a second listener: see [`Kafka::proxy`] and [`Kafka::proxied_brokers`].
    #[must_use]
    pub fn proxied(mut self) -> Self {
        self.proxy = true;
        self
    }

    /// Adds a user for the listener that asks for SASL/PLAIN: see [`Kafka::sasl_brokers`].
    #[must_use]
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.users.push((name.into(), password.into()));
        self
    }

    /// Gives the listener of users TLS, with this key (PKCS #8) and certificate, in PEM.
    #[must_use]
    pub fn tls(mut self, identity: &str) -> Self {
        self.identity = Some(identity.into());
        self
    }

    /// Makes it one more broker of another server's cluster, with this node id; clients find it through
    /// that one.
    #[must_use]
    pub fn joins(self, cluster: &Kafka, node: u32) -> Self {
        let somewhere = "PLAINTEXT://127.0.0.1:0";
        self.set("process.roles", "broker")
            .set("node.id", node)
            .set("controller.quorum.voters", format!("1@127.0.0.1:{}", cluster.ports.controller))
            .set("listeners", somewhere)
            .set("advertised.listeners", somewhere)
    }

    /// Lets users do only what [`Kafka::allow`] says; whoever comes without a name may do all.
    #[must_use]
    pub fn authorizes(self) -> Self {
        self.set("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer")
            .set("super.users", "User:ANONYMOUS;User:admin")
    }

    /// Starts a server that is like this; returns when clients are welcome.
    pub async fn start(self) -> Result<Kafka> {
        let libs = libraries()?;
        let process = Process::new("kafka", None)?;
        let [plain, controller, proxied, sasl] = std::array::from_fn(|_| free_port());
        let ports = Ports { plain, controller, proxied, sasl };
        let proxy = if self.proxy { Some(Proxy::start(("127.0.0.1", proxied)).await?) } else { None };
        let properties = self.server_properties(ports, proxy.as_ref(), process.dir());
        process.write(&process.dir().join("server.properties"), properties.as_bytes())?;
        if let Some(identity) = &self.identity {
            process.write(&process.dir().join("identity.pem"), identity.as_bytes())?;
        }
        let mut java: Vec<String> = ["-Xmx384m", "-XX:+UseSerialGC"].map(String::from).into();
        java.extend(self.java);
        java.push("-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn".into());
        let path = format!("{}/*:{}", libs.display(), process.dir().display());
        for (name, source) in &self.classes {
            let file = process.dir().join(format!("{name}.java"));
            process.write(&file, source.as_bytes())?;
            process.run(Command::new("javac").args(["-cp", &path]).arg(file))?;
        }
        java.extend(["-cp".into(), path]);
        let mut format = Command::new("java");
        format.args(["-XX:TieredStopAtLevel=1"]).args(&java).arg("kafka.tools.StorageTool");
        // Any 16 bytes name a cluster, in URL-safe base64 without padding.
        process.run(format.args(["format", "-t", "aGVhZHdhdGVyLXRlc3RzIQ", "-c", "server.properties"]))?;
        let server = Kafka { process, java, ports, proxy };
        server.launch().await?;
        Ok(server)
    }

    fn server_properties(&self, ports: Ports, proxy: Option<&Proxy>, dir: &Path) -> String {
        let Ports { plain, controller, proxied, sasl } = ports;
        let mut listeners = format!("PLAINTEXT://127.0.0.1:{plain}");
        let mut protocols = String::from("CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT");
        let mut advertised = listeners.clone();
        if let Some(proxy) = proxy {
            listeners += &format!(",PROXIED://127.0.0.1:{proxied}");
            advertised += &format!(",PROXIED://127.0.0.1:{}", proxy.port());
            protocols += ",PROXIED:PLAINTEXT";
        }
        let mut lines = String::new();
        if !self.users.is_empty() {
            listeners += &format!(",SASL://127.0.0.1:{sasl}");
            advertised += &format!(",SASL://127.0.0.1:{sasl}");
            protocols += if self.identity.is_some() { ",SASL:SASL_SSL" } else { ",SASL:SASL_PLAINTEXT" };
            let user = |(name, password): &(String, String)| format!(" user_{name}=\"{password}\"");
            let users: String = self.users.iter().map(user).collect();
            if self.identity.is_some() {
                lines += "listener.name.sasl.ssl.keystore.type=PEM\n";
                let path = dir.join("identity.pem");
                lines += &format!("listener.name.sasl.ssl.keystore.location={}\n", path.display());
            }
            lines += "listener.name.sasl.sasl.enabled.mechanisms=PLAIN\n";
            lines += "listener.name.sasl.plain.sasl.jaas.config=";
            lines += &format!("org.apache.kafka.common.security.plain.PlainLoginModule required{users};\n");
        }
        listeners += &format!(",CONTROLLER://127.0.0.1:{controller}");
        lines += &format!("listeners={listeners}\nadvertised.listeners={advertised}\n");
        lines += &format!("listener.security.protocol.map={protocols}\n");
        lines += &format!("controller.quorum.voters=1@127.0.0.1:{controller}\n");
        lines += &format!("log.dirs={}\n", dir.join("data").display());
        for (name, value) in &self.properties {
            lines += &format!("{name}={value}\n");
        }
        lines
    }
}

impl Kafka {
    /// A server with everything small, and otherwise at its default.
    pub async fn start() -> Result<Self> {
        Self::settings().start().await
    }

    /// What to change before starting.
    pub fn settings() -> KafkaSettings {
        let mut settings = KafkaSettings::default();
        for (name, value) in [
            ("process.roles", "broker,controller"),
            ("node.id", "1"),
            ("controller.listener.names", "CONTROLLER"),
            ("inter.broker.listener.name", "PLAINTEXT"),
            // One node cannot hold three copies of its own topics, and few tests fill fifty partitions.
            ("offsets.topic.replication.factor", "1"),
            ("offsets.topic.num.partitions", "4"),
            ("transaction.state.log.replication.factor", "1"),
            ("transaction.state.log.min.isr", "1"),
            ("transaction.state.log.num.partitions", "4"),
            ("share.coordinator.state.topic.replication.factor", "1"),
            ("share.coordinator.state.topic.min.isr", "1"),
            // Nobody else is about to join.
            ("group.initial.rebalance.delay.ms", "0"),
            ("group.min.session.timeout.ms", "1000"),
            // A killed broker is let in again when the session of the one before it has ended.
            ("broker.session.timeout.ms", "1500"),
            ("broker.heartbeat.interval.ms", "300"),
            ("log.cleaner.dedupe.buffer.size", "8388608"),
        ] {
            settings = settings.set(name, value);
        }
        settings
    }

    /// One server for all tests of this process, which is never stopped or killed; each test names
    /// topics and groups of its own.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: tokio::sync::OnceCell<Kafka> = tokio::sync::OnceCell::const_new();
        SHARED.get_or_try_init(|| Self::settings().java("-XX:TieredStopAtLevel=1").start()).await
    }

    /// The address to give to clients.
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.ports.plain)
    }

    /// The address whose every connection goes through [`Kafka::proxy`].
    pub fn proxied_brokers(&self) -> Option<String> {
        self.proxy.as_ref().map(|proxy| format!("127.0.0.1:{}", proxy.port()))
    }

    /// The proxy, where [`KafkaSettings::proxied`] asked for one.
    pub fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    /// The address where users of [`KafkaSettings::user`] log in by SASL/PLAIN; without TLS, unless
    /// [`KafkaSettings::tls`] gave it a certificate.
    pub fn sasl_brokers(&self) -> String {
        format!("127.0.0.1:{}", self.ports.sasl)
    }

    /// Gives a user these rights on all topics, where [`KafkaSettings::authorizes`] asks for them.
    pub async fn allow(&self, user: &str, rights: &[Right]) -> Result<()> {
        acls::allow(&self.brokers(), user, rights).await
    }

    /// Takes a right on one topic away from a user whom [`Kafka::allow`] gave it.
    pub async fn deny(&self, user: &str, right: Right, topic: &str) -> Result<()> {
        acls::deny(&self.brokers(), user, right, topic).await
    }

    /// Gives back what [`Kafka::deny`] took.
    pub async fn undeny(&self, user: &str, right: Right, topic: &str) -> Result<()> {
        acls::undeny(&self.brokers(), user, right, topic).await
    }

    /// Where its data and configuration lie.
    pub fn dir(&self) -> &Path {
        self.process.dir()
    }

    /// The pid while it runs.
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

    /// Starts it again after [`Kafka::kill`] or [`Kafka::stop`] (stops it first where it runs), with
    /// the same ports and data; returns when clients are welcome.
    pub async fn restart(&self) -> Result<()> {
        if self.process.is_running() {
            self.stop().await?;
        }
        self.launch().await
    }

    /// Freezes it (SIGSTOP): connections stay, nothing answers.
    pub fn pause(&self) {
        self.process.signal_all(Signal::STOP);
    }

    /// Lets a paused server go on.
    pub fn resume(&self) {
        self.process.signal_all(Signal::CONT);
    }

    async fn launch(&self) -> Result<()> {
        let starts = self.process.log().matches(STARTED).count();
        let mut args = self.java.clone();
        args.extend(["kafka.Kafka", "server.properties"].map(String::from));
        self.process.start(Path::new("java"), &args)?;
        let deadline = Instant::now() + PATIENCE;
        while self.process.log().matches(STARTED).count() == starts {
            if !self.process.is_running() {
                return Err(self.process.error("ended while starting"));
            }
            if Instant::now() > deadline {
                return Err(self.process.error("did not start in time"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

/// The directory of Kafka's jars: `HEADWATER_KAFKA_LIBS`, or the newest that scripts/test fetched.
fn libraries() -> Result<PathBuf> {
    if let Some(libs) = std::env::var_os("HEADWATER_KAFKA_LIBS") {
        return Ok(libs.into());
    }
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home).unwrap_or_default();
    let cache = cache.join("headwater");
    let entries =
        std::fs::read_dir(&cache).doing(Kind::Config, || format!("looking for Kafka in {}", cache.display()));
    let hint = "run ./scripts/kafka/fetch, or set HEADWATER_KAFKA_LIBS to a directory of Kafka's jars";
    let entries = entries.map_err(|error| error.hint(hint))?;
    let is_kafka = |path: &PathBuf| path.join("complete").exists();
    let newest = entries.flatten().map(|entry| entry.path()).filter(is_kafka).max();
    newest.ok_or_else(|| {
        Error::new(Kind::Config, format!("there is no Kafka in {}", cache.display())).hint(hint)
    })
}
