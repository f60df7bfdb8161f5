//! What the config says when it is wrong: word for word.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use headwater_cli::config::{Config, Problems, SourceConfig, parse};

fn read(text: &str) -> Result<Config, Problems> {
    let env = |name: &str| match name {
        "SHOP_DB" => Some("/srv/shop.db".to_owned()),
        "SECRET" => Some("hunter2".to_owned()),
        _ => None,
    };
    parse(text, &env, Path::new("/etc/headwater"))
}

fn errors(text: &str) -> String {
    match read(text) {
        Ok(_) => "it was taken".to_owned(),
        Err(problems) => problems.to_string(),
    }
}

fn each(before: &str, cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        assert_eq!(errors(&format!("{before}{text}")), *expected, "of\n{text}");
    }
}

const SHOP: &str = "[source.shop]\nkind = \"sqlite\"\npath = \"shop.db\"\ntables = [\"orders\"]\n";
/// Four lines of [`SHOP`] and three of a stream: what comes next is on line 8.
const STREAM: &str = "[stream.orders]\nfrom = \"shop.orders\"\ncolumns = \"*\"\n";

#[test]
fn streams() {
    each(
        SHOP,
        &[
            (
                "[stream.orders]\nfrom = \"shop.orders\"\ncolums = \"*\"\npartitons = 3\n",
                "line 7: stream.orders: unknown key \"colums\": did you mean \"columns\"?\n\
                 line 8: stream.orders: unknown key \"partitons\": did you mean \"partitions\"?",
            ),
            (
                "[stream.orders]\nfrom = \"shp.orders\"\ncolumns = \"*\"\n",
                "line 6: stream.orders.from: \"shp.orders\": there is no source \"shp\": did you mean \"shop\"?",
            ),
            (
                "[stream.orders]\nfrom = \"shop.order\"\ncolumns = \"*\"\n",
                "line 6: stream.orders.from: \"shop.order\" is not among the tables of source shop: did you \
                 mean \"shop.orders\"?\n  hint: add it to `tables` of [source.shop]",
            ),
            (
                "[stream.orders]\nfrom = \"orders\"\ncolumns = \"*\"\n",
                "line 6: stream.orders.from: \"orders\" names no table: expected SOURCE.schema.table",
            ),
            (
                "[stream.orders]\nfrom = 3\ncolumns = \"*\"\n",
                "line 6: stream.orders.from: expected a string or a list of strings",
            ),
            (
                "[stream.orders]\nfrom = \"shop.orders\"\n",
                "line 5: stream.orders: the key \"columns\" is missing: it is the stream's contract\n  hint: \
                 columns = { exposed = \"column\" }, a list of columns, or \"*\" to expose them all",
            ),
            (
                "[stream.orders]\ncolumns = \"*\"\n",
                "line 5: stream.orders: nothing feeds this stream\n  hint: name its tables: from = \
                 \"SOURCE.schema.table\"",
            ),
            (
                "[stream.\"a b\"]\nfrom = \"shop.orders\"\ncolumns = \"*\"\n",
                "line 5: stream.\"a b\": \"a b\" cannot be the name of a stream\n  hint: use 1 to 249 letters, \
                 digits, dots, dashes and underscores",
            ),
            ("[stream]\norders = 3\n", "line 6: stream.orders: expected a table, found a whole number"),
        ],
    );
}

#[test]
fn values_of_a_stream() {
    let at = |key: &str, message: &str| format!("line 8: stream.orders{key}: {message}");
    let cases = [
        ("partitions = \"8\"", at(".partitions", "expected a whole number, found a string")),
        ("partitions = 0", at(".partitions", "expected a whole number from 1")),
        ("partitions = -1", at(".partitions", "the number is too small or too large")),
        ("key = []", at(".key", "names no column\n  hint: leave it out to use the table's own key")),
        ("format = \"debezum\"", at(".format", "unknown value \"debezum\": did you mean \"debezium\"?")),
        (
            "format = { kind = \"debezium\", decimal_handling_mod = \"x\" }",
            at(".format", "unknown key \"decimal_handling_mod\": did you mean \"decimal_handling_mode\"?"),
        ),
        ("retention = { tim = \"7d\" }", at(".retention", "unknown key \"tim\": did you mean \"time\"?")),
        (
            "retention = { time = \"7 apples\" }",
            at(".retention.time", "\"7 apples\" is no duration: write 7d, 12h, 30min, 90s or 250ms"),
        ),
        (
            "retention = { bytes = true }",
            at(".retention.bytes", "expected a number of bytes, or text as 10GiB"),
        ),
        ("[stream.orders]", "line 8: this is not TOML: duplicate key".to_owned()),
    ];
    for (text, expected) in cases {
        assert_eq!(errors(&format!("{SHOP}{STREAM}{text}\n")), expected, "of {text}");
    }
}

#[test]
fn sources_and_the_environment() {
    let database = "[source.x]\nkind = \"sqlite\"\npath = \"x\"\n";
    let mysql = "[source.x]\nkind = \"mysql\"\nurl = \"mysql://u@h/d\"\noutbox = \"o\"\n";
    let cases = [
        ("[source.x]", "line 1: source.x: the key \"kind\" is missing\n  hint: kind is one of: KINDS"),
        (
            "[source.x]\nkind = \"sqllite\"",
            "line 2: source.x: unknown kind \"sqllite\": did you mean \"sqlite\"?",
        ),
        ("[source.x]\nkind = \"sqlite\"", "line 1: source.x: the key \"path\" is missing"),
        (
            "[source.x]\nkind = \"mysql\"\nurl = \"${NOPE}\"\noutbox = \"outbox\"",
            "line 3: source.x.url: the environment variable NOPE is not set\n  hint: set it, or give a \
             default: ${NOPE:-value}",
        ),
        (
            "[source.x]\nkind = \"sqlite\"\npath = \"${NOPE\"",
            "line 3: source.x.path: \"${\" does not begin a variable\n  hint: write ${NAME} or \
             ${NAME:-default}; a plain ${ is written $${",
        ),
        (
            "[source.x]\nkind = \"sqlite\"\npath = [\"${SECRET}\"]",
            "line 3: source.x.path: expected a string, found a list",
        ),
        (
            "DATABASEtables = [\"a\", 3]",
            "line 4: source.x.tables[1]: expected a string, found a whole number",
        ),
        (
            "DATABASEsnapshot = \"sometimes\"",
            "line 4: source.x.snapshot: unknown value \"sometimes\"\n  hint: there are: initial, never, always",
        ),
        (
            "DATABASEoutbox = { table = \"o\", idd = \"a\" }",
            "line 4: source.x.outbox: unknown key \"idd\": did you mean \"id\"?",
        ),
        (
            "DATABASEdata_dir = \"d\"",
            "line 4: source.x: \"data_dir\" does not belong here\n  hint: it stands at the top of the file, \
             above the first [section]",
        ),
        (
            "[source.\"x.y\"]\nkind = \"sqlite\"\npath = \"x\"\noutbox = \"o\"",
            "line 1: source.\"x.y\": \"x.y\" cannot be the name of a source\n  hint: use 1 to 100 letters, \
             digits, dashes and underscores",
        ),
        (
            "MYSQLrelay = false",
            "line 5: source.x.relay: the log of MySQL is not read yet: the outbox is always emptied by query",
        ),
        (
            "MYSQLtables = [\"a\"]\nsnapshot = \"never\"",
            "line 5: source.x.tables: tables of MySQL are not captured yet, only an outbox is\n  hint: leave it \
             out: services write events into the outbox\nline 6: source.x.snapshot: tables of MySQL are not \
             captured yet, only an outbox is\n  hint: leave it out: services write events into the outbox",
        ),
        (
            "[source.x]\nkind = \"mysql\"\nurl = \"mysql://u@h/d\"",
            "line 1: source.x: the key \"outbox\" is missing",
        ),
        ("", "no source is configured\n  hint: add a [source.NAME] with its kind, url and tables"),
    ];
    for (text, expected) in cases {
        let text = text.replace("DATABASE", database).replace("MYSQL", mysql);
        let expected = expected.replace("KINDS", "postgres, sqlite, mysql");
        assert_eq!(errors(&text), expected, "of\n{text}");
    }
}

#[test]
fn the_rest_of_the_file() {
    each(
        SHOP,
        &[
            ("[streams.orders]\n", "line 5: unknown section or key \"streams\": did you mean \"stream\"?"),
            ("[bus]\nkind = \"kafak\"\n", "line 6: bus: unknown kind \"kafak\": did you mean \"kafka\"?"),
            ("[bus]\nkind = 3\n", "line 6: bus.kind: expected a string, found a whole number"),
            (
                "[bus]\nsegment_byte = 3\n",
                "line 6: bus: unknown key \"segment_byte\": did you mean \"segment_bytes\"?",
            ),
            (
                "[http]\nlisten = \"7070\"\n",
                "line 6: http.listen: expected an address as \"127.0.0.1:7070\", or \"off\"",
            ),
            (
                "[log]\nlevel = \"loud\"\n",
                "line 6: log.level: unknown value \"loud\"\n  hint: there are: error, warn, info, debug, trace",
            ),
            ("[source.x\nkind = \"sqlite\"\n", "line 5: this is not TOML: unclosed table, expected `]`"),
            (
                "[outbox]\nstream = \"{aggregatetype} events\"\n",
                "line 6: outbox.stream: \"x events\" cannot be the name of a stream\n  hint: use 1 to 249 letters, \
                 digits, dots, dashes and underscores",
            ),
        ],
    );
}

/// A relay that reads nothing would stand still without a word, and one that reads too much at once make checkpoints that
/// no broker takes.
#[test]
fn how_much_a_relay_reads_at_once_has_bounds() {
    for wrong in ["0", "5001", "-1"] {
        let said = errors(&format!("{SHOP}[relay]\nbatch = {wrong}\n"));
        assert!(said.contains("line 6: relay.batch: "), "{said}");
    }
    let said = errors(&format!("{SHOP}[relay]\nbatch = 0\n"));
    assert_eq!(said, "line 6: relay.batch: expected a whole number from 1 to 5000");
    assert_eq!(read(&format!("{SHOP}[relay]\nbatch = 5000\n")).unwrap().relay.batch, 5_000);
}

#[test]
fn errors_of_several_sections_come_together() {
    let text = format!("{SHOP}[bus]\nkind = \"kafak\"\n[http]\nport = 1\n{STREAM}verison = 2\n");
    assert_eq!(
        errors(&text).lines().filter(|line| line.starts_with("line ")).count(),
        3,
        "{}",
        errors(&text)
    );
}

#[test]
fn a_right_one_has_its_values_and_defaults() {
    let text = "[source.shop]\nkind = \"sqlite\"\npath = \"${SHOP_DB}\"\ntables = [\"orders\"]\n\
        [source.idle]\nkind = \"sqlite\"\npath = \"idle.db\"\ntables = [\"t\"]\n\
        [stream.orders]\nfrom = \"shop.orders\"\ncolumns = { z = \"id\", a = \"status\" }\n\
        [http]\nlisten = \"off\"\n[log]\nformat = \"json\"\n";
    let config = read(text).unwrap();
    assert_eq!(config.data_dir, Path::new("/etc/headwater/data"));
    assert_eq!(config.http, None);
    assert_eq!(read(SHOP).unwrap().http, Some("127.0.0.1:7070".parse().unwrap()));
    let path = |name: &str| match &config.sources[name] {
        SourceConfig::Sqlite(source) => source.path.clone(),
        SourceConfig::Postgres(_) | SourceConfig::MySql(_) => panic!("not the one"),
    };
    assert_eq!(path("shop"), Path::new("/srv/shop.db"), "an absolute path stays");
    assert_eq!(path("idle"), Path::new("/etc/headwater/idle.db"), "relative to the config");
    let columns = format!("{:?}", config.streams["orders"].columns);
    assert_eq!(
        columns, "Some(Named([(\"z\", \"id\"), (\"a\", \"status\")]))",
        "in the order they are written"
    );
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        ["line 5: source.idle: no stream is fed by this source: what it reads goes nowhere\n  hint: add a \
          [stream.NAME] with from = \"idle.t\" and its columns"]
    );
}

#[test]
fn no_value_is_shown() {
    let text = "[source.x]\nkind = \"sqlite\"\npath = \"x\"\nsnapshot = \"${SECRET}\"\n\
        [source.y]\nkind = \"${SECRET}\"\n[source.z]\nkind = \"sqlite\"\ntables = \"${SECRET}\"\n[http]\nlisten = \"${SECRET}\"\n[parked]\nbudget = \"${SECRET}\"\n";
    let said = errors(text);
    assert_eq!(said.lines().filter(|line| line.starts_with("line ")).count(), 5, "{said}");
    assert!(!said.contains("hunter2"), "{said}");
    assert!(said.contains("unknown kind \"${SECRET}\""), "{said}");
}

/// A small fuzzer for every run of the tests: mutated configs are refused or taken, and nothing panics.
#[test]
fn mutated_configs_never_panic() {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let names = ["postgres-kafka.toml", "postgres-embedded.toml", "sqlite.toml"];
    let texts = names.map(|name| std::fs::read_to_string(root.join(name)).unwrap());
    let pieces =
        ["=", "[", "]", "{", "}", "\"", "'", "${", "$${A:-", "\n", ".", "0", "-1", "\u{e9}", "[[x]]", "#"];
    let mut random = StdRng::seed_from_u64(7);
    for text in &texts {
        for _ in 0..500 {
            let mut chars: Vec<char> = text.chars().collect();
            for _ in 0..random.random_range(1..6) {
                let at = random.random_range(0..chars.len());
                let until = (at + random.random_range(0..12)).min(chars.len());
                let piece = pieces[random.random_range(0..pieces.len())];
                chars.splice(at..until, piece.chars());
            }
            let text: String = chars.into_iter().collect();
            if let Err(problems) = read(&text) {
                assert!(!problems.0.is_empty() && !problems.to_string().is_empty(), "{text}");
            }
        }
    }
}
