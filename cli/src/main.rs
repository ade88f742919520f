//! `sprite`: the command line for people and scripts. Results go to stdout, everything else to stderr;
//! `--json` prints what the API answered.
//!
//! Exit codes: 0 done, 1 refused or failed, 2 bad usage.

mod args;
mod client;
mod commands;
mod output;

use std::process::ExitCode;

use clap::Parser;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = args::Arguments::parse();
    match commands::run(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sprite: {error}");
            ExitCode::FAILURE
        }
    }
}
