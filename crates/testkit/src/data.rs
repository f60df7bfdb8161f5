//! Real data for tests: the Chinook sample database, in `shared/data` beside the checkout.

use std::path::{Path, PathBuf};

/// SQL that fills an empty PostgreSQL database with Chinook.
pub fn chinook_postgres() -> String {
    // The script makes and enters a database of its own; ours is there already.
    let own = |line: &&str| {
        !["DROP DATABASE", "CREATE DATABASE", "\\c "].iter().any(|start| line.starts_with(start))
    };
    chinook("Chinook_PostgreSql.sql").lines().filter(own).collect::<Vec<_>>().join("\n")
}

/// SQL that fills an empty SQLite database with Chinook.
pub fn chinook_sqlite() -> String {
    chinook("Chinook_Sqlite.sql")
}

fn chinook(file: &str) -> String {
    let path = directory().join("chinook").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; set HEADWATER_DATA to the directory that holds chinook/{file}", path.display())
    });
    text.trim_start_matches('\u{feff}').to_owned()
}

/// `HEADWATER_DATA`, or the first `shared/data` beside the workspace or above it; as scripts/test looks.
fn directory() -> PathBuf {
    if let Some(directory) = std::env::var_os("HEADWATER_DATA") {
        return directory.into();
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut candidates = workspace.ancestors().map(|directory| directory.join("shared/data"));
    candidates.find(|directory| directory.is_dir()).unwrap_or_else(|| workspace.join("../../../shared/data"))
}
