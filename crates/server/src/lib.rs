//! The HTTP side: `/healthz`, `/readyz`, `/metrics`, `/status` and `/parked/retry`; and pushes.

pub mod push;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use headwater_core::ports::HoldsBack;
use headwater_core::{Error, Kind, Result, ResultExt};
use headwater_runtime::{Runtime, metrics};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How often what histograms were given is counted: until then it is kept, one by one.
const UPKEEP: Duration = Duration::from_secs(5);

/// The admin server of one runtime.
pub struct Server {
    listener: TcpListener,
    addr: SocketAddr,
    routes: Router,
    metrics: PrometheusHandle,
}

#[derive(Clone)]
struct Admin {
    runtime: Arc<Runtime>,
    metrics: PrometheusHandle,
}

impl Server {
    /// Takes the address (port 0: any free one) and installs the process's metrics recorder. An error
    /// of kind `Config` when the address cannot be had.
    pub async fn bind(addr: SocketAddr, runtime: Arc<Runtime>) -> Result<Self> {
        let listener = listen(addr).await?;
        let addr = listener.local_addr().doing(Kind::Internal, || "asking for the port".to_owned())?;
        let metrics = recorder()?;
        let admin = Admin { runtime, metrics: metrics.clone() };
        let routes = Router::new()
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .route("/metrics", get(render))
            .route("/status", get(status))
            .route("/parked/retry", post(retry))
            .with_state(admin);
        Ok(Self { listener, addr, routes, metrics })
    }

    /// The address it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) -> Result<()> {
        let ends = async move { stop.cancelled().await };
        let metrics = self.metrics;
        let upkeep = async {
            loop {
                tokio::time::sleep(UPKEEP).await;
                metrics.run_upkeep();
            }
        };
        // A client that keeps its connection open must not keep the process from ending.
        tokio::select! {
            served = axum::serve(self.listener, self.routes).into_future() => {
                served.doing(Kind::Unavailable, || format!("serving http://{}", self.addr))
            }
            () = ends => Ok(()),
            () = upkeep => Ok(()),
        }
    }
}

/// Takes the address; an error of kind `Config` when it cannot be had.
pub async fn listen(addr: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|error| unavailable(addr, error))
}

fn unavailable(addr: SocketAddr, error: std::io::Error) -> Error {
    let hint = match error.kind() {
        ErrorKind::AddrInUse => "another process has this port: set `listen` under [http] to a free one",
        ErrorKind::AddrNotAvailable => "this machine has no such address: set `listen` under [http]",
        ErrorKind::PermissionDenied => {
            "this user may not take this port: set `listen` under [http] above 1024"
        }
        _ => "set `listen` under [http]",
    };
    Error::new(Kind::Config, format!("listening on {addr}")).because(error).hint(hint)
}

/// The process's one metrics recorder, installed on first use.
fn recorder() -> Result<PrometheusHandle> {
    static RECORDER: Mutex<Option<PrometheusHandle>> = Mutex::new(None);
    let mut recorder = RECORDER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(installed) = &*recorder {
        return Ok(installed.clone());
    }
    let events = [1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6];
    let bytes = [1e3, 1e4, 1e5, 1e6, 4e6, 16e6, 64e6];
    let seconds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
    let named = |name: &str| Matcher::Full(name.to_owned());
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(named("headwater_batch_events"), &events)
        .and_then(|builder| builder.set_buckets_for_metric(named("headwater_batch_bytes"), &bytes))
        .and_then(|builder| builder.set_buckets_for_metric(named("headwater_push_seconds"), &seconds))
        .and_then(PrometheusBuilder::install_recorder)
        .doing(Kind::Internal, || "installing the metrics recorder".to_owned())?;
    metrics::describe();
    *recorder = Some(handle.clone());
    Ok(handle)
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let reasons = admin.runtime.not_ready();
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n").into_response()
}

async fn render(State(admin): State<Admin>) -> Response {
    metrics::set_gauges(&admin.runtime.own_status().await);
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, admin.metrics.render()).into_response()
}

async fn status(State(admin): State<Admin>) -> Response {
    Json(admin.runtime.status().await).into_response()
}

/// One line of what is parked, to be tried again.
#[derive(Deserialize)]
struct Retry {
    stream: String,
    #[serde(flatten)]
    holds: Holds,
}

/// What it holds back.
#[derive(Deserialize)]
#[serde(tag = "holds", rename_all = "snake_case")]
enum Holds {
    Stream,
    Key { key: Vec<u8> },
    Nothing,
}

/// A page of some other site cannot ask for this: its browser would first ask whether it may send JSON here.
async fn retry(State(admin): State<Admin>, Json(retry): Json<Retry>) -> Response {
    let holds = match retry.holds {
        Holds::Stream => HoldsBack::Stream,
        Holds::Key { key } => HoldsBack::Key(key.into()),
        Holds::Nothing => HoldsBack::Nothing,
    };
    match admin.runtime.release(&retry.stream, &holds).await {
        Ok(released) => Json(serde_json::json!({ "released": released })).into_response(),
        Err(error) => Json(serde_json::json!({ "error": error.to_string() })).into_response(),
    }
}
