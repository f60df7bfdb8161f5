//! The three ways bytes travel: TCP, TLS over TCP, a Unix socket.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use headwater_core::{Kind, Result, ResultExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use crate::postgres::url::ConnectOptions;

/// A connected socket.
pub enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
    /// A Unix socket.
    Unix(UnixStream),
}

impl Stream {
    /// Connects, without TLS.
    pub async fn connect(options: &ConnectOptions) -> Result<Self> {
        let doing = || format!("connecting to PostgreSQL at {options}");
        let connecting = async {
            if options.is_unix() {
                let path = format!("{}/.s.PGSQL.{}", options.host, options.port);
                return UnixStream::connect(path).await.map(Self::Unix);
            }
            let stream = TcpStream::connect((options.host.as_str(), options.port)).await?;
            stream.set_nodelay(true)?;
            keep_alive(&stream)?;
            Ok(Self::Tcp(stream))
        };
        let connected = match tokio::time::timeout(options.connect_timeout, connecting).await {
            Ok(connected) => connected.doing(Kind::Unavailable, doing),
            Err(elapsed) => Err(elapsed).doing(Kind::Unavailable, doing),
        };
        connected.map_err(|error| error.hint("does PostgreSQL run there? Look at the host and port of `url`"))
    }

    /// How long a reader may pause before the server has to wait for it: a Unix socket holds some hundred
    /// messages, TCP's buffers grow with the backlog. Measured: shorter pauses cost both sides wakings.
    pub fn pause(&self) -> Duration {
        match self {
            Self::Unix(_) => Duration::from_micros(300),
            Self::Tcp(_) | Self::Tls(_) => Duration::from_micros(500),
        }
    }
}

/// A peer that is gone without a word is noticed within a minute.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(20))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    // Keepalives are not sent while something of ours waits to be acknowledged.
    sockopt::set_tcp_user_timeout(stream, 60_000)?;
    Ok(())
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
