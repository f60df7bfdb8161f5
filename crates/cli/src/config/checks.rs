//! What one section says, held against the others.

use std::ops::Range;

use headwater_runtime::{StreamConfig, TableRef};
use toml::de::{DeTable, DeValue};

use super::document::join;
use super::problem::Problem;
use super::section::nearest;
use super::{Config, Reader};

impl Reader<'_> {
    /// Adds problems; returns what is only a warning.
    pub(super) fn check(&mut self, config: &Config, root: &DeTable<'_>) -> Vec<Problem> {
        for (name, stream) in &config.streams {
            let place = Place { root, path: join("stream", name), name };
            self.check_stream(&place, stream, config);
        }
        self.check_outbox(config, root);
        self.warnings(config, root)
    }

    fn check_stream(&mut self, place: &Place<'_, '_>, stream: &StreamConfig, config: &Config) {
        for table in &stream.from {
            self.check_table(place, table, config);
        }
        let mut sources = config.sources.values();
        let outbox = sources.any(|source| source.outbox().is_some() || source.takes_messages());
        if stream.from.is_empty() && !outbox {
            let problem = self.at(place, None, "nothing feeds this stream");
            self.problems.push(problem.hint("name its tables: from = \"SOURCE.schema.table\""));
        }
        if !stream.from.is_empty() && stream.columns.is_none() {
            let problem = self.at(place, None, "the key \"columns\" is missing: it is the stream's contract");
            self.problems.push(
                problem.hint(
                    "columns = { exposed = \"column\" }, a list of columns, or \"*\" to expose them all",
                ),
            );
        }
        for (key, number) in [("partitions", stream.partitions), ("version", stream.version)] {
            if number == 0 {
                self.problems.push(self.at(place, Some(key), "expected a whole number from 1"));
            }
        }
        for (key, columns) in [("key", &stream.key), ("order_key", &stream.order_key)] {
            if columns.as_ref().is_some_and(Vec::is_empty) {
                let problem = self.at(place, Some(key), "names no column");
                self.problems.push(problem.hint("leave it out to use the table's own key"));
            }
        }
    }

    fn check_table(&mut self, place: &Place<'_, '_>, table: &TableRef, config: &Config) {
        let Some(source) = config.sources.get(&table.source) else {
            let known: Vec<&str> = config.sources.keys().map(String::as_str).collect();
            let meant = did_you_mean(&table.source, &known);
            let message = format!("\"{table}\": there is no source \"{}\"{meant}", table.source);
            self.problems.push(self.at(place, Some("from"), message));
            return;
        };
        let tables = source.tables();
        let captured = tables.iter().any(|name| name.contains('*') || table.matches_name(name));
        if !captured {
            let known: Vec<String> = tables.iter().map(|name| format!("{}.{name}", table.source)).collect();
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let meant = did_you_mean(&table.to_string(), &known);
            let message = format!("\"{table}\" is not among the tables of source {}{meant}", table.source);
            let problem = self.at(place, Some("from"), message);
            self.problems.push(problem.hint(format!("add it to `tables` of [source.{}]", table.source)));
        }
    }

    fn check_outbox(&mut self, config: &Config, root: &DeTable<'_>) {
        let place = Place { root, path: "outbox".into(), name: "" };
        if config.outbox.partitions == 0 {
            self.problems.push(self.at(&place, Some("partitions"), "expected a whole number from 1"));
        }
        let example = config.outbox.stream.replace("{aggregatetype}", "x");
        if let Err(error) = headwater_core::check_stream_name(&example) {
            self.problems.push(self.at(&place, Some("stream"), error.to_string()));
        }
    }

    fn warnings(&self, config: &Config, root: &DeTable<'_>) -> Vec<Problem> {
        let mut warnings = Vec::new();
        for (name, source) in &config.sources {
            let place = Place { root, path: join("source", name), name };
            let fed = |stream: &StreamConfig| stream.from.iter().any(|table| table.source == *name);
            if source.outbox().is_none() && !config.streams.values().any(fed) {
                let warning =
                    self.at(&place, None, "no stream is fed by this source: what it reads goes nowhere");
                let table = source.tables().first().map_or("TABLE", String::as_str);
                warnings.push(
                    warning
                        .hint(format!("add a [stream.NAME] with from = \"{name}.{table}\" and its columns")),
                );
            }
        }
        warnings
    }

    fn at(&self, place: &Place<'_, '_>, key: Option<&str>, message: impl Into<String>) -> Problem {
        let path = key.map_or_else(|| place.path.clone(), |key| join(&place.path, key));
        Problem::new(path, place.span(key).and_then(|span| self.lines.of(&span)), message)
    }
}

/// A section, for telling its lines.
struct Place<'a, 'i> {
    root: &'a DeTable<'i>,
    path: String,
    name: &'a str,
}

impl Place<'_, '_> {
    fn span(&self, key: Option<&str>) -> Option<Range<usize>> {
        let (top, _) = self.path.split_once('.').unwrap_or((&self.path, ""));
        let mut section = self.root.get(top)?;
        if !self.name.is_empty() {
            let DeValue::Table(sections) = section.get_ref() else { return None };
            section = sections.get(self.name)?;
        }
        let DeValue::Table(table) = section.get_ref() else { return None };
        let value = key.and_then(|key| table.get(key));
        Some(value.unwrap_or(section).span())
    }
}

/// `: did you mean "x"?`, or nothing.
fn did_you_mean(name: &str, known: &[&str]) -> String {
    nearest(name, known).map(|near| format!(": did you mean \"{near}\"?")).unwrap_or_default()
}
