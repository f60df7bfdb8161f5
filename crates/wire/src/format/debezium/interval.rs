//! Intervals as `interval.handling.mode` wants them.

use super::super::json;
use super::super::malformed::{Malformed, Result};
use super::super::time::{MICROS_PER_DAY, MICROS_PER_SECOND};
use super::options::IntervalMode;

const NOT_INTERVAL: Malformed = Malformed::Not("an interval");

/// A month as Debezium counts it, 365.25 / 12 days, in microseconds.
const MICROS_PER_MONTH: i128 = 2_629_800 * MICROS_PER_SECOND as i128;

/// The parts of an interval, each with its own sign.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Interval {
    years: i64,
    months: i64,
    days: i64,
    hours: i64,
    minutes: i64,
    /// The seconds and what is below them.
    micros: i64,
}

/// Writes an interval's text, which is ISO 8601 as PostgreSQL prints it: `P1Y2M3DT4H5M6.78S`.
pub(super) fn write(out: &mut Vec<u8>, mode: IntervalMode, text: &[u8]) -> Result<()> {
    if matches!(text, b"infinity" | b"-infinity") {
        return match mode {
            IntervalMode::String => json::string(out, text),
            IntervalMode::Numeric => Err(beyond()),
        };
    }
    let interval = parse(text).ok_or(NOT_INTERVAL)?;
    match mode {
        IntervalMode::Numeric => {
            let micros = total(interval).ok_or_else(beyond)?;
            json::integer(out, micros);
        }
        IntervalMode::String => write_iso(out, interval),
    }
    Ok(())
}

fn beyond() -> Malformed {
    Malformed::Inexpressible(
        "the interval is beyond 64 bits of microseconds: set interval_handling_mode = \"string\"",
    )
}

fn total(interval: Interval) -> Option<i64> {
    let months = i128::from(interval.years) * 12 + i128::from(interval.months);
    let minutes = i128::from(interval.hours) * 60 + i128::from(interval.minutes);
    let micros = months * MICROS_PER_MONTH
        + i128::from(interval.days) * i128::from(MICROS_PER_DAY)
        + minutes * 60 * i128::from(MICROS_PER_SECOND)
        + i128::from(interval.micros);
    i64::try_from(micros).ok()
}

/// Every part, also where it is zero.
fn write_iso(out: &mut Vec<u8>, interval: Interval) {
    let parts = [
        ("\"P", interval.years),
        ("Y", interval.months),
        ("M", interval.days),
        ("DT", interval.hours),
        ("H", interval.minutes),
    ];
    for (before, number) in parts {
        out.extend_from_slice(before.as_bytes());
        json::integer(out, number);
    }
    out.push(b'M');
    if interval.micros < 0 {
        out.push(b'-');
    }
    let (seconds, fraction) =
        (interval.micros.unsigned_abs() / 1_000_000, interval.micros.unsigned_abs() % 1_000_000);
    out.extend_from_slice(itoa::Buffer::new().format(seconds).as_bytes());
    if fraction > 0 {
        let digits = format!(".{fraction:06}");
        out.extend_from_slice(digits.trim_end_matches('0').as_bytes());
    }
    out.extend_from_slice(b"S\"");
}

fn parse(text: &[u8]) -> Option<Interval> {
    let mut rest = text.strip_prefix(b"P")?;
    let mut interval = Interval::default();
    let mut in_time = false;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix(b"T").filter(|_| !in_time) {
            (rest, in_time) = (after, true);
            continue;
        }
        let end = rest.iter().position(u8::is_ascii_alphabetic)?;
        let (number, unit) = rest.split_at(end);
        let (unit, after) = unit.split_first()?;
        let part = match (unit, in_time) {
            (b'Y', false) => &mut interval.years,
            (b'M', false) => &mut interval.months,
            (b'D', false) => &mut interval.days,
            (b'H', true) => &mut interval.hours,
            (b'M', true) => &mut interval.minutes,
            (b'S', true) => {
                interval.micros = micros(number)?;
                rest = after;
                continue;
            }
            _ => return None,
        };
        *part = std::str::from_utf8(number).ok()?.parse().ok()?;
        rest = after;
    }
    Some(interval)
}

/// Seconds with at most six digits after the point, as microseconds.
fn micros(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let (minus, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) || fraction.len() > 6 {
        return None;
    }
    let fraction: i64 = format!("{fraction:0<6}").parse().ok()?;
    let micros = whole.parse::<i64>().ok()?.checked_mul(MICROS_PER_SECOND)?.checked_add(fraction)?;
    Some(if minus { -micros } else { micros })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(mode: IntervalMode, text: &str) -> Result<String> {
        let mut out = Vec::new();
        write(&mut out, mode, text.as_bytes()).map(|()| String::from_utf8(out).unwrap())
    }

    #[test]
    fn numeric_is_microseconds() {
        let numeric = |text| written(IntervalMode::Numeric, text).unwrap();
        assert_eq!(numeric("PT0S"), "0");
        assert_eq!(numeric("PT-0.000001S"), "-1");
        assert_eq!(numeric("P1Y2M3DT4H5M6.78S"), "37091106780000");
        assert_eq!(numeric("P-1M1DT-1H"), "-2547000000000");
        let big = written(IntervalMode::Numeric, "P178000000Y");
        assert!(matches!(big, Err(Malformed::Inexpressible(_))));
    }

    #[test]
    fn strings_have_every_part() {
        let string = |text| written(IntervalMode::String, text).unwrap();
        assert_eq!(string("P1Y2M3DT4H5M6.78S"), "\"P1Y2M3DT4H5M6.78S\"");
        assert_eq!(string("PT0S"), "\"P0Y0M0DT0H0M0S\"");
        assert_eq!(string("P-1DT-0.5S"), "\"P0Y0M-1DT0H0M-0.5S\"");
        assert_eq!(string("infinity"), "\"infinity\"");
    }

    #[test]
    fn what_is_no_interval_is_refused() {
        for bad in
            ["", "P", "1Y", "P1", "PT1D", "P1H", "P1YT1.1234567S", "PT1.S", "PTT1S", "P99999999999999999999Y"]
        {
            assert_eq!(written(IntervalMode::Numeric, bad), Err(NOT_INTERVAL), "{bad}");
        }
    }
}
