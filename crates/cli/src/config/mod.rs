//! The config: one TOML file, first as it is written, then checked.
//!
//! [`parse`] is pure: it reads no file, no environment and no server. Each adapter owns the struct of its
//! section; this module says which section belongs to whom, and makes the errors worth reading.

mod checks;
mod document;
mod env;
mod own;
mod problem;
mod section;
mod sources;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use headwater_connect::embedded::EmbeddedConfig;
use headwater_connect::kafka::KafkaConfig;
use headwater_core::{Error, Kind, Result};
use headwater_runtime::{RelaySettings, Settings, StreamConfig};
use headwater_server::push::PushConfig;
use toml::Spanned;
use toml::de::DeValue;

use document::Lines;
pub use own::{LogConfig, LogFormat, LogLevel, OutboxConfig, ParkedConfig};
pub use problem::{Problem, Problems};
pub use sources::SourceConfig;

/// A config that was checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the embedded bus, parked changes and spilled transactions are.
    pub data_dir: PathBuf,
    /// The sources, by name.
    pub sources: BTreeMap<String, SourceConfig>,
    /// The bus.
    pub bus: BusConfig,
    /// The declared streams, by name.
    pub streams: BTreeMap<String, StreamConfig>,
    /// The pushes, by name.
    pub pushes: BTreeMap<String, PushConfig>,
    /// Where outbox rows go.
    pub outbox: OutboxConfig,
    /// Where HTTP is served; `None` is nowhere.
    pub http: Option<SocketAddr>,
    /// What is logged, and how.
    pub log: LogConfig,
    /// What the parked store may hold.
    pub parked: ParkedConfig,
    /// Budgets and waits of the pipeline.
    pub runtime: Settings,
    /// How outboxes are emptied by query.
    pub relay: RelaySettings,
    /// What is probably not meant; it does not stop anything.
    pub warnings: Vec<Problem>,
}

/// `[bus]`.
#[derive(Debug, Clone)]
pub enum BusConfig {
    /// Streams in files under `data_dir/bus`.
    Embedded(EmbeddedConfig),
    /// Streams are topics.
    Kafka(KafkaConfig),
}

/// The sections and keys at the top of the file.
const TOP: &[&str] =
    &["data_dir", "source", "bus", "stream", "push", "outbox", "http", "log", "parked", "runtime", "relay"];

/// Reads a config file; relative paths in it are relative to its folder.
pub fn load(path: &Path) -> Result<Config> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => "name the file: headwater run FILE; or see `headwater demo`",
            _ => "it must be a text file in UTF-8 that this user may read",
        };
        Error::new(Kind::Config, format!("cannot read the config {}", path.display()))
            .because(error)
            .hint(hint)
    })?;
    let base = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    parse(&text, &|name| std::env::var(name).ok(), base)
        .map_err(|problems| Error::new(Kind::Config, format!("{} is wrong:\n{problems}", path.display())))
}

/// Reads a config from its text. `env` gives the value of an environment variable; relative paths are
/// taken from `base`.
pub fn parse(
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
    base: &Path,
) -> std::result::Result<Config, Problems> {
    let mut root = document::parse(text).map_err(Problems)?;
    let mut reader = Reader { lines: Lines(text), problems: Vec::new() };
    let used = RefCell::new(Vec::new());
    let noting = |name: &str| {
        let value = env(name);
        used.borrow_mut().extend(value.clone().map(|value| (format!("${{{name}}}"), value)));
        value
    };
    for (key, value) in &mut root {
        document::fill_in(key.get_ref(), value, reader.lines, &noting, &mut reader.problems);
    }
    let unfilled = reader.problems.len();
    let config = reader.config(&root, base);
    // What else is wrong with a value that could not be filled in is no news.
    let mut more = reader.problems.split_off(unfilled);
    more.retain(|problem| reader.problems.iter().all(|unfilled| unfilled.path != problem.path));
    reader.problems.append(&mut more);
    if reader.problems.is_empty() {
        return Ok(config);
    }
    Err(Problems(reader.problems.into_iter().map(|problem| hide(problem, &used.borrow())).collect()))
}

/// What came from the environment may be secret: its name stands for it.
fn hide(mut problem: Problem, used: &[(String, String)]) -> Problem {
    for (name, value) in used.iter().filter(|(_, value)| !value.is_empty()) {
        problem.message = problem.message.replace(value, name);
        problem.hint = problem.hint.map(|hint| hint.replace(value, name));
    }
    problem
}

/// Reads sections and collects what is wrong with them.
struct Reader<'i> {
    lines: Lines<'i>,
    problems: Vec<Problem>,
}

type Section<'i> = Spanned<DeValue<'i>>;

impl Reader<'_> {
    fn config(&mut self, root: &toml::de::DeTable<'_>, base: &Path) -> Config {
        for key in root.keys().filter(|key| !TOP.contains(&key.get_ref().as_ref())) {
            let line = self.lines.of(&key.span());
            self.problems.push(section::unknown("", line, "section or key", key.get_ref(), TOP));
        }
        let mut config = Config {
            // Its components: `./data`, not `././data`.
            data_dir: base
                .join(self.optional::<PathBuf>(root.get("data_dir"), "data_dir", "data".into()))
                .components()
                .collect(),
            sources: self.sources(root.get("source"), base),
            bus: self.bus(root.get("bus")),
            streams: self.streams(root.get("stream")),
            pushes: self.pushes(root.get("push"), base),
            outbox: self.optional(root.get("outbox"), "outbox", OutboxConfig::default()),
            http: self.optional(root.get("http"), "http", own::HttpConfig::default()).listen,
            log: self.optional(root.get("log"), "log", LogConfig::default()),
            parked: self.optional(root.get("parked"), "parked", ParkedConfig::default()),
            runtime: self.optional(root.get("runtime"), "runtime", Settings::default()),
            relay: self.optional(root.get("relay"), "relay", RelaySettings::default()),
            warnings: Vec::new(),
        };
        // Sections that could not be read would only give rise to more errors.
        if self.problems.is_empty() {
            config.warnings = self.check(&config, root);
        }
        config
    }

    fn optional<T: serde::de::DeserializeOwned>(
        &mut self,
        section: Option<&Section<'_>>,
        path: &str,
        default: T,
    ) -> T {
        let read = section.and_then(|section| section::read(path, section, self.lines, &mut self.problems));
        read.unwrap_or(default)
    }

    fn bus(&mut self, section: Option<&Section<'_>>) -> BusConfig {
        let default = || BusConfig::Embedded(EmbeddedConfig::default());
        let Some(section) = section else { return default() };
        let known = &["embedded", "kafka"];
        let kind =
            section::take_kind("bus", section, known, Some("embedded"), self.lines, &mut self.problems);
        let Some((kind, rest)) = kind else { return default() };
        let bus = match kind.as_str() {
            "kafka" => self.section("bus", &rest).map(BusConfig::Kafka),
            _ => self.section("bus", &rest).map(BusConfig::Embedded),
        };
        bus.unwrap_or_else(default)
    }

    fn streams(&mut self, section: Option<&Section<'_>>) -> BTreeMap<String, StreamConfig> {
        let Some(section) = section else { return BTreeMap::new() };
        let mut streams = BTreeMap::new();
        for (name, section) in section::named("stream", section, self.lines, &mut self.problems) {
            let path = document::join("stream", name);
            if let Err(error) = headwater_core::check_stream_name(name) {
                self.problems.push(Problem::new(&path, self.lines.of(&section.span()), error.to_string()));
            }
            if let Some(stream) = self.section(&path, section) {
                streams.insert(name.to_owned(), stream);
            }
        }
        streams
    }

    fn pushes(&mut self, section: Option<&Section<'_>>, base: &Path) -> BTreeMap<String, PushConfig> {
        let Some(section) = section else { return BTreeMap::new() };
        let mut pushes = BTreeMap::new();
        for (name, section) in section::named("push", section, self.lines, &mut self.problems) {
            let path = document::join("push", name);
            let Some(mut push) = self.section::<PushConfig>(&path, section) else { continue };
            push.ca_file = push.ca_file.map(|file| base.join(file));
            if let Err((key, message)) = push.check() {
                let span = match section.get_ref() {
                    DeValue::Table(table) => table.get(key).unwrap_or(section).span(),
                    _ => section.span(),
                };
                self.problems.push(Problem::new(document::join(&path, key), self.lines.of(&span), message));
            }
            pushes.insert(name.to_owned(), push);
        }
        pushes
    }

    fn section<T: serde::de::DeserializeOwned>(&mut self, path: &str, section: &Section<'_>) -> Option<T> {
        section::read(path, section, self.lines, &mut self.problems)
    }
}
