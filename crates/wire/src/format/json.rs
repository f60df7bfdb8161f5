//! JSON, written straight into the output.

use super::malformed::{Malformed, Result};

/// For each byte: 0 where it stands in a JSON string as it is, else what follows the backslash
/// (`u`: four hex digits).
static ESCAPES: [u8; 256] = escapes();

const fn escapes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = b'u';
        byte += 1;
    }
    table[0x08] = b'b';
    table[0x09] = b't';
    table[0x0a] = b'n';
    table[0x0c] = b'f';
    table[0x0d] = b'r';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Writes text as a JSON string. Text that is not UTF-8 is an error.
#[inline]
pub(super) fn string(out: &mut Vec<u8>, text: &[u8]) -> Result<()> {
    out.reserve(text.len() + 2);
    out.push(b'"');
    if is_plain(text) {
        out.extend_from_slice(text);
    } else {
        utf8(text)?;
        escaped(out, text);
    }
    out.push(b'"');
    Ok(())
}

/// Writes a `str` as a JSON string.
pub(super) fn str(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    escaped(out, text.as_bytes());
    out.push(b'"');
}

/// A name and its colon, with a comma in front: `,"name":`.
pub(super) fn field(name: &str) -> Box<[u8]> {
    let mut bytes = vec![b','];
    str(&mut bytes, name);
    bytes.push(b':');
    bytes.into()
}

/// Makes the fields written since `start`, each with a comma in front, an object.
#[inline]
pub(super) fn close_object(out: &mut Vec<u8>, start: usize) {
    match out.get_mut(start) {
        Some(comma) => *comma = b'{',
        None => out.push(b'{'),
    }
    out.push(b'}');
}

/// Checks that text is UTF-8.
pub(super) fn utf8(text: &[u8]) -> Result<&str> {
    simdutf8::basic::from_utf8(text).map_err(|_| Malformed::Utf8)
}

/// Whether text is ASCII that needs no escape. Eight bytes at a time, without a branch between.
#[inline]
fn is_plain(text: &[u8]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let (words, tail) = text.as_chunks::<8>();
    let mut special = 0;
    for word in words {
        let word = u64::from_le_bytes(*word);
        // Each term has a byte's high bit set where that byte is the one looked for; a borrow can set
        // further ones, but only above a byte that was one already.
        let quote = (word ^ (ONES * 0x22)).wrapping_sub(ONES);
        let backslash = (word ^ (ONES * 0x5c)).wrapping_sub(ONES);
        let control = word.wrapping_sub(ONES * 0x20);
        special |= word | quote | backslash | control;
    }
    special & HIGHS == 0 && tail.iter().all(|byte| byte.is_ascii() && ESCAPES[usize::from(*byte)] == 0)
}

/// Writes UTF-8 text with its escapes, copying what lies between them.
fn escaped(out: &mut Vec<u8>, mut text: &[u8]) {
    while let Some(at) = text.iter().position(|byte| ESCAPES[usize::from(*byte)] != 0) {
        let (plain, rest) = text.split_at(at);
        out.extend_from_slice(plain);
        let Some((byte, rest)) = rest.split_first() else { return };
        match ESCAPES[usize::from(*byte)] {
            b'u' => {
                out.extend_from_slice(b"\\u00");
                hex(out, &[*byte]);
            }
            letter => out.extend_from_slice(&[b'\\', letter]),
        }
        text = rest;
    }
    out.extend_from_slice(text);
}

/// Writes bytes as lower-case hex, without quotes.
pub(super) fn hex(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(bytes.iter().flat_map(|byte| [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]));
}

/// Writes an integer.
#[inline]
pub(super) fn integer(out: &mut Vec<u8>, number: i64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// The most digits a 64-bit integer has.
const INTEGER_DIGITS: usize = 19;

/// Writes text that must be an integer as the number it is.
#[inline]
pub(super) fn integer_text(out: &mut Vec<u8>, text: &[u8]) -> Result<()> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let leading_zero = digits.len() > 1 && digits.first() == Some(&b'0');
    if !(1..=INTEGER_DIGITS).contains(&digits.len()) || leading_zero || !digits.iter().all(u8::is_ascii_digit)
    {
        return Err(Malformed::Not("an integer"));
    }
    out.extend_from_slice(text);
    Ok(())
}

/// A number's text, sorted out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number<'a> {
    /// Text that is a JSON number, of any size.
    Digits(&'a [u8]),
    /// `NaN`, `Infinity` or `-Infinity`.
    Special(&'static str),
}

/// Sorts out the text of a number.
pub(super) fn number(text: &[u8]) -> Result<Number<'_>> {
    if is_number(text) {
        return Ok(Number::Digits(text));
    }
    let (minus, name) = match text.strip_prefix(b"-") {
        Some(name) => (true, name),
        None => (false, text),
    };
    let is = |word: &str| name.eq_ignore_ascii_case(word.as_bytes());
    match (is("infinity") || is("inf"), minus) {
        (true, false) => Ok(Number::Special("Infinity")),
        (true, true) => Ok(Number::Special("-Infinity")),
        (false, false) if is("nan") => Ok(Number::Special("NaN")),
        (false, _) => Err(Malformed::Not("a number")),
    }
}

/// Sorts out the text of a float, which is within what 64 bits hold.
pub(super) fn float(text: &[u8]) -> Result<Number<'_>> {
    let number = number(text)?;
    // The shortest text that could be too large: no reader should be given it as a number.
    let may_exceed = text.len() > 300 || memchr::memchr2(b'e', b'E', text).is_some();
    if may_exceed
        && matches!(number, Number::Digits(_))
        && !utf8(text)?.parse::<f64>().is_ok_and(f64::is_finite)
    {
        return Err(Malformed::Not("a 64-bit float"));
    }
    Ok(number)
}

/// Writes text that must be a float: a number, or a string where JSON has no number for it.
pub(super) fn float_text(out: &mut Vec<u8>, text: &[u8]) -> Result<()> {
    match float(text)? {
        Number::Digits(number) => out.extend_from_slice(number),
        Number::Special(word) => str(out, word),
    }
    Ok(())
}

/// Whether text is a number as JSON writes them (RFC 8259, section 6).
fn is_number(text: &[u8]) -> bool {
    let text = text.strip_prefix(b"-").unwrap_or(text);
    let whole = digits(text);
    if whole == 0 || (whole > 1 && text.first() == Some(&b'0')) {
        return false;
    }
    let mut rest = text.get(whole..).unwrap_or_default();
    if let Some(fraction) = rest.strip_prefix(b".") {
        let count = digits(fraction);
        if count == 0 {
            return false;
        }
        rest = fraction.get(count..).unwrap_or_default();
    }
    if let Some(exponent) = rest.strip_prefix(b"e").or(rest.strip_prefix(b"E")) {
        let exponent = exponent.strip_prefix(b"+").or(exponent.strip_prefix(b"-")).unwrap_or(exponent);
        return !exponent.is_empty() && digits(exponent) == exponent.len();
    }
    rest.is_empty()
}

fn digits(text: &[u8]) -> usize {
    text.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

/// Writes text that must be JSON as it is.
pub(super) fn raw(out: &mut Vec<u8>, text: &[u8]) -> Result<()> {
    check(text)?;
    out.extend_from_slice(text);
    Ok(())
}

/// Checks that text is JSON; builds nothing, and does not recurse.
pub(super) fn check(text: &[u8]) -> Result<()> {
    let text = utf8(text)?;
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|_| Malformed::Not("JSON"))?;
    Ok(())
}

/// Writes bytes as a string of standard base64.
pub(super) fn base64(out: &mut Vec<u8>, bytes: &[u8]) {
    base64_with(out, bytes, &base64::engine::general_purpose::STANDARD);
}

/// Writes bytes as a string in some base64.
pub(super) fn base64_with(out: &mut Vec<u8>, bytes: &[u8], engine: &impl base64::Engine) {
    out.push(b'"');
    let start = out.len();
    // Three bytes become four characters; the last group is padded.
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let room = out.get_mut(start..).unwrap_or_default();
    let written = engine.encode_slice(bytes, room).unwrap_or_default();
    out.truncate(start + written);
    out.push(b'"');
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // inside proptest!, where clippy.toml does not reach
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn strings_are_escaped() {
        let text = "quote\" back\\ tab\t line\n return\r bell\u{7} del\u{7f} \u{8}\u{c} é 漢 🦀";
        let expected = "\"quote\\\" back\\\\ tab\\t line\\n return\\r bell\\u0007 del\u{7f} \\b\\f é 漢 🦀\"";
        assert_eq!(written(|out| string(out, text.as_bytes())), expected);
        assert_eq!(string(&mut Vec::new(), b"ab\xffcdefghij"), Err(Malformed::Utf8));
    }

    #[test]
    fn every_byte_at_every_place_is_seen() {
        for byte in 0..=255u8 {
            for at in 0..20 {
                let mut text = *b"abcdefghijklmnopqrst";
                text[at] = byte;
                let plain = byte.is_ascii() && byte >= 0x20 && byte != b'"' && byte != b'\\';
                // A borrow may hide plainness, never the lack of it.
                assert!(plain || !is_plain(&text), "{byte:02x} at {at}");
                if plain {
                    assert!(is_plain(&text), "{byte:02x} at {at} is taken for special");
                }
            }
        }
    }

    #[test]
    fn numbers_are_checked() {
        for good in ["0", "-0", "1.5", "1e+20", "-1.25E-7", "12345678901234567890"] {
            assert_eq!(written(|out| float_text(out, good.as_bytes())), good);
        }
        for bad in ["", "-", "01", ".5", "1.", "1e", "1e+", "+1", "0x1", "1 ", "NaNa", "-nan"] {
            assert_eq!(float_text(&mut Vec::new(), bad.as_bytes()), Err(Malformed::Not("a number")), "{bad}");
        }
        let large = "9".repeat(310);
        for large in ["1e400", "-0.1e310", &large] {
            assert!(float_text(&mut Vec::new(), large.as_bytes()).is_err(), "{large}");
            assert!(number(large.as_bytes()).is_ok(), "{large}");
        }
        assert_eq!(written(|out| float_text(out, b"-inf")), "\"-Infinity\"");
        for bad in ["", "-", "12345678901234567890", "007", "1.0", "1e3", " 1"] {
            assert_eq!(
                integer_text(&mut Vec::new(), bad.as_bytes()),
                Err(Malformed::Not("an integer")),
                "{bad}"
            );
        }
    }

    #[test]
    fn deep_json_does_not_overflow_the_stack() {
        let deep = "[".repeat(200_000) + &"]".repeat(200_000);
        assert_eq!(check(deep.as_bytes()), Ok(()));
    }

    proptest! {
        #[test]
        fn any_string_reads_back(text in any::<String>()) {
            let json = written(|out| string(out, text.as_bytes()));
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }

        #[test]
        fn any_bytes_are_a_string_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut out = Vec::new();
            match string(&mut out, &bytes) {
                Ok(()) => prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap().into_bytes(), bytes),
                Err(error) => {
                    prop_assert_eq!(error, Malformed::Utf8);
                    prop_assert!(std::str::from_utf8(&bytes).is_err());
                }
            }
        }

        #[test]
        fn numbers_agree_with_serde(text in "-?[0-9]{0,3}(\\.[0-9]{0,3})?([eE][+-]?[0-9]{0,2})?") {
            prop_assert_eq!(is_number(text.as_bytes()), serde_json::from_str::<f64>(&text).is_ok());
        }
    }
}
