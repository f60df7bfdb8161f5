//! What a bench says: a table for people, one line of JSON for scripts.

use serde::Serialize;

/// One measured case.
#[derive(Debug, Clone, Serialize)]
pub struct Case {
    /// The bench and the case, e.g. `wal tcp 100`.
    pub name: String,
    /// How fast, in `unit`; the median of the rounds.
    pub rate: f64,
    /// `rows/s`, `events/s`, ...
    pub unit: &'static str,
    /// What it is compared with; `None` where nothing is.
    pub baseline: Option<String>,
    /// How fast the baseline was; the median of the rounds.
    pub baseline_rate: Option<f64>,
    /// The median of the rounds' ratios.
    pub ratio: Option<f64>,
    /// Latencies in milliseconds.
    pub p50_ms: Option<f64>,
    /// The 99th percentile.
    pub p99_ms: Option<f64>,
    /// Peak resident memory of the measured process.
    pub rss_mib: Option<f64>,
    /// CPU seconds of the measured process; the median of the rounds.
    pub cpu_s: Option<f64>,
    /// CPU seconds of the baseline's client.
    pub baseline_cpu_s: Option<f64>,
    /// What the issue asks for, and whether it was reached.
    pub goal: String,
}

impl Case {
    /// A case with nothing measured yet.
    pub fn new(name: impl Into<String>, unit: &'static str, goal: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            rate: 0.0,
            unit,
            baseline: None,
            baseline_rate: None,
            ratio: None,
            p50_ms: None,
            p99_ms: None,
            rss_mib: None,
            cpu_s: None,
            baseline_cpu_s: None,
            goal: goal.into(),
        }
    }
}

/// Prints the table; with `json`, ends with one line: the first case's fields, and all cases in `cases`.
pub fn print(cases: &[Case], json: bool) {
    let head =
        ["case", "rate", "baseline", "ratio", "cpu s", "base cpu s", "p50 ms", "p99 ms", "rss MiB", "goal"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(cases.iter().map(cells));
    let width = |at: usize| rows.iter().map(|row| row[at].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    if json && let Some(first) = cases.first() {
        let mut line = serde_json::to_value(first).expect("plain data");
        line["cases"] = serde_json::to_value(cases).expect("plain data");
        println!("{line}");
    }
}

fn cells(case: &Case) -> [String; 10] {
    let number =
        |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |n| format!("{n:.digits$}"));
    [
        case.name.clone(),
        format!("{:.0} {}", case.rate, case.unit),
        number(case.baseline_rate, 0),
        number(case.ratio, 2),
        number(case.cpu_s, 2),
        number(case.baseline_cpu_s, 2),
        number(case.p50_ms, 2),
        number(case.p99_ms, 2),
        number(case.rss_mib, 0),
        case.goal.clone(),
    ]
}

/// The median; 0 of nothing.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// The value below which `share` of the (sorted) values lie.
pub fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let at = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_the_nearest_rank() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), Some(50.0));
        assert_eq!(percentile(&values, 0.99), Some(99.0));
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
