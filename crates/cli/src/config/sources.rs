//! `[source.NAME]`: which adapter's section it is.

use std::collections::BTreeMap;
use std::path::Path;

use headwater_connect::mysql::MySqlConfig;
use headwater_connect::postgres::PostgresConfig;
use headwater_connect::settings::Outbox;
use headwater_connect::sqlite::SqliteConfig;
use toml::Spanned;
use toml::de::DeValue;

use super::problem::Problem;
use super::{Reader, Section, document, section};

/// The kinds of source.
const KINDS: &[&str] = &["postgres", "sqlite", "mysql"];

/// A source's settings, by the adapter that owns them.
#[derive(Debug, Clone)]
pub enum SourceConfig {
    /// `kind = "postgres"`.
    Postgres(PostgresConfig),
    /// `kind = "sqlite"`.
    Sqlite(SqliteConfig),
    /// `kind = "mysql"`.
    MySql(MySqlConfig),
}

impl SourceConfig {
    /// The tables that it captures, as the config names them.
    pub fn tables(&self) -> &[String] {
        match self {
            Self::Postgres(config) => &config.tables,
            Self::Sqlite(config) => &config.tables,
            Self::MySql(_) => &[],
        }
    }

    /// Whether `table`, as an operator writes it, is one that it reads in a snapshot, as far as the config tells.
    pub fn reads(&self, table: &str) -> bool {
        match self {
            Self::Postgres(config) => config.reads(table),
            Self::Sqlite(config) => config.reads(table),
            Self::MySql(_) => false,
        }
    }

    /// Its outbox table, where it has one.
    pub fn outbox(&self) -> Option<&Outbox> {
        match self {
            Self::Postgres(config) => config.outbox.as_ref(),
            Self::Sqlite(config) => config.outbox.as_ref(),
            Self::MySql(config) => Some(&config.outbox),
        }
    }

    /// Whether the outbox is emptied by query.
    pub fn is_relayed(&self) -> bool {
        let relay = match self {
            Self::Postgres(config) => config.relay,
            Self::Sqlite(config) => config.relay,
            Self::MySql(_) => true,
        };
        relay && self.outbox().is_some()
    }

    /// Whether its log, or what triggers write, is followed.
    pub fn is_followed(&self) -> bool {
        !self.is_relayed() || !self.tables().is_empty()
    }

    /// Whether it takes events that are no rows: PostgreSQL's logical messages.
    pub fn takes_messages(&self) -> bool {
        matches!(self, Self::Postgres(config) if !config.messages.is_empty())
    }
}

impl Reader<'_> {
    pub(super) fn sources(
        &mut self,
        section: Option<&Section<'_>>,
        base: &Path,
    ) -> BTreeMap<String, SourceConfig> {
        let Some(section) = section else {
            let problem = Problem::new("", None, "no source is configured");
            self.problems.push(problem.hint("add a [source.NAME] with its kind, url and tables"));
            return BTreeMap::new();
        };
        let mut sources = BTreeMap::new();
        for (name, section) in section::named("source", section, self.lines, &mut self.problems) {
            let path = document::join("source", name);
            self.check_source_name(&path, name, section);
            if let Some(source) = self.source(&path, section, base) {
                sources.insert(name.to_owned(), source);
            }
        }
        sources
    }

    fn source(
        &mut self,
        path: &str,
        section: &Spanned<toml::de::DeValue<'_>>,
        base: &Path,
    ) -> Option<SourceConfig> {
        let (kind, mut rest) =
            section::take_kind(path, section, KINDS, None, self.lines, &mut self.problems)?;
        match kind.as_str() {
            "postgres" => return self.section(path, &rest).map(SourceConfig::Postgres),
            "mysql" => {
                self.refuse_capture(path, &mut rest);
                return self.section(path, &rest).map(SourceConfig::MySql);
            }
            _ => {}
        }
        let mut config: SqliteConfig = self.section(path, &rest)?;
        config.path = base.join(&config.path).components().collect();
        Some(SourceConfig::Sqlite(config))
    }

    /// Takes out what the other kinds of source have and MySQL has not, and says so.
    fn refuse_capture(&mut self, path: &str, section: &mut Spanned<DeValue<'_>>) {
        let DeValue::Table(table) = section.get_mut() else { return };
        for key in ["tables", "snapshot"] {
            if let Some(value) = table.remove(key) {
                let line = self.lines.of(&value.span());
                let problem = Problem::new(
                    document::join(path, key),
                    line,
                    "tables of MySQL are not captured yet, only an outbox is",
                );
                self.problems.push(problem.hint("leave it out: services write events into the outbox"));
            }
        }
    }

    /// A source's name stands in front of a dot in `from`, and in the names of files.
    fn check_source_name(&mut self, path: &str, name: &str, section: &Section<'_>) {
        let ok = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || name.len() > 100 || !name.chars().all(ok) {
            let line = self.lines.of(&section.span());
            let problem = Problem::new(path, line, format!("\"{name}\" cannot be the name of a source"));
            self.problems.push(problem.hint("use 1 to 100 letters, digits, dashes and underscores"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_found_by_their_whole_name() {
        let postgres: PostgresConfig = toml::from_str(
            "url = \"postgres://u@h/d\"\ntables = [\"orders\", \"app.lines\", \"log.*\"]\noutbox = \"app.outbox\"",
        )
        .unwrap();
        let postgres = SourceConfig::Postgres(postgres);
        for table in ["orders", "public.orders", "app.lines", "log.x", "app.outbox"] {
            assert!(postgres.reads(table), "{table}");
        }
        for table in ["lines", "app.orders", "public.lines", "logs.x", "log", "outbox", "public.log"] {
            assert!(!postgres.reads(table), "{table}");
        }
        let sqlite = |tables: &[&str]| SourceConfig::Sqlite(SqliteConfig::new("shop.db", tables));
        for table in ["t", "main.t", "T", "main.u", "u"] {
            assert!(sqlite(&["t", "main.u"]).reads(table), "{table}");
        }
        for table in ["nosuch.t", "x.t", "main.v", "outbox"] {
            assert!(!sqlite(&["t", "main.u"]).reads(table), "{table}");
        }
        assert!(sqlite(&["*"]).reads("main.any"));
    }
}
