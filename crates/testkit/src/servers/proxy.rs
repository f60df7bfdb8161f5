//! A TCP proxy that breaks connections on demand.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use headwater_core::{Kind, Result, ResultExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// Forwards connections of a port of 127.0.0.1 to a server, unless told otherwise.
///
/// It lives in the runtime that started it, and ends with its handle.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    mode: watch::Sender<Mode>,
    sent: Arc<AtomicU64>,
    _listening: AbortOnDropHandle<()>,
}

/// What happens to connections now.
#[derive(Debug, Clone, Copy, Default)]
struct Mode {
    /// Nothing is forwarded; connections stay, and new ones are taken.
    held: bool,
    /// New connections are reset at once.
    refused: bool,
    /// Rises with each cut; a connection of an earlier one is reset.
    cuts: u64,
    /// Rises when connections are abandoned: nothing is forwarded any more on those there are.
    abandoned: u64,
    /// From where on nothing more is forwarded of what one end of a connection sends.
    from: Option<fn(&[u8]) -> bool>,
}

impl Proxy {
    /// Starts a proxy before the server at `target`, which need not listen yet.
    pub async fn start(target: impl ToSocketAddrs) -> Result<Self> {
        let doing = || "starting a proxy".to_owned();
        let target = tokio::net::lookup_host(target).await.doing(Kind::Config, doing)?.next();
        let target = target.ok_or(std::io::ErrorKind::NotFound).map_err(std::io::Error::from);
        let target = target.doing(Kind::Config, doing)?;
        let (listener, port) = super::process::listener();
        listener.set_nonblocking(true).doing(Kind::Unavailable, doing)?;
        let listener = TcpListener::from_std(listener).doing(Kind::Unavailable, doing)?;
        let (mode, told) = watch::channel(Mode::default());
        let sent = Arc::new(AtomicU64::new(0));
        let listening = listen(listener, target, told, Arc::clone(&sent));
        let listening = AbortOnDropHandle::new(tokio::spawn(listening));
        Ok(Self { port, mode, sent, _listening: listening })
    }

    /// The port of 127.0.0.1 to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many bytes the server has sent through it.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Stops forwarding, both ways; connections stay, and nobody can tell why it is so quiet.
    pub fn hold(&self) {
        self.mode.send_modify(|mode| mode.held = true);
    }

    /// Stops forwarding what one end of a connection sends as soon as it sends such a thing; all else goes on.
    pub fn hold_from(&self, such: fn(&[u8]) -> bool) {
        self.mode.send_modify(|mode| mode.from = Some(such));
    }

    /// Forwards again what was held, and takes new connections.
    pub fn release(&self) {
        self.mode.send_modify(|mode| (mode.held, mode.refused, mode.from) = (false, false, None));
    }

    /// Forwards nothing any more on the connections that there are, which stay, as when the server's machine has
    /// vanished and another has its address. New ones are welcome.
    pub fn abandon(&self) {
        self.mode.send_modify(|mode| mode.abandoned += 1);
    }

    /// Resets all connections; new ones are welcome.
    pub fn cut(&self) {
        self.mode.send_modify(|mode| mode.cuts += 1);
    }

    /// Resets all connections, and new ones too, until [`Proxy::release`].
    pub fn refuse(&self) {
        self.mode.send_modify(|mode| (mode.refused, mode.cuts) = (true, mode.cuts + 1));
    }
}

async fn listen(
    listener: TcpListener,
    target: SocketAddr,
    mode: watch::Receiver<Mode>,
    sent: Arc<AtomicU64>,
) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        if mode.borrow().refused {
            reset(&client);
        } else {
            connections.spawn(serve(client, target, mode.clone(), Arc::clone(&sent)));
        }
    }
}

/// Serves one connection until it ends or is cut.
async fn serve(
    mut client: TcpStream,
    target: SocketAddr,
    mut mode: watch::Receiver<Mode>,
    sent: Arc<AtomicU64>,
) {
    let Mode { cuts, abandoned, .. } = *mode.borrow_and_update();
    let watched = mode.clone();
    let Ok(mut server) = TcpStream::connect(target).await else { return reset(&client) };
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let cut = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = forward(from_client, to_server, watched.clone(), |_| ());
        let down = forward(from_server, to_client, watched, |length| {
            sent.fetch_add(length, Ordering::Relaxed);
        });
        tokio::select! {
            _ = async { tokio::join!(up, down) } => false,
            _ = mode.wait_for(|mode| mode.cuts != cuts || mode.abandoned != abandoned) => true,
        }
    };
    if !cut {
        return;
    }
    reset(&server);
    drop(server);
    // What was abandoned stays until it is cut, and says nothing.
    mode.wait_for(|mode| mode.cuts != cuts).await.ok();
    reset(&client);
}

/// Copies one way until either end closes.
async fn forward(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut mode: watch::Receiver<Mode>,
    count: impl Fn(u64),
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let part = &buffer[..length];
        let goes = |mode: &Mode| !mode.held && !mode.from.is_some_and(|such| such(part));
        if mode.wait_for(goes).await.is_err() || to.write_all(part).await.is_err() {
            break;
        }
        count(length as u64);
    }
    to.shutdown().await.ok();
}

/// Makes closing the connection a reset, as a firewall or a dead peer would.
fn reset(stream: &TcpStream) {
    stream.set_zero_linger().ok();
}
