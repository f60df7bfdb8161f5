//! The measured process: Headwater's own pipeline, wired as the binary wires it, until all is durable.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_connect::embedded::{EmbeddedBus, EmbeddedConfig};
use headwater_connect::kafka::{KafkaBus, KafkaConfig};
use headwater_connect::parked::SqliteParkedStore;
use headwater_connect::postgres::{PostgresConfig, PostgresConnector};
use headwater_core::ports::Bus;
use headwater_runtime::Runtime;
use headwater_testkit::null_bus::NullBus;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::process;
use super::rows::PUBLICATION;

/// What one child does.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    url: String,
    slot: String,
    target: Target,
    rows: u64,
    /// Read the table first (the slot is made) instead of following a slot that is there.
    pub snapshot: bool,
}

/// Where the events go.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Target {
    /// Nowhere; they are built all the same.
    Null,
    /// The embedded bus in a directory of its own.
    Embedded,
    /// A new topic.
    Kafka {
        /// The brokers.
        brokers: String,
        /// The stream.
        stream: String,
    },
}

/// What a child says when it is done.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Outcome {
    /// From its start until everything was durable.
    pub seconds: f64,
    /// CPU seconds it used.
    pub cpu: f64,
    /// Its peak memory.
    pub rss_mib: Option<f64>,
}

impl Job {
    /// Follows `slot` until `rows` events are durable.
    pub fn new(url: String, slot: String, target: Target, rows: u64) -> Self {
        Self { url, slot, target, rows, snapshot: false }
    }

    /// Runs it in a process of its own.
    pub async fn run(&self) -> Outcome {
        start("child", self).await
    }
}

/// Runs a job in a process of its own: this program, as `bench KIND JOB`.
pub async fn start(kind: &str, job: &impl Serialize) -> Outcome {
    let job = serde_json::to_string(job).expect("plain data");
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program).args(["bench", kind, &job]).output().await.expect("a child starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let outcome = said.lines().last().and_then(|line| serde_json::from_str(line).ok());
    outcome.unwrap_or_else(|| panic!("the child failed: {said}{}", String::from_utf8_lossy(&output.stderr)))
}

/// The child itself.
pub async fn run(job: &str) {
    let start = Instant::now();
    let job: Job = serde_json::from_str(job).expect("the parent wrote it");
    let dir = tempfile::tempdir().expect("a directory");
    let (runtime, _) = pipeline(&job, dir.path()).await;
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let (runtime, stop) = (runtime.clone(), stop.clone());
        async move { runtime.run(stop).await }
    });
    while !running.is_finished() && durable(&runtime).await < job.rows {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let me = std::process::id();
    let outcome = Outcome {
        seconds: start.elapsed().as_secs_f64(),
        cpu: process::cpu_of(me).unwrap_or(0.0),
        rss_mib: process::peak_rss_mib(me),
    };
    stop.cancel();
    running.await.expect("no panic").expect("the pipeline ran");
    println!("{}", serde_json::to_string(&outcome).expect("plain data"));
}

async fn durable(runtime: &Runtime) -> u64 {
    runtime.status().await.sources.iter().map(|source| source.events).sum()
}

/// The pipeline of a job, and its bus.
pub async fn pipeline(job: &Job, dir: &Path) -> (Arc<Runtime>, Arc<dyn Bus>) {
    let snapshot = if job.snapshot { "initial" } else { "never" };
    let source: PostgresConfig = config(&[
        ("url", job.url.as_str().into()),
        ("tables", vec!["public.bench"].into()),
        ("publication", PUBLICATION.into()),
        ("slot", job.slot.as_str().into()),
        ("snapshot", snapshot.into()),
    ]);
    let connector = PostgresConnector::new("bench", source, dir).expect("a source");
    let name = if let Target::Kafka { stream, .. } = &job.target { stream } else { "bench" };
    let stream = config(&[("from", "bench.public.bench".into()), ("columns", "*".into())]);
    let parked = SqliteParkedStore::open(dir, 1 << 30).await.expect("a parked store");
    let bus = bus(&job.target, dir).await;
    let builder = Runtime::builder()
        .source("bench", Arc::new(connector), None)
        .stream(name, stream)
        .bus(bus.clone())
        .parked(Arc::new(parked));
    (Arc::new(builder.build().expect("a runtime")), bus)
}

async fn bus(target: &Target, dir: &Path) -> Arc<dyn Bus> {
    match target {
        Target::Null => Arc::new(NullBus::default()),
        Target::Embedded => {
            Arc::new(EmbeddedBus::open(dir, EmbeddedConfig::default()).await.expect("the embedded bus"))
        }
        Target::Kafka { brokers, stream } => {
            // Each run is of a new slot, and begins without a checkpoint.
            let positions = format!("{stream}-positions");
            let kafka: KafkaConfig = config(&[
                ("brokers", vec![brokers.as_str()].into()),
                ("positions_topic", positions.as_str().into()),
            ]);
            Arc::new(KafkaBus::open(kafka).await.expect("the Kafka bus"))
        }
    }
}

/// A config as the operator would write it: whatever is not named is at its default.
pub fn config<T: DeserializeOwned>(keys: &[(&str, toml::Value)]) -> T {
    let table: BTreeMap<&str, toml::Value> = keys.iter().cloned().collect();
    toml::Value::try_from(table).expect("a table").try_into().expect("a config")
}
