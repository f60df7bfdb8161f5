//! Our own thin PostgreSQL client: simple queries, COPY out and logical replication, read in big gulps.
//!
//! Messages are those of `postgres-protocol`; what is ours is how the socket is read (`reader`), because
//! that decides how fast the server's walsender can go.

mod auth;
mod error;
mod query;
mod reader;
mod replication;
mod settings;
mod stream;
mod tls;

use bytes::BytesMut;
use headwater_core::{Error, Kind, Result, ResultExt};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub use error::PgError;
pub use query::{CopyOut, QueryRow, quote_ident, quote_literal, quote_option};
pub use reader::Gulp;
pub use replication::{Replicated, ReplicationReader, ReplicationWriter};
use settings::CANONICAL;
use stream::Stream;

use super::url::{ConnectOptions, SslMode};

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Ordinary SQL.
    Sql,
    /// Logical replication commands, and SQL by the simple protocol.
    Replication,
}

/// An open connection.
pub struct Connection {
    stream: Stream,
    buffer: BytesMut,
    parameters: Vec<(String, String)>,
    address: String,
}

impl Connection {
    /// Connects, protects the connection as `sslmode` says, and logs in.
    pub async fn connect(options: &ConnectOptions, mode: Mode) -> Result<Self> {
        let doing = || format!("connecting to PostgreSQL at {options}");
        let connecting = Self::connect_as_allowed(options, mode);
        match tokio::time::timeout(options.connect_timeout, connecting).await {
            Ok(connected) => connected,
            Err(elapsed) => Err(elapsed).doing(Kind::Unavailable, doing),
        }
    }

    /// libpq's rules: `prefer` falls back to no TLS, `allow` to TLS, when the server refuses the first way.
    async fn connect_as_allowed(options: &ConnectOptions, mode: Mode) -> Result<Self> {
        let first = options.ssl_mode != SslMode::Disable && options.ssl_mode != SslMode::Allow;
        let attempt = Self::attempt(options, mode, first && !options.is_unix()).await;
        let may_change = matches!(options.ssl_mode, SslMode::Prefer | SslMode::Allow) && !options.is_unix();
        match attempt {
            Err(error) if may_change && PgError::code_of(&error) == Some("28000") => {
                Self::attempt(options, mode, !first).await.map_err(|_| error)
            }
            attempt => attempt,
        }
    }

    async fn attempt(options: &ConnectOptions, mode: Mode, tls: bool) -> Result<Self> {
        let mut connection = Self::logged_in(options, mode, tls).await?;
        connection.make_canonical(options, mode, tls).await?;
        Ok(connection)
    }

    async fn logged_in(options: &ConnectOptions, mode: Mode, tls: bool) -> Result<Self> {
        let mut stream = Stream::connect(options).await?;
        if tls && let Stream::Tcp(tcp) = stream {
            stream = match tls::negotiate(tcp, options).await? {
                Some(stream) => stream,
                None if options.ssl_mode == SslMode::Prefer => Stream::connect(options).await?,
                None => {
                    return Err(Error::new(Kind::Refused, format!("PostgreSQL at {options} offers no TLS"))
                        .hint("turn on ssl in postgresql.conf, or use sslmode=prefer or disable"));
                }
            };
        }
        let mut connection = Self {
            stream,
            buffer: BytesMut::with_capacity(16 << 10),
            parameters: Vec::new(),
            address: options.to_string(),
        };
        connection.start(options, mode).await?;
        Ok(connection)
    }

    async fn start(&mut self, options: &ConnectOptions, mode: Mode) -> Result<()> {
        let mut parameters = vec![
            ("user", options.user.as_str()),
            ("database", options.database.as_str()),
            ("application_name", options.application_name.as_str()),
        ];
        parameters.extend(CANONICAL);
        if mode == Mode::Replication {
            parameters.push(("replication", "database"));
        }
        let mut message = BytesMut::new();
        let doing = || "building the startup message".to_owned();
        frontend::startup_message(parameters, &mut message).doing(Kind::Config, doing)?;
        self.write(&message).await?;
        auth::log_in(self, options).await?;
        loop {
            match self.message().await? {
                Message::ReadyForQuery(_) => return Ok(()),
                Message::ErrorResponse(body) => {
                    return Err(PgError::from_body(&body)
                        .into_startup_error(format!("logging in to PostgreSQL at {options}")));
                }
                _ => {}
            }
        }
    }

    /// A parameter that the server reported (`server_version`, `server_encoding`, ...).
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    async fn write(&mut self, message: &[u8]) -> Result<()> {
        let doing = || format!("writing to PostgreSQL at {}", self.address);
        self.stream.write_all(message).await.doing(Kind::Unavailable, doing)?;
        self.stream.flush().await.doing(Kind::Unavailable, doing)
    }

    /// The next message; notices and parameters are taken care of.
    async fn message(&mut self) -> Result<Message> {
        loop {
            let doing = || format!("a message of PostgreSQL at {}", self.address);
            match Message::parse(&mut self.buffer).doing(Kind::Decode, doing)? {
                Some(Message::ParameterStatus(body)) => {
                    let name = body.name().doing(Kind::Decode, doing)?.to_owned();
                    let value = body.value().doing(Kind::Decode, doing)?.to_owned();
                    self.parameters.push((name, value));
                }
                Some(Message::NoticeResponse(_) | Message::NotificationResponse(_)) => {}
                Some(message) => return Ok(message),
                None => self.fill().await?,
            }
        }
    }

    async fn fill(&mut self) -> Result<()> {
        let doing = || format!("reading from PostgreSQL at {}", self.address);
        match self.stream.read_buf(&mut self.buffer).await.doing(Kind::Unavailable, doing)? {
            0 => Err(reader::closed(&self.address)),
            _ => Ok(()),
        }
    }
}
