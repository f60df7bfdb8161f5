//! Decimals as `decimal.handling.mode` wants them.

use super::super::json::{self, Number};
use super::super::malformed::{Malformed, Result};
use super::options::DecimalMode;

/// A decimal's text, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Decimal<'a> {
    minus: bool,
    whole: &'a [u8],
    fraction: &'a [u8],
}

const NOT_NUMERIC: Malformed = Malformed::Not("a numeric");

/// Writes a numeric's text. `scale` is the declared one.
pub(super) fn write(out: &mut Vec<u8>, mode: DecimalMode, scale: Option<i16>, text: &[u8]) -> Result<()> {
    let special = match json::number(text).map_err(|_| NOT_NUMERIC)? {
        Number::Digits(_) => None,
        Number::Special(word) => Some(word),
    };
    match (mode, special) {
        (DecimalMode::String, None) => json::string(out, text),
        // The names that Debezium gives to these values as strings.
        (DecimalMode::String, Some("NaN")) => json::string(out, b"NAN"),
        (DecimalMode::String, Some("Infinity")) => json::string(out, b"POSITIVE_INFINITY"),
        (DecimalMode::String, Some(_)) => json::string(out, b"NEGATIVE_INFINITY"),
        (DecimalMode::Double, None) => double(out, text),
        (DecimalMode::Double, Some(word)) => json::string(out, word.as_bytes()),
        (DecimalMode::Precise, None) => precise(out, scale, take_apart(text)?),
        (DecimalMode::Precise, Some(_)) => Err(Malformed::Inexpressible(
            "NaN and infinity have no precise form: set decimal_handling_mode = \"string\" or \"double\"",
        )),
    }
}

/// Writes a money's text, which the server's locale shapes: every digit counts, and the last point or
/// comma with exactly two digits after it parts them from the whole.
pub(super) fn write_money(out: &mut Vec<u8>, mode: DecimalMode, text: &[u8]) -> Result<()> {
    let minus = text.iter().any(|byte| matches!(byte, b'-' | b'('));
    let mut digits: Vec<u8> = text.iter().copied().filter(u8::is_ascii_digit).collect();
    if digits.is_empty() {
        return Err(Malformed::Not("an amount of money"));
    }
    // What stands before the first digit or after the last is the currency's.
    let first = text.iter().position(u8::is_ascii_digit).unwrap_or_default();
    let amount = text.get(first..).unwrap_or_default();
    let last = amount.iter().rposition(u8::is_ascii_digit).unwrap_or_default();
    let amount = amount.get(..=last).unwrap_or_default();
    let point = amount.iter().rposition(|byte| matches!(byte, b'.' | b','));
    let after = point.map_or(0, |at| amount.iter().skip(at).filter(|byte| byte.is_ascii_digit()).count());
    if after != 2 {
        digits.extend_from_slice(b"00");
    }
    let (whole, fraction) = digits.split_at(digits.len().saturating_sub(2));
    let decimal = Decimal { minus, whole, fraction };
    if mode == DecimalMode::Precise {
        return precise(out, Some(2), decimal);
    }
    let mut plain = if minus { b"-".to_vec() } else { Vec::new() };
    plain.extend_from_slice(if whole.is_empty() { b"0" } else { whole });
    plain.push(b'.');
    plain.extend_from_slice(fraction);
    write(out, mode, Some(2), &plain)
}

fn take_apart(text: &[u8]) -> Result<Decimal<'_>> {
    let (minus, text) = text.strip_prefix(b"-").map_or((false, text), |text| (true, text));
    let (whole, fraction) = match memchr::memchr(b'.', text) {
        Some(point) => (text.get(..point).unwrap_or_default(), text.get(point + 1..).unwrap_or_default()),
        None => (text, &b""[..]),
    };
    // What has an exponent is a JSON number, but no text of a numeric.
    let digits = whole.iter().chain(fraction).all(u8::is_ascii_digit);
    if digits { Ok(Decimal { minus, whole, fraction }) } else { Err(NOT_NUMERIC) }
}

fn double(out: &mut Vec<u8>, text: &[u8]) -> Result<()> {
    let number: f64 = json::utf8(text)?.parse().map_err(|_| NOT_NUMERIC)?;
    if number.is_finite() {
        out.extend_from_slice(ryu::Buffer::new().format_finite(number).as_bytes());
        Ok(())
    } else {
        json::string(out, if number > 0.0 { b"Infinity" } else { b"-Infinity" })
    }
}

/// Base64 of the unscaled number; without a declared scale, an object that tells it.
fn precise(out: &mut Vec<u8>, scale: Option<i16>, decimal: Decimal<'_>) -> Result<()> {
    let Some(scale) = scale else {
        let zeros = decimal.fraction.iter().rev().take_while(|digit| **digit == b'0').count();
        let fraction = decimal.fraction.get(..decimal.fraction.len() - zeros).unwrap_or_default();
        out.extend_from_slice(b"{\"scale\":");
        json::integer(out, fraction.len() as i64);
        out.extend_from_slice(b",\"value\":");
        let digits = decimal.whole.iter().chain(fraction).copied();
        json::base64(out, &unscaled(decimal.minus, digits));
        out.push(b'}');
        return Ok(());
    };
    let places = usize::try_from(scale).unwrap_or(0);
    // A negative scale counts the zeros that end the whole part.
    let dropped = usize::from(scale.min(0).unsigned_abs());
    let kept = decimal.whole.len().saturating_sub(dropped);
    let (whole, zeros) = decimal.whole.split_at(kept);
    if decimal.fraction.len() > places || zeros.iter().any(|digit| *digit != b'0') {
        return Err(Malformed::Not("a numeric of its column's scale"));
    }
    let padding = std::iter::repeat_n(b'0', places - decimal.fraction.len());
    let digits = whole.iter().chain(decimal.fraction).copied().chain(padding);
    json::base64(out, &unscaled(decimal.minus, digits));
    Ok(())
}

/// Decimal digits as the shortest big-endian two's complement, as Java's `BigInteger.toByteArray` has it.
fn unscaled(minus: bool, digits: impl Iterator<Item = u8>) -> Vec<u8> {
    // The magnitude, least significant word first.
    let mut words: Vec<u64> = Vec::new();
    let (mut chunk, mut factor) = (0, 1);
    for digit in digits {
        chunk = chunk * 10 + u64::from(digit.wrapping_sub(b'0'));
        factor *= 10;
        // The most that a word holds of.
        if factor == 10u64.pow(19) {
            multiply_add(&mut words, factor, chunk);
            (chunk, factor) = (0, 1);
        }
    }
    multiply_add(&mut words, factor, chunk);
    // A zero in front gives the sign room.
    let mut bytes = vec![0];
    bytes.extend(words.iter().rev().flat_map(|word| word.to_be_bytes()));
    if minus {
        negate(&mut bytes);
    }
    let redundant = bytes.windows(2).take_while(|pair| repeats_sign(pair)).count();
    bytes.drain(..redundant);
    bytes
}

/// Whether the first byte only repeats the sign of the second.
fn repeats_sign(pair: &[u8]) -> bool {
    matches!(pair, [0, next] if *next < 0x80) || matches!(pair, [0xff, next] if *next >= 0x80)
}

/// `words = words * factor + addend`.
fn multiply_add(words: &mut Vec<u64>, factor: u64, addend: u64) {
    let mut carry = addend;
    for word in words.iter_mut() {
        let product = u128::from(*word) * u128::from(factor) + u128::from(carry);
        *word = product as u64;
        carry = (product >> 64) as u64;
    }
    if carry > 0 {
        words.push(carry);
    }
}

/// The two's complement of the negative number.
fn negate(bytes: &mut [u8]) {
    let mut carry = true;
    for byte in bytes.iter_mut().rev() {
        (*byte, carry) = (!*byte).overflowing_add(u8::from(carry));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // inside proptest!, where clippy.toml does not reach
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    fn written(mode: DecimalMode, scale: Option<i16>, text: &str) -> Result<String> {
        let mut out = Vec::new();
        write(&mut out, mode, scale, text.as_bytes())?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn bytes(scale: i16, text: &str) -> Vec<u8> {
        let json = written(DecimalMode::Precise, Some(scale), text).unwrap();
        STANDARD.decode(json.trim_matches('"')).unwrap()
    }

    #[test]
    fn precise_is_the_unscaled_number() {
        assert_eq!(bytes(2, "0.00"), [0]);
        assert_eq!(bytes(2, "-0.01"), [0xff]);
        assert_eq!(bytes(2, "1.27"), [127]);
        assert_eq!(bytes(2, "1.28"), [0, 128]);
        assert_eq!(bytes(2, "-1.28"), [128]);
        assert_eq!(bytes(2, "-1.29"), [0xff, 127]);
        assert_eq!(bytes(3, "1.5"), 1500i16.to_be_bytes());
        assert_eq!(bytes(-2, "12300"), [123]);
        assert_eq!(bytes(0, "18446744073709551616"), [1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes(0, "-18446744073709551616"), [0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(written(DecimalMode::Precise, Some(2), "123.45").unwrap(), "\"MDk=\"");
    }

    #[test]
    fn without_a_scale_the_value_tells_it() {
        assert_eq!(written(DecimalMode::Precise, None, "2.220").unwrap(), "{\"scale\":2,\"value\":\"AN4=\"}");
        assert_eq!(written(DecimalMode::Precise, None, "100").unwrap(), "{\"scale\":0,\"value\":\"ZA==\"}");
    }

    #[test]
    fn other_modes() {
        assert_eq!(written(DecimalMode::String, Some(2), "-10.50").unwrap(), "\"-10.50\"");
        assert_eq!(written(DecimalMode::Double, Some(2), "10.50").unwrap(), "10.5");
        assert_eq!(written(DecimalMode::Double, None, &"9".repeat(400)).unwrap(), "\"Infinity\"");
        assert_eq!(written(DecimalMode::String, None, "NaN").unwrap(), "\"NAN\"");
        assert_eq!(written(DecimalMode::Double, None, "-Infinity").unwrap(), "\"-Infinity\"");
        assert!(matches!(written(DecimalMode::Precise, None, "NaN"), Err(Malformed::Inexpressible(_))));
        for bad in ["", "1e5", "x", "1.2.3"] {
            assert_eq!(written(DecimalMode::Precise, None, bad), Err(NOT_NUMERIC), "{bad}");
        }
        assert!(written(DecimalMode::Precise, Some(1), "1.25").is_err());
        assert!(written(DecimalMode::Precise, Some(-2), "123").is_err());
    }

    #[test]
    fn money_of_several_locales() {
        let written = |mode, text: &str| {
            let mut out = Vec::new();
            write_money(&mut out, mode, text.as_bytes()).map(|()| String::from_utf8(out).unwrap())
        };
        for (text, expected) in [
            ("$1,234.11", "1234.11"),
            ("-$1,234.11", "-1234.11"),
            ("($0.50)", "-0.50"),
            ("1.234,11 €", "1234.11"),
            ("¥1,234", "1234.00"),
            ("1 234,50 лв.", "1234.50"),
            ("Rs.77", "77.00"),
        ] {
            assert_eq!(written(DecimalMode::String, text), Ok(format!("\"{expected}\"")), "{text}");
        }
        assert_eq!(written(DecimalMode::Precise, "-$1.00"), Ok("\"nA==\"".to_owned()));
        assert!(written(DecimalMode::String, "$").is_err());
    }

    proptest! {
        #[test]
        fn precise_reads_back(number in any::<i128>(), scale in 0..38i16) {
            let digits = format!("{:039}", number.unsigned_abs());
            let (whole, fraction) = digits.split_at(39 - scale as usize);
            let whole = whole.trim_start_matches('0');
            let sign = if number < 0 { "-" } else { "" };
            let point = if scale > 0 { "." } else { "" };
            let whole = if whole.is_empty() { "0" } else { whole };
            let bytes = bytes(scale, &format!("{sign}{whole}{point}{fraction}"));
            let filled = if bytes[0] >= 0x80 { 0xff } else { 0 };
            let mut padded = [filled; 16];
            padded[16 - bytes.len()..].copy_from_slice(&bytes);
            prop_assert_eq!(i128::from_be_bytes(padded), number);
            // Not a byte more than needed.
            prop_assert!(bytes.len() == 1 || !repeats_sign(&bytes));
        }
    }
}
