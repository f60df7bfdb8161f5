//! Arrays: `{1,NULL,"a b"}`, `[0:1][2:3]={{1,2},{3,4}}`
//! (<https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO>).

use std::borrow::Cow;

use super::super::malformed::{Malformed, Result};
use super::quoted;

const NOT_ARRAY: Malformed = Malformed::Not("an array");

/// The most dimensions PostgreSQL allows (its `MAXDIM`).
const MAX_DEPTH: usize = 6;

/// A part of an array's text.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum Token<'a> {
    /// An array, or an inner one, begins.
    Open,
    /// It ends.
    Close,
    /// An element that is NULL.
    Null,
    /// An element's text.
    Element(Cow<'a, [u8]>),
}

/// Reads an array's text part by part. Lower bounds are passed over.
#[derive(Debug)]
pub(in super::super) struct ArrayReader<'a> {
    rest: &'a [u8],
    depth: usize,
    delimiter: u8,
    /// Where the reader stands between parts.
    expects: Expects,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expects {
    /// The outermost brace.
    Start,
    /// An element, an inner array, or (right after a brace) the end.
    First,
    /// An element or an inner array.
    Item,
    /// A delimiter or the end.
    Delimiter,
    /// Nothing more.
    End,
}

impl<'a> ArrayReader<'a> {
    /// A reader of `text` whose elements stand apart by `delimiter` (`;` for boxes, else `,`).
    pub(in super::super) fn new(text: &'a [u8], delimiter: u8) -> Result<Self> {
        let rest = match text.first() {
            Some(b'[') => {
                let equals = memchr::memchr(b'=', text).ok_or(NOT_ARRAY)?;
                text.get(equals + 1..).unwrap_or_default()
            }
            _ => text,
        };
        Ok(Self { rest, depth: 0, delimiter, expects: Expects::Start })
    }

    /// The next part; `None` at the end.
    pub(in super::super) fn next(&mut self) -> Result<Option<Token<'a>>> {
        if self.expects == Expects::Delimiter {
            match self.rest.split_first() {
                Some((byte, rest)) if *byte == self.delimiter => {
                    self.rest = rest;
                    self.expects = Expects::Item;
                }
                Some((b'}', _)) => {}
                _ => return Err(NOT_ARRAY),
            }
        }
        let Some((byte, rest)) = self.rest.split_first() else {
            return if self.expects == Expects::End { Ok(None) } else { Err(NOT_ARRAY) };
        };
        match (byte, self.expects) {
            (_, Expects::End) => Err(NOT_ARRAY),
            (b'{', Expects::Start | Expects::First | Expects::Item) if self.depth < MAX_DEPTH => {
                (self.rest, self.depth, self.expects) = (rest, self.depth + 1, Expects::First);
                Ok(Some(Token::Open))
            }
            (b'}', Expects::First | Expects::Delimiter) => {
                self.depth -= 1;
                let expects = if self.depth == 0 { Expects::End } else { Expects::Delimiter };
                (self.rest, self.expects) = (rest, expects);
                Ok(Some(Token::Close))
            }
            (b'"', Expects::First | Expects::Item) => {
                let (element, rest) = quoted(rest, false).ok_or(NOT_ARRAY)?;
                (self.rest, self.expects) = (rest, Expects::Delimiter);
                Ok(Some(Token::Element(element)))
            }
            (_, Expects::First | Expects::Item) => self.bare().map(Some),
            _ => Err(NOT_ARRAY),
        }
    }

    /// An element without quotes.
    fn bare(&mut self) -> Result<Token<'a>> {
        let end = memchr::memchr2(self.delimiter, b'}', self.rest).ok_or(NOT_ARRAY)?;
        let (element, rest) = self.rest.split_at(end);
        if element.is_empty() || element.iter().any(|byte| matches!(byte, b'{' | b'"' | b'\\')) {
            return Err(NOT_ARRAY);
        }
        (self.rest, self.expects) = (rest, Expects::Delimiter);
        Ok(if element.eq_ignore_ascii_case(b"NULL") {
            Token::Null
        } else {
            Token::Element(Cow::Borrowed(element))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Result<String> {
        let mut reader = ArrayReader::new(text.as_bytes(), b',')?;
        let mut all = Vec::new();
        while let Some(token) = reader.next()? {
            all.push(match token {
                Token::Open => "(".to_owned(),
                Token::Close => ")".to_owned(),
                Token::Null => "null".to_owned(),
                Token::Element(text) => format!("<{}>", String::from_utf8_lossy(&text)),
            });
        }
        Ok(all.concat())
    }

    #[test]
    fn reads_what_postgres_prints() {
        for (text, expected) in [
            ("{}", "()"),
            ("{1,2}", "(<1><2>)"),
            ("{NULL,\"NULL\",null}", "(null<NULL>null)"),
            ("{\"a,b\",\"c}d\",\"e\\\"f\",\"g\\\\h\",\"\"}", "(<a,b><c}d><e\"f><g\\h><>)"),
            ("{{1,2},{3,NULL}}", "((<1><2>)(<3>null))"),
            ("[2:4]={1,2,3}", "(<1><2><3>)"),
            ("[0:0][-1:0]={{a,b}}", "((<a><b>))"),
            ("{a b,é}", "(<a b><é>)"),
        ] {
            assert_eq!(parts(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refuses_what_it_does_not() {
        for text in [
            "", "{", "}", "1", "{1", "{1,}", "{,1}", "{1}2", "{1}}", "{\"a}", "{\"a\"b}", "[1:2]", "{a\"b}",
            "{{1}",
        ] {
            assert_eq!(parts(text), Err(NOT_ARRAY), "{text}");
        }
        assert_eq!(parts(&("{".repeat(7) + &"}".repeat(7))), Err(NOT_ARRAY));
    }

    #[test]
    fn boxes_stand_apart_by_semicolons() {
        let mut reader = ArrayReader::new(b"{(1,1),(0,0);(2,2),(1,1)}", b';').unwrap();
        assert_eq!(reader.next(), Ok(Some(Token::Open)));
        assert_eq!(reader.next(), Ok(Some(Token::Element(Cow::Borrowed(b"(1,1),(0,0)")))));
    }
}
