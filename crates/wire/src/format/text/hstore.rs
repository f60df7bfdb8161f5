//! hstores: `"a"=>"1", "b"=>NULL` (<https://www.postgresql.org/docs/current/hstore.html>).

use std::borrow::Cow;

use super::super::malformed::{Malformed, Result};
use super::quoted;

const NOT_HSTORE: Malformed = Malformed::Not("an hstore");

/// A key and its value, or `None` for NULL.
type Pair<'a> = (Cow<'a, [u8]>, Option<Cow<'a, [u8]>>);

/// Reads an hstore's text pair by pair, as `hstore_out` prints it: keys and values in quotes.
#[derive(Debug)]
pub(in super::super) struct HstoreReader<'a> {
    rest: &'a [u8],
    first: bool,
}

impl<'a> HstoreReader<'a> {
    /// A reader of `text`.
    pub(in super::super) fn new(text: &'a [u8]) -> Self {
        Self { rest: text, first: true }
    }

    /// The next pair; `None` at the end.
    pub(in super::super) fn next(&mut self) -> Result<Option<Pair<'a>>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        if !std::mem::take(&mut self.first) {
            self.rest = self.rest.strip_prefix(b", ").ok_or(NOT_HSTORE)?;
        }
        let rest = self.rest.strip_prefix(b"\"").ok_or(NOT_HSTORE)?;
        let (key, rest) = quoted(rest, false).ok_or(NOT_HSTORE)?;
        let rest = rest.strip_prefix(b"=>").ok_or(NOT_HSTORE)?;
        if let Some(rest) = rest.strip_prefix(b"NULL") {
            self.rest = rest;
            return Ok(Some((key, None)));
        }
        let rest = rest.strip_prefix(b"\"").ok_or(NOT_HSTORE)?;
        let (value, rest) = quoted(rest, false).ok_or(NOT_HSTORE)?;
        self.rest = rest;
        Ok(Some((key, Some(value))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Result<Vec<(String, Option<String>)>> {
        let mut reader = HstoreReader::new(text.as_bytes());
        let mut all = Vec::new();
        let owned = |text: Cow<'_, [u8]>| String::from_utf8_lossy(&text).into_owned();
        while let Some((key, value)) = reader.next()? {
            all.push((owned(key), value.map(owned)));
        }
        Ok(all)
    }

    #[test]
    fn reads_what_postgres_prints() {
        let pair = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
        assert_eq!(pairs(""), Ok(vec![]));
        assert_eq!(
            pairs(r#""a"=>"1", "b,=>"=>NULL, "q\"\\"=>"NULL", ""=>"""#),
            Ok(vec![
                pair("a", Some("1")),
                pair("b,=>", None),
                pair("q\"\\", Some("NULL")),
                pair("", Some(""))
            ])
        );
    }

    #[test]
    fn refuses_what_it_does_not() {
        for text in ["a", "\"a\"", "\"a\"=>", "\"a\"=>1", "\"a\"=>\"1\",", "\"a\"=>\"1\" ", ", \"a\"=>NULL"] {
            assert_eq!(pairs(text), Err(NOT_HSTORE), "{text}");
        }
    }
}
