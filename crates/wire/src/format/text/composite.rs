//! Composites: `(1,"a b",,"say ""hi""")`
//! (<https://www.postgresql.org/docs/current/rowtypes.html#ROWTYPES-IO-SYNTAX>).

use std::borrow::Cow;

use super::super::malformed::{Malformed, Result};
use super::quoted;

const NOT_COMPOSITE: Malformed = Malformed::Not("a composite");

/// Reads a composite's text field by field.
#[derive(Debug)]
pub(in super::super) struct CompositeReader<'a> {
    /// What is left after the opening parenthesis; every field ends with `,` or the closing one.
    rest: &'a [u8],
    begun: bool,
    ended: bool,
}

impl<'a> CompositeReader<'a> {
    /// A reader of `text`.
    pub(in super::super) fn new(text: &'a [u8]) -> Result<Self> {
        let rest = text.strip_prefix(b"(").ok_or(NOT_COMPOSITE)?;
        Ok(Self { rest, begun: false, ended: false })
    }

    /// The next field's text, or `None` in it for NULL. One field too many is an error.
    pub(in super::super) fn next(&mut self) -> Result<Option<Cow<'a, [u8]>>> {
        if std::mem::replace(&mut self.begun, true) && self.ended {
            return Err(NOT_COMPOSITE);
        }
        let (field, rest) = match self.rest.strip_prefix(b"\"") {
            Some(rest) => {
                let (field, rest) = quoted(rest, true).ok_or(NOT_COMPOSITE)?;
                (Some(field), rest)
            }
            None => {
                let end = memchr::memchr2(b',', b')', self.rest).ok_or(NOT_COMPOSITE)?;
                let (field, rest) = self.rest.split_at(end);
                if field.iter().any(|byte| matches!(byte, b'"' | b'\\' | b'(')) {
                    return Err(NOT_COMPOSITE);
                }
                ((!field.is_empty()).then_some(Cow::Borrowed(field)), rest)
            }
        };
        let (end, rest) = rest.split_first().ok_or(NOT_COMPOSITE)?;
        self.ended = match end {
            b',' => false,
            b')' => true,
            _ => return Err(NOT_COMPOSITE),
        };
        self.rest = rest;
        Ok(field)
    }

    /// Checks that every field was read.
    pub(in super::super) fn finish(self) -> Result<()> {
        // `()` is a row of one NULL, or of no field at all.
        let all_read = if self.begun { self.ended && self.rest.is_empty() } else { self.rest == b")" };
        if all_read { Ok(()) } else { Err(NOT_COMPOSITE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str, count: usize) -> Result<Vec<Option<String>>> {
        let mut reader = CompositeReader::new(text.as_bytes())?;
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(reader.next()?.map(|field| String::from_utf8_lossy(&field).into_owned()));
        }
        reader.finish()?;
        Ok(all)
    }

    #[test]
    fn reads_what_postgres_prints() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            fields(r#"(1,"a b",,"say ""hi"" \\ (",""))"#.strip_suffix(')').unwrap(), 5),
            Ok(vec![some("1"), some("a b"), None, some("say \"hi\" \\ ("), some("")])
        );
        assert_eq!(fields("(,)", 2), Ok(vec![None, None]));
        assert_eq!(fields("(\"(1,\"\"x\"\")\",2)", 2), Ok(vec![some("(1,\"x\")"), some("2")]));
    }

    #[test]
    fn a_row_may_have_no_fields() {
        assert_eq!(fields("()", 0), Ok(vec![]));
        assert_eq!(fields("()", 1), Ok(vec![None]));
        assert_eq!(fields("(1)", 0), Err(NOT_COMPOSITE));
    }

    #[test]
    fn refuses_what_it_does_not() {
        for (text, count) in [
            ("", 1),
            ("(", 1),
            ("1", 1),
            ("(1", 1),
            ("(1,2)", 1),
            ("(1)", 2),
            ("(1)x", 1),
            ("(1,)", 1),
            ("(\"a)", 1),
            ("(a\"b\")", 1),
        ] {
            assert_eq!(fields(text, count), Err(NOT_COMPOSITE), "{text}");
        }
    }
}
