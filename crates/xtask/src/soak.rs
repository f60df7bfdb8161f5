//! `cargo xtask soak`: the kill tests of the suite, for longer and with a release build.

use std::path::Path;
use std::process::{Command, ExitCode};

use clap::{Args, Subcommand};

/// A soak and how long.
#[derive(Args)]
pub struct SoakArgs {
    #[command(subcommand)]
    soak: Soak,
}

#[derive(Subcommand)]
enum Soak {
    /// Kill headwater, PostgreSQL and Kafka, hold and cut the network, under load, and check every event
    Kills {
        /// How often things go wrong, in each of the tests
        #[arg(long, default_value_t = 100)]
        times: u32,
        /// Repeat the run with this seed
        #[arg(long)]
        seed: Option<u64>,
    },
}

/// Runs the soak.
pub fn run(root: &Path, args: &SoakArgs) -> ExitCode {
    let Soak::Kills { times, seed } = args.soak;
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "test",
        "--release",
        "--package",
        "headwater-cli",
        "--test",
        "e2e_kills",
        "--",
        "--nocapture",
    ]);
    cargo.arg("--test-threads=1").current_dir(root).env("HEADWATER_SOAK_TIMES", times.to_string());
    if let Some(seed) = seed {
        cargo.env("HEADWATER_SOAK_SEED", seed.to_string());
    }
    let status = cargo.status().expect("cargo starts");
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
