//! Simple queries, and COPY out.

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use headwater_core::{Error, Kind, Result, ResultExt};
use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;

use super::reader::{Gulp, Pause, Reader};
use super::{Connection, PgError};

/// One row of a simple query: values as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryRow(Vec<Option<String>>);

impl QueryRow {
    /// The text of column `at`; `None` for NULL and past the last column.
    pub fn get(&self, at: usize) -> Option<&str> {
        self.0.get(at)?.as_deref()
    }

    /// The texts in order.
    pub fn values(&self) -> impl Iterator<Item = Option<&str>> {
        self.0.iter().map(Option::as_deref)
    }

    /// The text of a column that cannot be NULL.
    pub fn text(&self, at: usize) -> Result<&str> {
        self.get(at)
            .ok_or_else(|| Error::new(Kind::Decode, format!("column {at} of an answer is NULL or missing")))
    }

    /// A column that holds a number, an LSN excepted.
    pub fn number<T: std::str::FromStr>(&self, at: usize) -> Result<T>
    where
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        let text = self.text(at)?;
        text.parse().doing(Kind::Decode, || format!("\"{text}\" is not the number it should be"))
    }

    /// Whether a boolean column is true.
    pub fn is_true(&self, at: usize) -> bool {
        self.get(at) == Some("t")
    }

    fn read(body: &DataRowBody) -> Result<Self> {
        let doing = || "a row of an answer".to_owned();
        let text = |range: Option<std::ops::Range<usize>>| {
            Ok(range.map(|range| String::from_utf8_lossy(&body.buffer()[range]).into_owned()))
        };
        body.ranges().map(text).collect().map(Self).doing(Kind::Decode, doing)
    }
}

impl Connection {
    /// Runs SQL by the simple protocol and returns its rows. Several statements are one transaction.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<QueryRow>> {
        self.send_query(sql).await?;
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            match self.message().await? {
                Message::DataRow(body) => rows.push(QueryRow::read(&body)?),
                Message::ErrorResponse(body) => failed = Some(PgError::from_body(&body)),
                Message::ReadyForQuery(_) => break,
                _ => {}
            }
        }
        match failed {
            Some(error) => Err(error.into_error(format!("running \"{}\"", shortened(sql)))),
            None => Ok(rows),
        }
    }

    /// Starts `COPY ... TO STDOUT`; nothing else can be done with the connection until it has ended.
    pub async fn copy_out(&mut self, sql: &str) -> Result<CopyOut<'_>> {
        self.send_query(sql).await?;
        match self.message().await? {
            Message::CopyOutResponse(_) => {}
            Message::ErrorResponse(body) => {
                let error = PgError::from_body(&body);
                self.end_of_query().await?;
                return Err(error.into_error(format!("running \"{}\"", shortened(sql))));
            }
            _ => {
                return Err(Error::new(
                    Kind::Decode,
                    format!("\"{}\" is not a COPY to stdout", shortened(sql)),
                ));
            }
        }
        let reader = Reader::new(std::mem::take(&mut self.buffer), self.address.clone(), Pause::Task);
        Ok(CopyOut { connection: self, reader })
    }

    /// Reads to where the next query may be sent; what went wrong on the way.
    async fn end_of_query(&mut self) -> Result<Option<PgError>> {
        let mut failed = None;
        loop {
            match self.message().await? {
                Message::ErrorResponse(body) => failed = Some(PgError::from_body(&body)),
                Message::ReadyForQuery(_) => return Ok(failed),
                _ => {}
            }
        }
    }

    /// Waits, while there is nothing to ask, for the server to end the connection; why it did. Cancel-safe.
    pub async fn ended(&mut self) -> Error {
        loop {
            match self.message().await {
                Ok(Message::ErrorResponse(body)) => {
                    return PgError::from_body(&body)
                        .into_error(format!("connected to PostgreSQL at {}", self.address));
                }
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    }

    pub(super) async fn send_query(&mut self, sql: &str) -> Result<()> {
        let mut message = BytesMut::new();
        frontend::query(sql, &mut message).doing(Kind::Internal, || "a query with a NUL in it".to_owned())?;
        self.write(&message).await
    }
}

/// The rows of a running COPY.
pub struct CopyOut<'a> {
    connection: &'a mut Connection,
    reader: Reader,
}

impl CopyOut<'_> {
    /// The next rows, as many as have come, each the body of a message; `None` at the end, when the
    /// connection is free again.
    pub async fn next(&mut self) -> Result<Option<Gulp>> {
        if let Some(gulp) = self.reader.gulp(&mut self.connection.stream).await? {
            return Ok(Some(gulp));
        }
        self.connection.buffer = self.reader.take();
        match self.connection.end_of_query().await? {
            Some(error) => Err(error.into_error("copying a table")),
            None => Ok(None),
        }
    }
}

fn shortened(sql: &str) -> String {
    let one_line = sql.split_whitespace().collect::<Vec<_>>().join(" ");
    if one_line.chars().count() <= 120 {
        one_line
    } else {
        one_line.chars().take(120).chain("...".chars()).collect()
    }
}

/// A name as SQL text: `"name"`.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as SQL text: `'text'`, with backslashes meaning themselves.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// A text in a replication command, whose grammar is its own: a backslash means itself, and there is no `E''`.
pub fn quote_option(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_quoted() {
        assert_eq!(quote_ident(r#"we"ird"#), r#""we""ird""#);
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal(r"a\b"), r" E'a\\b'");
        assert_eq!(quote_option(r"it's a\b"), r"'it''s a\b'");
    }
}
