//! `cargo xtask tidy`: the structure of DESIGN.md, enforced.

mod arrows;
mod sizes;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Checks everything and prints what is wrong.
pub fn run(root: &Path) -> ExitCode {
    let mut problems = arrows::problems(root);
    problems.extend(sizes::problems(root));
    for problem in &problems {
        eprintln!("tidy: {problem}");
    }
    if problems.is_empty() {
        println!("tidy: every arrow points down, every file and function is small");
        return ExitCode::SUCCESS;
    }
    ExitCode::FAILURE
}

/// The crates of the workspace: their folders, sorted.
fn crates(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root.join("crates")).expect("crates/ exists");
    let mut crates: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    crates.retain(|path| path.join("Cargo.toml").is_file());
    crates.sort();
    crates
}

/// Every Rust file below `dir`, sorted.
fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}
