//! Which crate may know which: arrows point down only.

use std::path::Path;

/// Each crate and those of ours that it may depend on. Dev-dependencies may add `testkit`.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("wire", &["core"]),
    ("connect", &["core", "wire"]),
    ("runtime", &["core", "wire"]),
    ("app", &["core", "runtime", "connect"]),
    ("server", &["core", "runtime", "app"]),
    ("cli", &["core", "wire", "connect", "runtime", "app", "server"]),
    ("testkit", &["core"]),
    ("xtask", &["core", "wire", "connect", "runtime", "app", "testkit"]),
];

/// What no crate but the named ones may depend on: only `server` knows HTTP servers, core does no I/O.
const ONLY: &[(&str, &[&str])] = &[
    ("axum", &["server"]),
    ("rdkafka", &["connect"]),
    ("tokio", &["connect", "runtime", "app", "server", "cli", "testkit", "xtask"]),
];

/// What is wrong with the crates' dependencies.
pub fn problems(root: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    for path in super::crates(root) {
        let name = path.file_name().expect("a folder has a name").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path.join("Cargo.toml")).expect("readable");
        let manifest: toml::Table = text.parse().expect("cargo already read it");
        let Some((_, allowed)) = MAY_KNOW.iter().find(|(known, _)| *known == name) else {
            problems
                .push(format!("crates/{name} has no floor: add it to MAY_KNOW and say why it is a crate"));
            continue;
        };
        for (section, dev) in
            [("dependencies", false), ("build-dependencies", false), ("dev-dependencies", true)]
        {
            for dependency in names(&manifest, section) {
                problems.extend(problem(&name, allowed, &dependency, dev));
            }
        }
        problems.extend(own_versions(&name, &manifest));
    }
    problems
}

fn problem(name: &str, allowed: &[&str], dependency: &str, dev: bool) -> Option<String> {
    // The crate for service authors goes by the project's name.
    let ours = if dependency == "headwater" { Some("app") } else { dependency.strip_prefix("headwater-") };
    if let Some(ours) = ours {
        // A crate's own tests may ask for features of it.
        let fine = allowed.contains(&ours) || (dev && (ours == "testkit" || ours == name));
        return (!fine).then(|| format!("crates/{name} may not depend on {ours}: arrows point down only"));
    }
    let (_, only) = ONLY.iter().find(|(limited, _)| *limited == dependency)?;
    (!dev && !only.contains(&name)).then(|| format!("crates/{name} may not depend on {dependency}"))
}

fn names(manifest: &toml::Table, section: &str) -> Vec<String> {
    let table = manifest.get(section).and_then(toml::Value::as_table);
    table.into_iter().flat_map(|table| table.keys().cloned()).collect()
}

/// Versions stand in the workspace's one table, so every dependency says `workspace = true`.
fn own_versions(name: &str, manifest: &toml::Table) -> Vec<String> {
    let sections = ["dependencies", "build-dependencies", "dev-dependencies"];
    let tables = sections.iter().filter_map(|section| manifest.get(*section)?.as_table());
    let own = tables.flatten().filter(|(_, spec)| spec.get("workspace").is_none());
    own.map(|(dependency, _)| {
        format!("crates/{name} gives its own version of {dependency}: use the workspace's table")
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::problem;

    #[test]
    fn an_upward_arrow_is_a_problem() {
        assert!(problem("core", &[], "headwater-wire", false).is_some());
        assert!(problem("runtime", &["core", "wire"], "headwater-connect", false).is_some());
        assert!(problem("runtime", &["core", "wire"], "headwater-core", false).is_none());
    }

    #[test]
    fn testkit_is_for_tests_only() {
        assert!(problem("connect", &["core"], "headwater-testkit", true).is_none());
        assert!(problem("connect", &["core"], "headwater-testkit", false).is_some());
    }

    #[test]
    fn only_server_knows_http() {
        assert!(problem("runtime", &[], "axum", false).is_some());
        assert!(problem("server", &[], "axum", false).is_none());
    }
}
