//! What keeps Headwater in shape: `cargo xtask tidy | bench | soak`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a developer's tool: a panic is its report

mod bench;
mod soak;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Headwater's own tasks")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Fail on a dependency that runs upward, a file over 600 lines, a function over 70
    Tidy,
    /// Measure, each thing against its baseline
    Bench(bench::BenchArgs),
    /// Break things for a long time and check that nothing is lost
    Soak(soak::SoakArgs),
}

/// The root of the workspace.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace exists")
}

fn main() -> ExitCode {
    match Args::parse().task {
        Task::Tidy => tidy::run(&root()),
        Task::Bench(args) => bench::run(args),
        Task::Soak(args) => soak::run(&root(), &args),
    }
}
