//! The order service: its changes reach three services over HTTP that fail, hang and restart at random.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod answers;
mod batches;
mod check;
#[path = "../common/mod.rs"]
mod common;
mod crowd;
mod delivery;
mod signed;
mod stops;
mod streams;
mod world;

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use common::{PATIENCE, Place};
use headwater_testkit::binary::Headwater;
use headwater_testkit::servers::free_port;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// What a service has seen, across its restarts.
#[derive(Default)]
struct Seen {
    ids: HashSet<String>,
    /// The versions of each order, as they took effect.
    orders: BTreeMap<String, Vec<i64>>,
    requests: u64,
    /// Ids that came again.
    again: u64,
    failing: bool,
    /// The order that is refused for good.
    refused: Option<(String, StatusCode)>,
    /// How often it was refused.
    refusals: u64,
    /// Requests that were signed.
    signed: u64,
    /// Requests whose signature, id or time were not right.
    forged: Vec<String>,
}

#[derive(Clone)]
struct Service {
    seen: Arc<Mutex<Seen>>,
    address: SocketAddr,
    running: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Service {
    fn new(failing: bool) -> Self {
        let seen = Arc::new(Mutex::new(Seen { failing, ..Seen::default() }));
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        Self { seen, address, running: Arc::default() }
    }

    /// Listens, on the same port each time.
    async fn start(&self) {
        let deadline = Instant::now() + PATIENCE;
        // A process that is just being started may still hold what this one held.
        let listener = loop {
            match tokio::net::TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(error) => assert!(Instant::now() < deadline, "{}: {error}", self.address),
            }
        };
        let routes = Router::new().fallback(answer).with_state(Arc::clone(&self.seen));
        let task = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        *self.running.lock().unwrap() = Some(task);
    }

    /// Refuses connections from now on.
    async fn stop(&self) {
        let task = self.running.lock().unwrap().take().unwrap();
        task.abort();
        let _ = task.await;
    }

    fn orders(&self) -> BTreeMap<String, Vec<i64>> {
        self.seen.lock().unwrap().orders.clone()
    }

    async fn until(&self, what: &str, done: impl Fn(&Seen) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(&self.seen.lock().unwrap()) {
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}: {:?}", self.orders());
            tokio::task::yield_now().await;
        }
    }
}

/// Fails now and then, before or after it has had its effect.
async fn answer(State(seen): State<Arc<Mutex<Seen>>>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let (turn, failing) = {
        let mut seen = seen.lock().unwrap();
        seen.requests += 1;
        if headers.contains_key("webhook-signature") {
            seen.signed += 1;
            seen.forged.extend(signed::wrong(&headers, &body));
        }
        (seen.requests, seen.failing)
    };
    let how = if failing { turn.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 60 } else { 15 };
    match how {
        0 => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        1 => return (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "1")], "later").into_response(),
        2 => return StatusCode::TOO_MANY_REQUESTS.into_response(),
        3 if turn % 3 == 0 => std::future::pending::<()>().await,
        _ => {}
    }
    let event: Value = serde_json::from_slice(&body).unwrap();
    let order = uri.path().rsplit('/').next().unwrap().to_owned();
    let mut seen = seen.lock().unwrap();
    let refused = seen.refused.as_ref().filter(|(refused, _)| *refused == order).map(|(_, status)| *status);
    if let Some(status) = refused {
        seen.refusals += 1;
        return (status, "no such order").into_response();
    }
    let id = headers["idempotency-key"].to_str().unwrap().to_owned();
    assert_eq!(headers["webhook-id"], *id);
    assert_eq!(headers["content-type"], "application/json");
    if seen.ids.insert(id) {
        seen.orders.entry(order).or_default().push(event["after"]["version"].as_i64().unwrap());
    } else {
        seen.again += 1;
    }
    if how == 4 { StatusCode::BAD_GATEWAY.into_response() } else { StatusCode::NO_CONTENT.into_response() }
}

/// An order service on SQLite, and a config that pushes its orders.
struct Orders {
    place: Place,
    database: PathBuf,
}

impl Orders {
    fn new(pushes: &[(&str, &Service)], more: &str) -> Self {
        let place = Place::new("");
        let database = place.dir.path().join("orders.db");
        let orders = Self { place, database };
        let database = orders.database.display();
        let mut sections = format!(
            "[source.shop]\nkind = \"sqlite\"\npath = \"{database}\"\ntables = [\"orders\"]\n\
             [stream.orders]\nfrom = \"shop.orders\"\ncolumns = \"*\"\npartitions = 4\n"
        );
        for (name, service) in pushes {
            sections += &format!(
                "[push.{name}]\nstreams = [\"orders\"]\nurl = \"http://{}/{{stream}}/{{payload.id}}\"\n\
                 timeout = \"1s\"\nretry_max = \"500ms\"\n{more}\n",
                service.address
            );
        }
        if pushes.is_empty() {
            sections += more;
        }
        orders.place.configure(&sections);
        orders
            .sql("PRAGMA journal_mode = WAL; CREATE TABLE orders (id INTEGER PRIMARY KEY, version INTEGER);");
        orders
    }

    /// `headwater run`, when it follows the tables: a row that is written while they are read may come twice, as a
    /// change and as it was read.
    async fn run(&self) -> Headwater {
        let headwater = self.place.run().await;
        let deadline = Instant::now() + PATIENCE;
        let mut source = self.place.status().await["sources"][0].clone();
        while source["phase"] != "streaming" {
            assert!(Instant::now() < deadline, "{source}");
            source = self.place.status().await["sources"][0].clone();
        }
        headwater
    }

    /// What `headwater parked` prints as JSON.
    fn parked(&self, arguments: &[&str]) -> Value {
        self.ask(&[&["parked"], arguments].concat()).1
    }

    /// What a command prints as JSON, behind its exit code.
    fn ask(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let config = self.place.config();
        let arguments = [arguments, &[config.to_str().unwrap()]].concat();
        let output = std::process::Command::new(common::program()).args(arguments).output().unwrap();
        let printed = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        (output.status.code(), printed)
    }

    fn sql(&self, sql: &str) {
        let connection = rusqlite::Connection::open(&self.database).unwrap();
        connection.busy_timeout(PATIENCE).unwrap();
        connection.execute_batch(sql).unwrap();
    }

    /// Creates orders, or raises their versions, in a transaction each; the longest that one took.
    fn write(&self, orders: u32, version: u32) -> Duration {
        let write = |id| {
            let began = Instant::now();
            self.sql(&format!(
                "INSERT INTO orders VALUES ({id}, {version}) ON CONFLICT DO UPDATE SET version = {version}"
            ));
            began.elapsed()
        };
        (1..=orders).map(write).max().unwrap()
    }
}

fn complete(seen: &Seen, orders: usize, versions: i64) -> bool {
    seen.orders.len() == orders && seen.orders.values().all(|order| order.last() == Some(&versions))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_services_that_fail_at_random_see_every_change_in_order() {
    let services = [Service::new(true), Service::new(true), Service::new(true)];
    let names = ["features", "users", "activation"];
    let pushes: Vec<_> = names.into_iter().zip(&services).collect();
    let orders = Orders::new(&pushes, &format!("signing_secrets = [\"{}\"]", signed::SECRET));
    let mut headwater = orders.run().await;
    // All three are down: whoever saves an order does not notice.
    let took = orders.write(10, 1);
    assert!(took < Duration::from_secs(2), "a transaction of the order service took {took:?}");
    for service in &services {
        service.start().await;
    }
    for version in 2..=8 {
        orders.write(10, version);
        let service = &services[version as usize % 3];
        service.until("something of it has come", |seen| seen.requests > u64::from(version)).await;
        service.stop().await;
        if version % 3 == 0 {
            headwater.kill().await;
            headwater = orders.run().await;
        }
        service.start().await;
    }
    let expected: Vec<i64> = (1..=8).collect();
    for (name, service) in names.into_iter().zip(&services) {
        service.until(name, |seen| complete(seen, 10, 8)).await;
        for (order, versions) in service.orders() {
            assert_eq!(versions, expected, "order {order} at {name}");
        }
        let seen = service.seen.lock().unwrap();
        assert!(seen.again > 0, "{name}: nothing came twice, so nothing was tested");
        assert!(seen.signed == seen.requests && seen.forged.is_empty(), "{:?}", seen.forged);
    }
    assert_eq!(headwater.stop(PATIENCE).await.unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_refused_holds_up_its_key_alone() {
    let service = Service::new(false);
    service.seen.lock().unwrap().refused = Some(("3".into(), StatusCode::UNPROCESSABLE_ENTITY));
    service.start().await;
    let orders = Orders::new(&[("features", &service)], "");
    let headwater = orders.run().await;
    for version in 1..=3 {
        orders.write(5, version);
    }
    service.until("all others have come", |seen| complete(seen, 4, 3) && seen.refusals > 0).await;
    service.seen.lock().unwrap().refused = None;
    assert!(!service.orders().contains_key("3"));
    // A person lets it go; what waited behind it follows.
    let deadline = Instant::now() + PATIENCE;
    let mut listed = orders.parked(&["list", "--json"]);
    while listed[0]["waiting"] != 2 {
        assert!(Instant::now() < deadline, "{listed}");
        listed = orders.parked(&["list", "--json"]);
    }
    assert_eq!(listed[0]["error"], "it answered 422 Unprocessable Entity: no such order");
    let line = &listed[0];
    assert_eq!(
        (&line["place"], &line["owner"], &line["waiting"]),
        (&json!("push"), &json!("features"), &json!(2))
    );
    let aside = json!({ "parked": 1, "retrying": 0, "waiting": 2 });
    // A status is at most a second old.
    while orders.place.status().await["pushes"][0]["aside"] != aside {
        assert!(Instant::now() < deadline, "{}", orders.place.status().await);
    }
    assert_eq!(orders.parked(&["retry", "--of", "features", "--json"]), json!({ "retried": 1 }));
    service.until("it has come too", |seen| complete(seen, 5, 3)).await;
    assert_eq!(service.orders()["3"], [1, 2, 3]);
    assert_eq!(headwater.stop(PATIENCE).await.unwrap().code(), Some(0));
}

/// Where no more may be set aside the push waits, and says so; nothing is lost, and it goes on by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_cannot_be_set_aside_waits_in_the_stream() {
    let service = Service::new(false);
    service.seen.lock().unwrap().refused = Some(("3".into(), StatusCode::UNPROCESSABLE_ENTITY));
    service.start().await;
    let orders = Orders::new(&[("features", &service)], "max_set_aside = \"4KiB\"");
    let headwater = orders.run().await;
    for version in 1..=40 {
        orders.write(3, version);
    }
    let deadline = Instant::now() + PATIENCE;
    let mut push = orders.place.status().await["pushes"][0].clone();
    while push["full"] != true {
        assert!(Instant::now() < deadline, "{push}");
        push = orders.place.status().await["pushes"][0].clone();
    }
    assert_eq!(push["phase"], "retrying", "{push}");
    assert!(push["error"].as_str().unwrap().contains("max_set_aside"), "{push}");
    let waiting = orders.parked(&["list", "--json"])[0]["waiting"].as_u64().unwrap();
    assert!((2..20).contains(&waiting), "{waiting}");
    let (_, metrics) = headwater_testkit::binary::get(&orders.place.listen, "/metrics").await.unwrap();
    assert!(metrics.contains("headwater_push_full{push=\"features\"} 1"), "{metrics}");
    service.seen.lock().unwrap().refused = None;
    assert_eq!(orders.parked(&["retry", "--of", "features", "--json"]), json!({ "retried": 1 }));
    service.until("all has come", |seen| complete(seen, 3, 40)).await;
    assert_eq!(service.orders()["3"], (1..=40).collect::<Vec<_>>());
    assert_eq!(headwater.stop(PATIENCE).await.unwrap().code(), Some(0));
}

/// Without `attempts` it is tried for ever: not in memory, where what comes behind it would fill the buffer.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_key_that_alone_is_in_trouble_is_tried_again_from_disk() {
    let service = Service::new(false);
    service.seen.lock().unwrap().refused = Some(("3".into(), StatusCode::INTERNAL_SERVER_ERROR));
    service.start().await;
    let orders = Orders::new(&[("features", &service)], "");
    let headwater = orders.run().await;
    orders.write(5, 1);
    service.until("all others have come", |seen| complete(seen, 4, 1)).await;
    let deadline = Instant::now() + PATIENCE;
    let mut version = 1;
    loop {
        let push = orders.place.status().await["pushes"][0].clone();
        if push["aside"]["retrying"] == 1 {
            break;
        }
        assert!(Instant::now() < deadline, "{push}");
        // Others go on meanwhile.
        version += 1;
        orders.write(5, version);
        service.until("all others have come", |seen| complete(seen, 4, version.into())).await;
    }
    let listed = orders.parked(&["list", "--json"]);
    assert_eq!((&listed[0]["state"], &listed[0]["key"]), (&json!("retrying"), &json!("3")), "{listed}");
    assert!(listed[0]["attempts"].as_u64() >= Some(5), "{listed}");
    service.seen.lock().unwrap().refused = None;
    service.until("it has come too", |seen| complete(seen, 5, version.into())).await;
    assert_eq!(service.orders()["3"], (1..=i64::from(version)).collect::<Vec<_>>());
    assert_eq!(headwater.stop(PATIENCE).await.unwrap().code(), Some(0));
}

/// HTTPS, events that share a request, and how it is addressed.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_go_by_https_with_what_the_config_says() {
    let place = tempfile::tempdir().unwrap();
    let (key, certificate) = (place.path().join("own.key"), place.path().join("own.crt"));
    let mut openssl = std::process::Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    openssl.args([
        "-days",
        "30",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-addext",
        "basicConstraints=CA:FALSE",
    ]);
    openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
    assert!(openssl.output().unwrap().status.success());
    let (requests, mut received) = tokio::sync::mpsc::unbounded_channel();
    let port = serve_tls(&certificate, &key, requests).await;
    let push = format!(
        "[push.batch]\nstreams = [\"orders\"]\nurl = \"https://localhost:{port}/in/{{stream}}\"\nbatch = 50\nconcurrency = 1\n\
             basic = {{ user = \"shop\", password = \"s\u{e9}cret\" }}\n\
             headers = {{ \"X-Tenant\" = \"t1\", \"Content-Type\" = \"application/x+json\" }}\nca_file = \"{}\"\n",
        certificate.display()
    );
    let orders = Orders::new(&[], &push);
    assert_eq!(orders.check()[0].1, "ok", "{:?}", orders.check());
    // All of them are there when the push begins.
    orders.write(200, 1);
    let headwater = orders.run().await;
    let mut versions = BTreeMap::new();
    let mut most = 0;
    while versions.len() < 200 {
        let within = tokio::time::timeout(PATIENCE, received.recv());
        let (uri, headers, body): (Uri, HeaderMap, Bytes) = within.await.unwrap().unwrap();
        assert_eq!(uri.path(), "/in/orders");
        assert_eq!(headers["authorization"], "Basic c2hvcDpzw6ljcmV0");
        assert_eq!(
            (headers["x-tenant"].as_bytes(), headers["content-type"].as_bytes()),
            (&b"t1"[..], &b"application/x+json"[..])
        );
        assert!(!headers.contains_key("idempotency-key") && headers.contains_key("webhook-id"));
        let events: Vec<Value> = serde_json::from_slice(&body).unwrap();
        most = most.max(events.len());
        for event in events {
            versions.insert(event["after"]["id"].as_i64().unwrap(), event["after"]["version"].clone());
        }
    }
    assert!(most > 1, "no events shared a request");
    assert_eq!(headwater.stop(PATIENCE).await.unwrap().code(), Some(0));
}

type Request = (Uri, HeaderMap, Bytes);

/// Answers 204 to all that comes by TLS, and hands it on.
async fn serve_tls(certificate: &Path, key: &Path, to: tokio::sync::mpsc::UnboundedSender<Request>) -> u16 {
    let chain = CertificateDer::pem_file_iter(certificate).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let address = plain(to).await;
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut behind = tokio::net::TcpStream::connect(address).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut stream, &mut behind).await });
        }
    });
    port
}

/// The same without TLS, behind it.
async fn plain(to: tokio::sync::mpsc::UnboundedSender<Request>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = Router::new().fallback(async move |uri: Uri, headers: HeaderMap, body: Bytes| {
        to.send((uri, headers, body)).unwrap();
        StatusCode::NO_CONTENT
    });
    tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    address
}
