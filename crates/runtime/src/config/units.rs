//! Bytes and durations as people write them.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number of bytes, or text as 10GiB")]
enum NumberOrText {
    Number(u64),
    Text(String),
}

/// Reads `10GiB`, `500 MB`, `64k`, `1024`: powers of 1024 for `KiB MiB GiB TiB`, of 1000 for `KB MB GB TB`.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// Reads `7d`, `12 h`, `30min`, `90s`, `250ms`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let seconds = |each: u64| number.checked_mul(each).map(Duration::from_secs);
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" | "sec" => seconds(1),
        "m" | "min" => seconds(60),
        "h" => seconds(3600),
        "d" => seconds(86_400),
        "w" => seconds(7 * 86_400),
        _ => None,
    }
}

/// A whole number and the unit after it.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

pub(super) fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    match Option::<NumberOrText>::deserialize(deserializer)? {
        None => Ok(None),
        Some(NumberOrText::Number(number)) => Ok(Some(number)),
        Some(NumberOrText::Text(text)) => parse_bytes(&text)
            .map(Some)
            .ok_or_else(|| de::Error::custom(format!("\"{text}\" is no size: write 10GiB, 500MB or 1024"))),
    }
}

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let wrong =
        || de::Error::custom(format!("\"{text}\" is no duration: write 7d, 12h, 30min, 90s or 250ms"));
    parse_duration(&text).map(Some).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sizes() {
        let sizes =
            [("10GiB", 10 << 30), ("500 MB", 500_000_000), ("1024", 1024), ("64k", 64_000), ("7 b", 7)];
        for (text, bytes) in sizes {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in ["", "GiB", "-1", "1.5GiB", "3 apples", "99999999999TiB"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn reads_durations() {
        let durations = [
            ("7d", 604_800_000),
            ("30min", 1_800_000),
            ("12 h", 43_200_000),
            ("250ms", 250),
            ("2w", 1_209_600_000),
        ];
        for (text, millis) in durations {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "7", "d", "1.5h", "18446744073709551615w"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
