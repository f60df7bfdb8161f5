//! The config: whatever is written in the file, it is a config or a list of problems that can be shown,
//! and none of them shows what came from the environment.
#![no_main]

use std::path::Path;

use headwater_cli::config::parse;
use libfuzzer_sys::fuzz_target;

const SECRET: &str = "postgres://app:correct-horse-battery@db/shop";

fuzz_target!(|text: &str| {
    let env = |name: &str| (name != "MISSING").then(|| SECRET.to_owned());
    if let Err(problems) = parse(text, &env, Path::new(".")) {
        let shown = problems.to_string();
        assert!(!shown.is_empty());
        assert!(!shown.contains("correct-horse") || text.contains("correct-horse"), "{shown}");
    }
});
