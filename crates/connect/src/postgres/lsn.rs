//! Places in PostgreSQL's log, in the text form that its own tools use.

use headwater_core::{Error, Kind, Result};

/// Reads `16/B374D848`.
pub fn parse(text: &str) -> Result<u64> {
    let parts = text.split_once('/');
    let number = parts.and_then(|(high, low)| {
        let (high, low) = (u32::from_str_radix(high, 16).ok()?, u32::from_str_radix(low, 16).ok()?);
        Some(u64::from(high) << 32 | u64::from(low))
    });
    number.ok_or_else(|| Error::new(Kind::Decode, format!("\"{text}\" is not a place in PostgreSQL's log")))
}

/// Writes `16/B374D848`.
pub fn text(lsn: u64) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        assert_eq!(text(parse("16/B374D848").unwrap()), "16/B374D848");
        assert_eq!(parse("1/0").unwrap(), 1 << 32);
        for wrong in ["", "1", "x/1", "1/100000000"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
