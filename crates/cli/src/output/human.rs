//! Figures as people read them.

use headwater_core::Micros;
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// `1.5 MiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or("B");
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {name}") }
}

/// `1,234,567`.
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `3.2 ms`, `1.5 s`, `2 min 5 s`, `3 h 20 min`, `4 d 2 h`.
pub fn seconds(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match seconds {
        s if s < 0.001 => format!("{:.0} µs", s.max(0.0) * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{} min {} s", whole / 60, whole % 60),
        s if s < 86_400.0 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// A span of microseconds, as [`seconds`] writes it.
pub fn micros(micros: Micros) -> String {
    seconds(micros as f64 / 1e6)
}

/// How long ago it was: `now`, `12.0 s ago`.
pub fn ago(time: Micros, now: Micros) -> String {
    match now - time {
        span if span < 1_000_000 => "now".into(),
        span => format!("{} ago", micros(span)),
    }
}

/// Now, on the one clock.
pub fn now() -> Micros {
    Timestamp::now().as_microsecond()
}

/// The time of day here, with milliseconds; with the date when it is not today's.
pub fn clock(time: Micros, now: Micros) -> String {
    let zone = TimeZone::system();
    let zoned =
        |micros| Timestamp::from_microsecond(micros).ok().map(|at: Timestamp| at.to_zoned(zone.clone()));
    match (zoned(time), zoned(now)) {
        (Some(time), Some(now)) if time.date() == now.date() => time.strftime("%H:%M:%S%.3f").to_string(),
        (Some(time), _) => time.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string(),
        _ => "-".into(),
    }
}

/// The instant in UTC, for programs: `2024-05-17T10:00:00.123456Z`.
pub fn instant(time: Micros) -> Option<String> {
    Timestamp::from_microsecond(time).ok().map(|time| time.to_string())
}

/// `1 event`, `2 events`.
pub fn plural(number: u64, word: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{} {word}{ending}", count(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1536), bytes(5 << 30)],
            ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
        );
        assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        let spans = [0.000_25, 0.0032, 1.5, 125.0, 12_000.0, 360_000.0];
        let words = ["250 µs", "3.2 ms", "1.5 s", "2 min 5 s", "3 h 20 min", "4 d 4 h"];
        assert_eq!(spans.map(seconds), words);
        assert_eq!([plural(1, "event"), plural(2000, "event")], ["1 event", "2,000 events"]);
    }
}
