//! Dates and times: between microseconds since 1970, calendar fields, and text.

use headwater_core::Micros;

use super::malformed::{Malformed, Result};

/// A day of the proleptic Gregorian calendar; year 0 is 1 BC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) year: i64,
    pub(super) month: u8,
    pub(super) day: u8,
}

pub(super) const MICROS_PER_SECOND: i64 = 1_000_000;
pub(super) const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

/// Days since 1970-01-01 (Howard Hinnant's `days_from_civil`).
pub(super) fn days(date: Date) -> i64 {
    let (month, day) = (i64::from(date.month), i64::from(date.day));
    let year = if month <= 2 { date.year - 1 } else { date.year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The date that is `days` after 1970-01-01 (Howard Hinnant's `civil_from_days`).
pub(super) fn date(days: i64) -> Date {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * shifted + 2) / 5 + 1) as u8;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 } as u8;
    Date { year: year_of_era + era * 400 + i64::from(month <= 2), month, day }
}

/// Appends two digits.
fn two(out: &mut Vec<u8>, number: u8) {
    out.extend_from_slice(&[b'0' + number / 10 % 10, b'0' + number % 10]);
}

/// Appends `2024-05-17`; years beyond four digits have a sign, as ISO 8601 asks.
pub(super) fn write_date(out: &mut Vec<u8>, date: Date) {
    match date.year {
        0..=9999 => {}
        10_000.. => out.push(b'+'),
        _ => out.push(b'-'),
    }
    let year = date.year.unsigned_abs();
    if year < 10_000 {
        two(out, (year / 100) as u8);
        two(out, (year % 100) as u8);
    } else {
        out.extend_from_slice(itoa::Buffer::new().format(year).as_bytes());
    }
    out.push(b'-');
    two(out, date.month);
    out.push(b'-');
    two(out, date.day);
}

/// How many digits stand after the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fraction {
    /// As many as are needed; none, and no point, for a whole second.
    Needed,
    /// This many, at most 6.
    Digits(u8),
}

/// Appends `10:00:00.5`; `micros` are those since midnight, up to and including 24:00:00.
pub(super) fn write_time(out: &mut Vec<u8>, micros: i64, fraction: Fraction) {
    let seconds = micros / MICROS_PER_SECOND;
    two(out, (seconds / 3600) as u8);
    out.push(b':');
    two(out, (seconds / 60 % 60) as u8);
    out.push(b':');
    two(out, (seconds % 60) as u8);
    let mut rest = micros % MICROS_PER_SECOND;
    let mut digits = [b'0'; 6];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let count = match fraction {
        Fraction::Needed => digits.iter().rposition(|digit| *digit != b'0').map_or(0, |last| last + 1),
        Fraction::Digits(count) => usize::from(count.min(6)),
    };
    if count > 0 {
        out.push(b'.');
        out.extend_from_slice(digits.get(..count).unwrap_or_default());
    }
}

/// Appends `2024-05-17T10:00:00.5`, without an offset.
pub(super) fn write_timestamp(out: &mut Vec<u8>, micros: Micros, fraction: Fraction) {
    write_date(out, date(micros.div_euclid(MICROS_PER_DAY)));
    out.push(b'T');
    write_time(out, micros.rem_euclid(MICROS_PER_DAY), fraction);
}

/// Appends an instant as `2024-05-17T10:00:00.500000Z`: six digits, always.
pub(super) fn write_instant(out: &mut Vec<u8>, micros: Micros) {
    write_timestamp(out, micros, Fraction::Digits(6));
    out.push(b'Z');
}

/// What a date or timestamp text says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// Later than everything: `infinity`.
    Infinity,
    /// Earlier than everything: `-infinity`.
    MinusInfinity,
    /// Days or microseconds since 1970-01-01.
    At(i64),
}

/// Reads `2024-05-17` or `0044-03-15 BC` as days.
pub(super) fn parse_date(text: &[u8]) -> Result<Moment> {
    if let Some(infinity) = infinity(text) {
        return Ok(infinity);
    }
    let (text, bc) = before_christ(text);
    Ok(Moment::At(days(calendar(text, bc).ok_or(Malformed::Not("a date"))?)))
}

/// Reads `2024-05-17 10:00:00.5`, with `+00` after it where `zoned`, and ` BC` or not, as microseconds.
pub(super) fn parse_timestamp(text: &[u8], zoned: bool) -> Result<Moment> {
    if let Some(infinity) = infinity(text) {
        return Ok(infinity);
    }
    let not = Malformed::Not(if zoned { "an instant in UTC" } else { "a timestamp" });
    let (text, bc) = before_christ(text);
    let text = if zoned { text.strip_suffix(b"+00").ok_or(not)? } else { text };
    let space = memchr::memchr(b' ', text).ok_or(not)?;
    let date = calendar(text.get(..space).unwrap_or_default(), bc).ok_or(not)?;
    let time = clock(text.get(space + 1..).unwrap_or_default()).ok_or(not)?;
    days(date)
        .checked_mul(MICROS_PER_DAY)
        .and_then(|micros| micros.checked_add(time))
        .map(Moment::At)
        .ok_or(not)
}

/// Reads what applications write as text: `2024-05-17T10:00:00.5Z`, or with a space, with another offset
/// (`+02`, `+0200`, `+02:00`), or with none, which means UTC.
pub(super) fn parse_iso(text: &[u8]) -> Result<Moment> {
    let not = Malformed::Not("a timestamp of ISO 8601");
    let text = text.strip_suffix(b"Z").unwrap_or(text);
    let text: Vec<u8> = text.iter().map(|byte| if *byte == b'T' { b' ' } else { *byte }).collect();
    let clock = memchr::memchr(b' ', &text).unwrap_or(text.len());
    let sign = text.iter().rposition(|byte| matches!(byte, b'+' | b'-')).filter(|sign| *sign > clock);
    let (local, offset) = text.split_at(sign.unwrap_or(text.len()));
    let east = if sign.is_some() { offset_seconds(offset).ok_or(not)? } else { 0 };
    match parse_timestamp(local.trim_ascii_end(), false)? {
        Moment::At(micros) => micros.checked_sub(east * 1_000_000).map(Moment::At).ok_or(not),
        infinity => Ok(infinity),
    }
}

/// Seconds east of UTC.
fn offset_seconds(text: &[u8]) -> Option<i64> {
    let (sign, text) = text.split_first()?;
    let (hours, minutes) = match text {
        [a, b] => (two_digits(*a, *b)?, 0),
        [a, b, c, d] | [a, b, b':', c, d] => (two_digits(*a, *b)?, two_digits(*c, *d)?),
        _ => return None,
    };
    let seconds = i64::from(hours) * 3600 + i64::from(minutes) * 60;
    (hours < 24 && minutes < 60).then_some(if *sign == b'-' { -seconds } else { seconds })
}

/// Reads `10:00:00.5`, up to and including `24:00:00`, as microseconds since midnight.
pub(super) fn parse_time(text: &[u8]) -> Result<i64> {
    clock(text).ok_or(Malformed::Not("a time"))
}

/// Reads `10:00:00.5+02`, `10:00:00-03:30` or `10:00:00+01:02:03` as microseconds since midnight and
/// seconds east of UTC.
pub(super) fn parse_timetz(text: &[u8]) -> Result<(i64, i64)> {
    let not = Malformed::Not("a time with its offset");
    let sign = text.iter().rposition(|byte| matches!(byte, b'+' | b'-')).ok_or(not)?;
    let (time, offset) = text.split_at(sign);
    let (sign, offset) = offset.split_first().ok_or(not)?;
    let mut seconds = 0;
    let mut unit = 3600;
    for part in offset.split(|byte| *byte == b':') {
        let [tens, ones] = part else { return Err(not) };
        if unit == 0 {
            return Err(not);
        }
        seconds += unit * i64::from(two_digits(*tens, *ones).ok_or(not)?);
        unit /= 60;
    }
    let micros = clock(time).ok_or(not)?;
    Ok((micros, if *sign == b'-' { -seconds } else { seconds }))
}

fn infinity(text: &[u8]) -> Option<Moment> {
    match text {
        b"infinity" => Some(Moment::Infinity),
        b"-infinity" => Some(Moment::MinusInfinity),
        _ => None,
    }
}

fn before_christ(text: &[u8]) -> (&[u8], bool) {
    text.strip_suffix(b" BC").map_or((text, false), |text| (text, true))
}

fn two_digits(tens: u8, ones: u8) -> Option<u8> {
    let both = tens.is_ascii_digit() && ones.is_ascii_digit();
    both.then(|| (tens - b'0') * 10 + (ones - b'0'))
}

/// `YEAR-MM-DD`, the year having four to seven digits.
fn calendar(text: &[u8], bc: bool) -> Option<Date> {
    let (year, rest) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let [b'-', m1, m2, b'-', d1, d2] = rest else { return None };
    let (month, day) = (two_digits(*m1, *m2)?, two_digits(*d1, *d2)?);
    if !(4..=7).contains(&year.len()) || !year.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let year = year.iter().fold(0, |year, digit| year * 10 + i64::from(digit - b'0'));
    let valid = year > 0 && (1..=12).contains(&month) && (1..=31).contains(&day);
    valid.then_some(Date { year: if bc { 1 - year } else { year }, month, day })
}

/// `HH:MM:SS` and at most six digits after a point.
fn clock(text: &[u8]) -> Option<i64> {
    let (whole, fraction) = text.split_at_checked(8)?;
    let [h1, h2, b':', m1, m2, b':', s1, s2] = whole else { return None };
    let (hour, minute, second) = (two_digits(*h1, *h2)?, two_digits(*m1, *m2)?, two_digits(*s1, *s2)?);
    if minute > 59 || second > 60 {
        return None;
    }
    let seconds = i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second);
    let mut micros = 0;
    if let Some((point, digits)) = fraction.split_first() {
        let count = digits.len();
        if *point != b'.' || !(1..=6).contains(&count) || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        micros = digits.iter().fold(0, |micros, digit| micros * 10 + i64::from(digit - b'0'));
        micros *= 10i64.pow(6 - count as u32);
    }
    let total = seconds * MICROS_PER_SECOND + micros;
    (total <= MICROS_PER_DAY).then_some(total)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // inside proptest!, where clippy.toml does not reach
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn instant(micros: Micros) -> String {
        let mut out = Vec::new();
        write_instant(&mut out, micros);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn instants() {
        assert_eq!(instant(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(instant(-1), "1969-12-31T23:59:59.999999Z");
        assert_eq!(instant(1_715_940_000_500_000), "2024-05-17T10:00:00.500000Z");
        assert_eq!(instant(951_782_400_000_000), "2000-02-29T00:00:00.000000Z");
        assert_eq!(instant(i64::MAX), "+294247-01-10T04:00:54.775807Z");
        assert_eq!(instant(-62_198_755_200_000_000), "-0001-01-01T00:00:00.000000Z");
    }

    #[test]
    fn texts() {
        assert_eq!(parse_date(b"1970-01-02"), Ok(Moment::At(1)));
        assert_eq!(parse_date(b"0001-01-01 BC"), Ok(Moment::At(-719_528)));
        assert_eq!(parse_date(b"infinity"), Ok(Moment::Infinity));
        assert_eq!(parse_timestamp(b"1970-01-01 00:00:00.5", false), Ok(Moment::At(500_000)));
        assert_eq!(parse_timestamp(b"1970-01-01 00:00:01+00", true), Ok(Moment::At(1_000_000)));
        assert_eq!(parse_timestamp(b"-infinity", true), Ok(Moment::MinusInfinity));
        assert_eq!(
            parse_timestamp(b"294247-01-01 23:59:59.999999", false),
            Ok(Moment::At(9_223_371_331_199_999_999))
        );
        assert!(parse_timestamp(b"1970-01-01 00:00:01+02", true).is_err());
        assert_eq!(parse_time(b"24:00:00"), Ok(MICROS_PER_DAY));
        assert_eq!(parse_timetz(b"10:00:00.25-03:30"), Ok((36_000_250_000, -12_600)));
        assert_eq!(parse_timetz(b"00:00:00+01:02:03"), Ok((0, 3723)));
        for bad in
            ["", "2024-5-17", "2024-13-01", "2024-05-17x", "24-05-17", "99999999-01-01", "2024-05-17 AD"]
        {
            assert!(parse_date(bad.as_bytes()).is_err(), "{bad}");
        }
        for bad in
            ["", "1:00:00", "10:00", "10:60:00", "25:00:00", "24:00:00.1", "10:00:00.", "10:00:00.1234567"]
        {
            assert!(parse_time(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn days_and_dates_agree(number in -3_000_000i64..110_000_000) {
            let at = date(number);
            prop_assert_eq!(days(at), number);
            prop_assert!((1..=12).contains(&at.month) && (1..=31).contains(&at.day));
        }

        #[test]
        fn timestamps_agree_with_jiff(micros in -60_000_000_000_000_000i64..250_000_000_000_000_000) {
            let theirs = jiff::Timestamp::from_microsecond(micros).unwrap();
            prop_assert_eq!(instant(micros), format!("{theirs:.6}"));
        }

        #[test]
        fn timestamps_read_back(micros in -62_135_596_800_000_000i64..253_402_300_800_000_000) {
            let mut text = Vec::new();
            write_timestamp(&mut text, micros, Fraction::Needed);
            text[10] = b' ';
            prop_assert_eq!(parse_timestamp(&text, false), Ok(Moment::At(micros)));
        }
    }
}
