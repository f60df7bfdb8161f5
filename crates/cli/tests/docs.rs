//! The examples and the documents about config and command line say what the code does.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use headwater_cli::config::parse;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every environment variable that an example names has some value.
fn env(name: &str) -> Option<String> {
    Some(if name.ends_with("_URL") { "postgres://u:p@localhost/d".into() } else { "value".into() })
}

/// The blocks of a document that are fenced with ```` ```toml ````.
fn blocks(text: &str) -> Vec<&str> {
    text.split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("```").map(|(block, _)| block))
        .collect()
}

#[test]
fn every_example_is_a_config_without_a_warning() {
    let examples = ["postgres-kafka", "postgres-embedded", "sqlite"];
    for name in examples {
        let text = read(format!("examples/{name}.toml"));
        let config = parse(&text, &env, Path::new(".")).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(config.warnings.is_empty(), "{name}: {:?}", config.warnings);
    }
}

#[test]
fn every_config_in_the_documents_is_one() {
    let mut found = 0;
    for name in ["README.md", "docs/configuration.md"] {
        let text = read(name);
        for block in blocks(&text).into_iter().filter(|block| block.contains("[source.")) {
            found += 1;
            parse(block, &env, Path::new(".")).unwrap_or_else(|error| panic!("{name}: {error}\n{block}"));
        }
    }
    assert!(found >= 2, "{found}");
}

/// A config with a key nobody knows in one section: the error lists those that there are.
const SECTIONS: &[(&str, &str)] = &[
    (
        "[source.NAME] kind = \"postgres\"",
        "[source.s]\nkind = \"postgres\"\nurl = \"postgres://u@h/d\"\nqqqqqq = 1\n",
    ),
    (
        "[source.NAME] kind = \"mysql\"",
        "[source.s]\nkind = \"mysql\"\nurl = \"mysql://u@h/d\"\noutbox = \"o\"\nqqqqqq = 1\n",
    ),
    ("[source.NAME] kind = \"sqlite\"", "[source.s]\nkind = \"sqlite\"\npath = \"x\"\nqqqqqq = 1\n"),
    (
        "Outbox tables",
        "[source.s]\nkind = \"sqlite\"\npath = \"x\"\noutbox = { table = \"o\", qqqqqq = 1 }\n",
    ),
    ("[bus] kind = \"embedded\"", "[bus]\nkind = \"embedded\"\nqqqqqq = 1\n"),
    ("[bus] kind = \"kafka\"", "[bus]\nkind = \"kafka\"\nbrokers = []\nqqqqqq = 1\n"),
    ("[stream.NAME]", "[stream.s]\nqqqqqq = 1\n"),
    ("[stream.NAME]", "[stream.s]\nretention = { qqqqqq = 1 }\n"),
    ("[push.NAME]", "[push.p]\nstreams = [\"s\"]\nurl = \"http://h/\"\nqqqqqq = 1\n"),
    ("[outbox]", "[outbox]\nqqqqqq = 1\n"),
    ("[http]", "[http]\nqqqqqq = 1\n"),
    ("[log]", "[log]\nqqqqqq = 1\n"),
    ("[parked]", "[parked]\nqqqqqq = 1\n"),
    ("[runtime]", "[runtime]\nqqqqqq = 1\n"),
    ("[relay]", "[relay]\nqqqqqq = 1\n"),
    ("The file", "qqqqqq = 1\n"),
];

fn keys_of(config: &str) -> BTreeSet<String> {
    let problems = parse(config, &env, Path::new(".")).unwrap_err().0;
    let unknown = problems.iter().find(|problem| problem.message.contains("qqqqqq"));
    let problem = unknown.unwrap_or_else(|| panic!("{problems:?}"));
    let hint = problem.hint.clone().unwrap_or_default();
    let keys: BTreeSet<String> = hint
        .trim_start_matches("there are: ")
        .split(", ")
        .filter(|key| !key.is_empty())
        .map(str::to_owned)
        .collect();
    if keys.is_empty() {
        panic!("no keys are listed: {problem}")
    }
    keys
}

#[test]
fn every_key_of_every_section_is_in_the_documents() {
    let text = read("docs/configuration.md");
    for (section, config) in SECTIONS {
        let heading = format!("## {section}\n");
        let (_, rest) =
            text.split_once(&heading).unwrap_or_else(|| panic!("docs/configuration.md has no {heading}"));
        let part = rest.split("\n## ").next().unwrap_or(rest);
        for key in keys_of(config) {
            assert!(
                part.contains(&format!("`{key}`")),
                "docs/configuration.md, {section}: `{key}` is missing"
            );
        }
    }
}

#[test]
fn every_command_and_flag_is_in_the_documents() {
    let text = read("docs/cli.md");
    for command in ["run", "check", "init", "outbox", "tail", "status", "snapshot", "parked", "demo"] {
        let heading = format!("\n## headwater {command}");
        let (_, rest) = text.split_once(&heading).unwrap_or_else(|| panic!("docs/cli.md has no {heading}"));
        let part = rest.split("\n## ").next().unwrap_or(rest);
        let help =
            std::process::Command::new(env!("CARGO_BIN_EXE_headwater")).args([command, "--help"]).output();
        let help = String::from_utf8(help.unwrap().stdout).unwrap();
        let flags = help.split(|c: char| c.is_whitespace() || c == ',').filter(|word| word.starts_with("--"));
        for flag in flags.filter(|flag| flag.len() > 2 && *flag != "--help") {
            let flag = flag.trim_end_matches(|c: char| !c.is_ascii_lowercase());
            assert!(part.contains(flag), "docs/cli.md, {command}: {flag} is missing");
        }
    }
}

#[test]
fn every_metric_is_in_the_documents() {
    let (code, text) = (read("crates/runtime/src/metrics.rs"), read("docs/operations.md"));
    let (described, _) = code.split_once("\n}\n").unwrap();
    let said: BTreeSet<&str> =
        described.split("!(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let (_, table) = text.split_once("\n## Metrics\n").unwrap();
    let (table, _) = table.split_once("\nWorth an alert").unwrap();
    let names = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    assert_eq!(names.collect::<BTreeSet<_>>(), said);
}

/// The names of all functions in the Rust files under a folder.
fn functions(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            functions(&entry, names);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&entry).unwrap();
            let name = |rest: &str| rest.split(['(', '<']).next().map(str::to_owned);
            names.extend(text.split("fn ").skip(1).filter_map(name));
        }
    }
}

#[test]
fn every_guarantee_names_tests_that_there_are() {
    let mut there = BTreeSet::new();
    functions(&root().join("crates"), &mut there);
    let text = read("docs/guarantees.md");
    for number in 1..=8 {
        let heading = format!("\n## {number}. ");
        let (_, rest) = text.split_once(&heading).unwrap_or_else(|| panic!("there is no {heading}"));
        let part = rest.split("\n## ").next().unwrap_or(rest);
        let (_, shown) =
            part.split_once("\nShown by ").unwrap_or_else(|| panic!("{number} is shown by nothing"));
        for name in shown.split('`').skip(1).step_by(2) {
            assert!(there.contains(name), "{number} is shown by {name}, which is not there");
        }
    }
}
