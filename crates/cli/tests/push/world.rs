//! A stream, an endpoint and a push in this process: what the endpoint says is up to the test.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::ConnectInfo;
use axum::http::HeaderMap;
use axum::response::Response;
use headwater_connect::embedded::{EmbeddedBus, EmbeddedConfig};
use headwater_connect::sqlite::inbox::DeferredInbox;
use headwater_core::ports::{Bus, Shelf, ShelfFilter, Shelved};
use headwater_core::{Event, EventId, Position, Retention, StreamSpec};
use headwater_runtime::consume::Watch;
use headwater_runtime::{Phase, PushReport};
use headwater_server::push::Push;
use headwater_testkit::suites::bus::tools;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::common::PATIENCE;

/// The name of the push.
pub const PUSH: &str = "under_test";

/// The stream, if no other is named.
const STREAM: &str = "orders";

/// A request that has come.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Whose connection it came by.
    pub peer: SocketAddr,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// When, in seconds since 1970.
    pub at: u64,
    pub when: Instant,
}

impl Asked {
    /// Of each event in it: its key and its number.
    pub fn events(&self) -> Vec<(String, i64)> {
        let body: Value = serde_json::from_slice(&self.body).unwrap();
        let one = |event: &Value| (event["key"].as_str().unwrap().to_owned(), event["n"].as_i64().unwrap());
        body.as_array().map_or_else(|| vec![one(&body)], |events| events.iter().map(one).collect())
    }
}

type Answer = dyn Fn(usize, &Asked) -> Response + Send + Sync;

/// Which requests.
type Which = fn(&Asked) -> bool;

#[derive(Default)]
struct Endpoint {
    asked: Mutex<Vec<Asked>>,
    slow: Mutex<Duration>,
    /// Whether the answer to a request never comes.
    hangs: Mutex<Option<Which>>,
    /// How many requests hang, or have hung.
    hung: AtomicUsize,
}

/// The stream and the endpoint.
pub struct World {
    pub dir: TempDir,
    pub bus: Arc<dyn Bus>,
    /// How many bytes of events a push may set aside.
    pub budget: u64,
    endpoint: Arc<Endpoint>,
    url: String,
    published: AtomicU64,
}

impl World {
    /// An endpoint that says what `answer` says to the nth request, the first being 1. The stream has one partition.
    pub async fn new(answer: impl Fn(usize, &Asked) -> Response + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bus = EmbeddedBus::open(dir.path(), EmbeddedConfig::default()).await.unwrap();
        let bus: Arc<dyn Bus> = Arc::new(bus);
        let endpoint = Arc::<Endpoint>::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (answer, asked): (Arc<Answer>, _) = (Arc::new(answer), Arc::clone(&endpoint));
        let routes =
            Router::new().fallback(async move |ConnectInfo(peer), headers: HeaderMap, body: Bytes| {
                let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
                let one = Asked { peer, headers, body, at, when: Instant::now() };
                let turn = {
                    let mut asked = asked.asked.lock().unwrap();
                    asked.push(one.clone());
                    asked.len()
                };
                let slow = *asked.slow.lock().unwrap();
                tokio::time::sleep(slow).await;
                let hangs = asked.hangs.lock().unwrap().is_some_and(|hangs| hangs(&one));
                if hangs {
                    asked.hung.fetch_add(1, Ordering::SeqCst);
                    std::future::pending::<()>().await;
                }
                answer(turn, &one)
            });
        let routes = routes.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        let world = Self { dir, bus, budget: u64::MAX, endpoint, url, published: AtomicU64::new(0) };
        world.stream(STREAM).await;
        world
    }

    /// Each answer takes so long from now on.
    pub fn slow(&self, by: Duration) {
        *self.endpoint.slow.lock().unwrap() = by;
    }

    /// Requests that are such are never answered from now on.
    pub fn hang(&self, which: Which) {
        *self.endpoint.hangs.lock().unwrap() = Some(which);
    }

    /// How many requests hang, or have hung.
    pub fn hung(&self) -> usize {
        self.endpoint.hung.load(Ordering::SeqCst)
    }

    /// How many requests have come.
    pub fn came(&self) -> usize {
        self.endpoint.asked.lock().unwrap().len()
    }

    /// Makes a stream of one partition.
    pub async fn stream(&self, name: &str) {
        let spec = StreamSpec { name: name.into(), partitions: 1, retention: Retention::default() };
        self.bus.ensure(&spec).await.unwrap();
    }

    /// Publishes events: of each its key and what fills it. Each has a number of its own, which rises.
    pub async fn publish(&self, events: &[(&str, &str)]) {
        self.publish_to(STREAM, events).await;
    }

    /// The same in another stream.
    pub async fn publish_to(&self, stream: &str, events: &[(&str, &str)]) {
        let event = |(key, filling): &(&str, &str)| {
            let n = self.published.fetch_add(1, Ordering::Relaxed);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            let time = i64::try_from(now.as_micros()).unwrap();
            Event {
                id: EventId::derive(time, &[key.as_bytes(), &n.to_be_bytes()]),
                stream: stream.into(),
                partition: Some(0),
                kind: "Placed".into(),
                key: Some(Bytes::copy_from_slice(key.as_bytes())),
                payload: Some(json!({ "key": key, "n": n, "filling": filling }).to_string().into()),
                headers: Default::default(),
                time,
                position: Position::ZERO,
            }
        };
        tools::publish(&self.bus, events.iter().map(event).collect(), None).await;
    }

    /// Runs a push with these settings.
    pub async fn run(&self, settings: &str) -> Running {
        self.run_with(&[STREAM], settings).await
    }

    /// The same of other streams.
    pub async fn run_with(&self, streams: &[&str], settings: &str) -> Running {
        let config = format!("streams = {streams:?}\nurl = \"{}\"\n{settings}", self.url);
        let config = toml::from_str(&config).unwrap();
        let inbox = DeferredInbox::open(&self.dir.path().join("push.db")).await.unwrap().budget(self.budget);
        let shelf: Arc<dyn Shelf> = Arc::new(inbox.clone());
        let push = Push::new(PUSH, config, Arc::clone(&self.bus), inbox, Arc::clone(&shelf)).unwrap();
        let (watch, stop) = (push.watch(), CancellationToken::new());
        Running { shelf, watch, task: tokio::spawn(push.run(stop.clone())), stop }
    }

    /// What the push has set aside.
    pub async fn parked(&self, running: &Running) -> Vec<Shelved> {
        running.shelf.list(&ShelfFilter::default()).await.unwrap()
    }

    /// Waits until what the push has set aside is as it should be.
    pub async fn until_parked(
        &self,
        running: &Running,
        what: &str,
        done: impl Fn(&[Shelved]) -> bool,
    ) -> Vec<Shelved> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let parked = self.parked(running).await;
            if done(&parked) {
                return parked;
            }
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}: {parked:?}");
        }
    }

    /// Waits until what has come is as it should be.
    pub async fn until(&self, what: &str, done: impl Fn(&[Asked]) -> bool) -> Vec<Asked> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            {
                let asked = self.endpoint.asked.lock().unwrap();
                if done(&asked) {
                    return asked.clone();
                }
                assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}: {} came", asked.len());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// How many events wait behind the first ones of their keys.
pub fn waiting(parked: &[Shelved]) -> u64 {
    parked.iter().map(|parked| parked.waiting).sum()
}

/// A push that runs.
pub struct Running {
    pub shelf: Arc<dyn Shelf>,
    watch: Arc<Watch>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// What status says of it.
    pub fn report(&self) -> PushReport {
        self.watch.report(PUSH)
    }

    /// Waits until status says so of it, and why.
    pub async fn says(&self, phase: Phase, why: Option<&str>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let report = self.report();
            let as_meant = match why {
                Some(why) => report.error.as_ref().is_some_and(|error| error.contains(why)),
                None => report.error.is_none(),
            };
            if report.phase == phase && as_meant {
                return;
            }
            assert!(Instant::now() < deadline, "not {phase:?} for {why:?}: {report:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops it in good order.
    pub async fn stop(self) {
        self.stop.cancel();
        tools::within(self.task).await.unwrap();
    }
}
