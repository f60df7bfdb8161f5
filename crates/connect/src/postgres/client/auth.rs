//! Logging in: trust, cleartext, MD5, SCRAM-SHA-256.

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use headwater_core::{Error, Kind, Result, ResultExt};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::{Connection, PgError};
use crate::postgres::url::ConnectOptions;

/// Answers the server until it says that all is well.
pub async fn log_in(connection: &mut Connection, options: &ConnectOptions) -> Result<()> {
    loop {
        match connection.message().await? {
            Message::AuthenticationOk => return Ok(()),
            Message::AuthenticationCleartextPassword => {
                send_password(connection, password(options)?.as_bytes()).await?;
            }
            Message::AuthenticationMd5Password(body) => {
                let hash = md5_hash(options.user.as_bytes(), password(options)?.as_bytes(), body.salt());
                send_password(connection, hash.as_bytes()).await?;
            }
            Message::AuthenticationSasl(body) => {
                let mechanisms: Vec<String> =
                    body.mechanisms().map(|name| Ok(name.to_owned())).collect().unwrap_or_default();
                if !mechanisms.iter().any(|name| name == SCRAM_SHA_256) {
                    return Err(unsupported(options, &mechanisms.join(", ")));
                }
                scram(connection, options).await?;
            }
            Message::ErrorResponse(body) => {
                return Err(PgError::from_body(&body).into_startup_error(doing(options)));
            }
            _ => return Err(unsupported(options, "this way of logging in")),
        }
    }
}

fn doing(options: &ConnectOptions) -> String {
    format!("logging in to PostgreSQL at {options}")
}

fn unsupported(options: &ConnectOptions, what: &str) -> Error {
    Error::new(Kind::Refused, format!("{}: the server wants {what}", doing(options)))
        .hint("use scram-sha-256, md5, cert or trust for this user in pg_hba.conf")
}

fn password(options: &ConnectOptions) -> Result<&str> {
    options.password.as_deref().ok_or_else(|| {
        Error::new(Kind::Config, format!("{}: the server wants a password", doing(options)))
            .hint("put it into the URL (postgres://user:${PASSWORD}@host/database) or into PGPASSWORD")
    })
}

async fn send_password(connection: &mut Connection, password: &[u8]) -> Result<()> {
    let mut message = BytesMut::new();
    frontend::password_message(password, &mut message).doing(Kind::Config, || "the password".to_owned())?;
    connection.write(&message).await
}

async fn scram(connection: &mut Connection, options: &ConnectOptions) -> Result<()> {
    let refused = || doing(options);
    let mut scram = ScramSha256::new(password(options)?.as_bytes(), ChannelBinding::unsupported());
    let mut message = BytesMut::new();
    frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut message)
        .doing(Kind::Internal, refused)?;
    connection.write(&message).await?;
    match connection.message().await? {
        Message::AuthenticationSaslContinue(body) => {
            scram.update(body.data()).doing(Kind::Refused, refused)?
        }
        other => return Err(unexpected(other, options)),
    }
    message.clear();
    frontend::sasl_response(scram.message(), &mut message).doing(Kind::Internal, refused)?;
    connection.write(&message).await?;
    match connection.message().await? {
        // Checking the server's own proof is what keeps an impostor out.
        Message::AuthenticationSaslFinal(body) => scram.finish(body.data()).doing(Kind::Refused, refused),
        other => Err(unexpected(other, options)),
    }
}

fn unexpected(message: Message, options: &ConnectOptions) -> Error {
    match message {
        Message::ErrorResponse(body) => PgError::from_body(&body).into_error(doing(options)),
        _ => Error::new(Kind::Decode, format!("{}: an unexpected answer", doing(options))),
    }
}
