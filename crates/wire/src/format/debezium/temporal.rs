//! Dates and times as `time.precision.mode` wants them.

use super::super::json;
use super::super::malformed::{Malformed, Result};
use super::super::time::{
    Date, Fraction, MICROS_PER_DAY, MICROS_PER_SECOND, Moment, days, parse_date, parse_time, parse_timestamp,
    parse_timetz, write_date, write_time, write_timestamp,
};
use super::options::TimeMode;

/// What PostgreSQL's JDBC driver, and so Debezium, takes for `infinity`, in microseconds.
const INFINITY_MICROS: i64 = 9_223_372_036_825_200_000;
/// And for `-infinity`.
const MINUS_INFINITY_MICROS: i64 = -9_223_372_036_832_400_000;
/// The date that Debezium writes for `infinity`: what the driver's overflows to.
const INFINITY_DATE: Date = Date { year: -5_877_611, month: 6, day: 21 };
/// And for `-infinity`.
const MINUS_INFINITY_DATE: Date = Date { year: -5_877_611, month: 6, day: 22 };

/// What a time of day or a timestamp is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Millis,
    Micros,
    Nanos,
    Iso,
}

fn time_unit(mode: TimeMode, precision: Option<u8>) -> Unit {
    match mode {
        TimeMode::Adaptive if precision.is_some_and(|digits| digits <= 3) => Unit::Millis,
        TimeMode::Adaptive | TimeMode::AdaptiveTimeMicroseconds | TimeMode::Microseconds => Unit::Micros,
        TimeMode::Connect => Unit::Millis,
        TimeMode::Nanoseconds => Unit::Nanos,
        TimeMode::Isostring => Unit::Iso,
    }
}

fn timestamp_unit(mode: TimeMode, precision: Option<u8>) -> Unit {
    match mode {
        // Only times of day differ between the two.
        TimeMode::AdaptiveTimeMicroseconds => time_unit(TimeMode::Adaptive, precision),
        mode => time_unit(mode, precision),
    }
}

/// Writes a date: days since 1970, or a string.
pub(super) fn write_date_text(out: &mut Vec<u8>, mode: TimeMode, text: &[u8]) -> Result<()> {
    let days = match parse_date(text)? {
        Moment::At(days) => days,
        Moment::Infinity => days(INFINITY_DATE),
        Moment::MinusInfinity => days(MINUS_INFINITY_DATE),
    };
    if mode == TimeMode::Isostring {
        out.push(b'"');
        write_date(out, super::super::time::date(days));
        out.extend_from_slice(b"Z\"");
    } else {
        json::integer(out, days);
    }
    Ok(())
}

/// Writes a time of day.
pub(super) fn write_time_text(
    out: &mut Vec<u8>,
    mode: TimeMode,
    precision: Option<u8>,
    text: &[u8],
) -> Result<()> {
    let micros = parse_time(text)?;
    match time_unit(mode, precision) {
        Unit::Millis => json::integer(out, micros / 1000),
        Unit::Micros => json::integer(out, micros),
        Unit::Nanos => json::integer(out, micros * 1000),
        Unit::Iso => {
            out.push(b'"');
            write_time(out, micros, Fraction::Needed);
            out.extend_from_slice(b"Z\"");
        }
    }
    Ok(())
}

/// Writes a time of day with an offset: a string, in UTC.
pub(super) fn write_timetz_text(out: &mut Vec<u8>, text: &[u8]) -> Result<()> {
    let (micros, offset) = parse_timetz(text)?;
    let utc = micros - offset * MICROS_PER_SECOND;
    // The end of a day stays one where it is one in UTC.
    let utc = if utc == MICROS_PER_DAY { utc } else { utc.rem_euclid(MICROS_PER_DAY) };
    out.push(b'"');
    write_time(out, utc, Fraction::Needed);
    out.extend_from_slice(b"Z\"");
    Ok(())
}

/// Writes a timestamp without zone.
pub(super) fn write_timestamp_text(
    out: &mut Vec<u8>,
    mode: TimeMode,
    precision: Option<u8>,
    text: &[u8],
) -> Result<()> {
    let moment = parse_timestamp(text, false)?;
    let micros = match moment {
        Moment::At(micros) => micros,
        Moment::Infinity => INFINITY_MICROS,
        Moment::MinusInfinity => MINUS_INFINITY_MICROS,
    };
    match (timestamp_unit(mode, precision), moment) {
        (Unit::Millis, _) => json::integer(out, micros.div_euclid(1000)),
        (Unit::Micros, _) => json::integer(out, micros),
        (Unit::Nanos, Moment::Infinity) => json::integer(out, i64::MAX),
        (Unit::Nanos, Moment::MinusInfinity) => json::integer(out, i64::MIN),
        (Unit::Nanos, Moment::At(_)) => {
            let nanos = micros.checked_mul(1000).ok_or(Malformed::Inexpressible(
                "the year is beyond what nanoseconds reach: set time_precision_mode = \"microseconds\"",
            ))?;
            json::integer(out, nanos);
        }
        (Unit::Iso, _) => {
            out.push(b'"');
            write_timestamp(out, micros, Fraction::Needed);
            out.extend_from_slice(b"Z\"");
        }
    }
    Ok(())
}

/// Writes an instant: a string, in UTC, with the digits that the column declares (six unless it does).
pub(super) fn write_timestamptz_text(out: &mut Vec<u8>, precision: Option<u8>, text: &[u8]) -> Result<()> {
    match parse_timestamp(text, true)? {
        Moment::At(micros) => {
            out.push(b'"');
            write_timestamp(out, micros, Fraction::Digits(precision.unwrap_or(6)));
            out.extend_from_slice(b"Z\"");
        }
        Moment::Infinity => out.extend_from_slice(b"\"infinity\""),
        Moment::MinusInfinity => out.extend_from_slice(b"\"-infinity\""),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Write<'a> = &'a dyn Fn(&mut Vec<u8>) -> Result<()>;

    fn written(write: Write<'_>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn dates() {
        let date = |mode, text: &str| written(&|out| write_date_text(out, mode, text.as_bytes()));
        assert_eq!(date(TimeMode::Adaptive, "2016-11-04"), "17109");
        assert_eq!(date(TimeMode::Connect, "1969-12-31"), "-1");
        assert_eq!(date(TimeMode::Isostring, "2005-05-12"), "\"2005-05-12Z\"");
        assert_eq!(date(TimeMode::Isostring, "0044-03-15 BC"), "\"-0043-03-15Z\"");
        assert_eq!(date(TimeMode::Adaptive, "0044-03-15 BC"), "-735160");
        assert_eq!(date(TimeMode::Isostring, "infinity"), "\"-5877611-06-21Z\"");
        assert_eq!(date(TimeMode::Adaptive, "-infinity"), "-2147472691");
    }

    #[test]
    fn times_of_day() {
        let time = |mode, precision, text: &str| {
            written(&|out| write_time_text(out, mode, precision, text.as_bytes()))
        };
        assert_eq!(time(TimeMode::Adaptive, None, "13:51:30"), "49890000000");
        assert_eq!(time(TimeMode::Adaptive, Some(3), "13:51:30.123"), "49890123");
        assert_eq!(time(TimeMode::AdaptiveTimeMicroseconds, Some(3), "13:51:30.123"), "49890123000");
        assert_eq!(time(TimeMode::Connect, None, "13:51:30.123456"), "49890123");
        assert_eq!(time(TimeMode::Nanoseconds, None, "00:00:00.000001"), "1000");
        assert_eq!(time(TimeMode::Isostring, None, "13:51:30.120"), "\"13:51:30.12Z\"");
        assert_eq!(time(TimeMode::Adaptive, None, "24:00:00"), "86400000000");
    }

    #[test]
    fn times_of_day_with_an_offset_are_in_utc() {
        let time = |text: &str| written(&|out| write_timetz_text(out, text.as_bytes()));
        assert_eq!(time("13:51:30.123789+02"), "\"11:51:30.123789Z\"");
        assert_eq!(time("01:00:00+02"), "\"23:00:00Z\"");
        assert_eq!(time("23:00:00-03:30"), "\"02:30:00Z\"");
        assert_eq!(time("24:00:00+00"), "\"24:00:00Z\"");
    }

    #[test]
    fn timestamps() {
        let timestamp = |mode, precision, text: &str| {
            written(&|out| write_timestamp_text(out, mode, precision, text.as_bytes()))
        };
        let text = "2016-11-04 13:51:30.123456";
        assert_eq!(timestamp(TimeMode::Adaptive, None, text), "1478267490123456");
        assert_eq!(timestamp(TimeMode::Adaptive, Some(3), "2016-11-04 13:51:30.123"), "1478267490123");
        assert_eq!(
            timestamp(TimeMode::AdaptiveTimeMicroseconds, Some(0), "2016-11-04 13:51:30"),
            "1478267490000"
        );
        assert_eq!(timestamp(TimeMode::Connect, None, text), "1478267490123");
        assert_eq!(timestamp(TimeMode::Nanoseconds, None, text), "1478267490123456000");
        assert_eq!(
            timestamp(TimeMode::Isostring, None, "2016-11-04 13:51:30.5"),
            "\"2016-11-04T13:51:30.5Z\""
        );
        assert_eq!(timestamp(TimeMode::Adaptive, None, "infinity"), "9223372036825200000");
        assert_eq!(timestamp(TimeMode::Adaptive, None, "-infinity"), "-9223372036832400000");
        assert_eq!(timestamp(TimeMode::Nanoseconds, None, "-infinity"), "-9223372036854775808");
        assert_eq!(timestamp(TimeMode::Adaptive, Some(3), "1969-12-31 23:59:59.999"), "-1");
        let far = write_timestamp_text(&mut Vec::new(), TimeMode::Nanoseconds, None, b"9999-01-01 00:00:00");
        assert!(matches!(far, Err(Malformed::Inexpressible(_))));
    }

    #[test]
    fn instants() {
        let instant =
            |precision, text: &str| written(&|out| write_timestamptz_text(out, precision, text.as_bytes()));
        assert_eq!(instant(None, "2016-11-04 11:51:30.5+00"), "\"2016-11-04T11:51:30.500000Z\"");
        assert_eq!(instant(Some(3), "2016-11-04 11:51:30.5+00"), "\"2016-11-04T11:51:30.500Z\"");
        assert_eq!(instant(Some(0), "2016-11-04 11:51:30+00"), "\"2016-11-04T11:51:30Z\"");
        assert_eq!(instant(None, "21016-11-04 06:51:30+00"), "\"+21016-11-04T06:51:30.000000Z\"");
        assert_eq!(instant(None, "4714-12-31 23:59:59.999999+00 BC"), "\"-4713-12-31T23:59:59.999999Z\"");
        assert_eq!(instant(None, "infinity"), "\"infinity\"");
    }
}
