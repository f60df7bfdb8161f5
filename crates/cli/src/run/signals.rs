//! SIGTERM and SIGINT: the first asks for a clean stop, the second stops at once.

use headwater_core::{Error, Kind, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code of a stop that did not wait: what a shell gives to a process that Ctrl-C ended.
const AT_ONCE: i32 = 130;

/// Both signals that ask a process to end.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Begins to listen; from now on the signals do not end the process by themselves.
    pub fn listen() -> Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|error| Error::new(Kind::Internal, "listening for signals").because(error))
        };
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for either. Cancel-safe.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// A token that the first signal cancels; the second ends the process.
pub fn stop_on_signals() -> Result<CancellationToken> {
    let mut signals = Signals::listen()?;
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    tokio::spawn(async move {
        signals.next().await;
        tracing::info!("stopping: publishing what was read; a second signal stops at once");
        cancelled.cancel();
        signals.next().await;
        tracing::warn!("stopped at once; what was not confirmed comes again");
        std::process::exit(AT_ONCE);
    });
    Ok(stop)
}
