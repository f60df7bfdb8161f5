//! The `headwater` binary: flags, config, wiring.

mod args;
mod check;
mod demo;
mod init;
mod outbox;
mod output;
mod parked;
mod run;
mod snapshot;
mod status;
mod tail;
mod trace;
mod wiring;

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
    match command {
        Command::Run(args) => run::run(&args).await,
        Command::Check(args) => check::check(&args).await,
        Command::Init(args) => init::init(&args).await,
        Command::Outbox(args) => outbox::outbox(&args).await,
        Command::Tail(args) => tail::tail(&args).await,
        Command::Status(args) => status::status(&args).await,
        Command::Snapshot(args) => snapshot::snapshot(&args).await,
        Command::Parked(args) => parked::parked(&args).await,
        Command::Trace(args) => trace::trace(&args).await,
        Command::Demo(args) => demo::demo(&args).await,
    }
}
