//! The text of a bytea.

use super::malformed::{Malformed, Result};

const NOT_BYTES: Malformed = Malformed::Not("bytes in hex");

/// The bytes that `\x` and hex digits stand for.
pub(super) fn decode(text: &[u8]) -> Result<Vec<u8>> {
    let (pairs, rest) = text.strip_prefix(b"\\x").ok_or(NOT_BYTES)?.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(NOT_BYTES);
    }
    let mut invalid = 0;
    let bytes = pairs
        .iter()
        .map(|[high, low]| {
            let (high, low) = (DIGITS[usize::from(*high)], DIGITS[usize::from(*low)]);
            invalid |= high | low;
            high << 4 | low & 15
        })
        .collect();
    if invalid & INVALID == 0 { Ok(bytes) } else { Err(NOT_BYTES) }
}

const INVALID: u8 = 0x80;

/// The value of each hex digit; [`INVALID`] of every other byte.
static DIGITS: [u8; 256] = digits();

const fn digits() -> [u8; 256] {
    let mut table = [INVALID; 256];
    let mut value = 0;
    while value < 16 {
        table[b"0123456789abcdef"[value] as usize] = value as u8;
        table[b"0123456789ABCDEF"[value] as usize] = value as u8;
        value += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_becomes_bytes() {
        assert_eq!(decode(b"\\x"), Ok(vec![]));
        assert_eq!(decode(b"\\x00ff7F"), Ok(vec![0, 255, 127]));
        for bad in ["", "00", "\\x0", "\\x0g", "\\xg0"] {
            assert_eq!(decode(bad.as_bytes()), Err(NOT_BYTES), "{bad}");
        }
    }
}
