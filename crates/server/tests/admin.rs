//! The admin pages of a runtime that runs, over real HTTP.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use headwater_core::Kind;
use headwater_runtime::{Runtime, RuntimeStatus};
use headwater_server::Server;
use headwater_testkit::faults::{Call, Fault, Faults, FaultyBus, FaultyConnector};
use headwater_testkit::memory::{MemoryBus, MemoryParkedStore, MemorySource};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// Metrics are the process's: each test has a source of its own.
fn runtime(name: &str, faults: &Faults) -> Arc<Runtime> {
    let source = MemorySource::new(name, 1, 10);
    let source = FaultyConnector { inner: Arc::new(source), faults: faults.clone() };
    let config = toml::from_str(&format!("from = '{name}.orders'\ncolumns = '*'")).unwrap();
    let runtime = Runtime::builder()
        .source(name, Arc::new(source), None)
        .stream("orders", config)
        .bus(Arc::new(FaultyBus { inner: Arc::new(MemoryBus::default()), faults: faults.clone() }))
        .parked(Arc::new(MemoryParkedStore::default()))
        .build();
    Arc::new(runtime.unwrap())
}

async fn serve(runtime: Arc<Runtime>, stop: &CancellationToken) -> SocketAddr {
    let server = Server::bind(([127, 0, 0, 1], 0).into(), Arc::clone(&runtime)).await.unwrap();
    let addr = server.addr();
    tokio::spawn(server.run(stop.clone()));
    let stop = stop.clone();
    tokio::spawn(async move { runtime.run(stop).await });
    addr
}

/// The status code and body of a GET.
async fn get(addr: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn a_runtime_that_is_well_is_ready_and_says_how_it_is() {
    let stop = CancellationToken::new();
    let addr = serve(runtime("shop", &Faults::default()), &stop).await;
    assert_eq!(get(addr, "/healthz").await, (200, "ok\n".to_owned()));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while get(addr, "/readyz").await.0 != 200 {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", get(addr, "/readyz").await);
    }
    let (code, body) = get(addr, "/status").await;
    let status: RuntimeStatus = serde_json::from_str(&body).unwrap();
    assert_eq!((code, &*status.sources[0].name, &*status.streams[0].name), (200, "shop", "orders"));
    assert_eq!(status.bus.unwrap().kind, "memory");
    let (code, body) = get(addr, "/metrics").await;
    assert_eq!(code, 200);
    for metric in [
        "headwater_source_up{source=\"shop\"} 1",
        "headwater_events_total{source=\"shop\",stream=\"orders\"} 0",
        "headwater_bytes_total{source=\"shop\"} 0",
        "headwater_retries_total{source=\"shop\"} 0",
        "headwater_parked_total{source=\"shop\",stream=\"orders\"} 0",
        "headwater_parked{source=\"shop\"} 0",
        "headwater_in_flight_bytes{source=\"shop\"} 0",
        "headwater_lag_bytes{source=\"shop\"} NaN",
        "headwater_lag_seconds{source=\"shop\"} 0",
        "headwater_stream_stopped{stream=\"orders\"} 0",
        "\nheadwater_memory_bytes ",
    ] {
        assert!(body.contains(metric), "{metric} in {body}");
    }
    assert_eq!(get(addr, "/nothing").await.0, 404);
    stop.cancel();
}

#[tokio::test]
async fn a_source_that_retries_is_not_ready_and_says_why() {
    let (faults, stop) = (Faults::default(), CancellationToken::new());
    for _ in 0..1000 {
        faults.inject(Call::Open, Fault::Reject(Kind::Unavailable));
    }
    let addr = serve(runtime("flaky", &faults), &stop).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    let (mut code, mut body) = get(addr, "/readyz").await;
    while !body.contains("flaky is retrying: ") {
        assert!(tokio::time::Instant::now() < deadline, "{body}");
        (code, body) = get(addr, "/readyz").await;
    }
    assert_eq!(code, 503);
    assert_eq!(get(addr, "/healthz").await.0, 200);
    stop.cancel();
}

#[tokio::test]
async fn who_asks_often_does_not_ask_the_bus() {
    let (faults, stop) = (Faults::default(), CancellationToken::new());
    faults.inject(Call::Status, Fault::HoldResponse);
    let addr = serve(runtime("slow", &faults), &stop).await;
    for _ in 0..10 {
        get(addr, "/readyz").await;
        assert_eq!(get(addr, "/metrics").await.0, 200);
    }
    assert_eq!(faults.suffered(), 0);
    // Whoever asks for all of it waits for one answer, not for ever.
    let (first, second) = tokio::join!(get(addr, "/status"), get(addr, "/status"));
    for (code, body) in [first, second, get(addr, "/status").await] {
        assert!(code == 200 && body.contains("two seconds"), "{code} {body}");
    }
    faults.let_go();
    while !get(addr, "/status").await.1.contains("\"kind\":\"memory\"") {}
    stop.cancel();
}

#[tokio::test]
async fn a_port_that_is_taken_is_a_config_error_that_names_the_key() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bound = Server::bind(taken.local_addr().unwrap(), runtime("other", &Faults::default())).await;
    let error = bound.err().expect("the port is taken");
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.to_string().contains("`listen` under [http]"), "{error}");
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_client_that_stays() {
    let stop = CancellationToken::new();
    let server =
        Server::bind(([127, 0, 0, 1], 0).into(), runtime("other", &Faults::default())).await.unwrap();
    let addr = server.addr();
    let serving = tokio::spawn(server.run(stop.clone()));
    let _client = TcpStream::connect(addr).await.unwrap();
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), serving).await.expect("it ends").unwrap().unwrap();
}
