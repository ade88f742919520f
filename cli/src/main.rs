//! `sprite`: the command line for people and scripts.
//!
//! Raw arguments ([`args`]) become a checked [`context::Context`], on which each verb ([`commands`]) does
//! its work. Results go to stdout, everything else to stderr; `--json` prints what the API answered.
//!
//! Exit codes: 0 done, 1 refused or failed, 2 no such command or option; `exec` and its kin end with the
//! code of what they ran.

mod args;
mod commands;
mod config;
mod context;
mod error;
mod net;
mod output;
mod remote;
mod term;
#[cfg(test)]
mod tests;
mod tunnel;

use std::process::ExitCode;

use context::{Context, Environment};

fn main() -> ExitCode {
    clap_complete::CompleteEnv::with_factory(args::command).complete();
    term::raw::restore_on_panic();
    let arguments = args::parse(std::env::args_os());
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return error::report(&error.into()),
    };
    let result = runtime.block_on(async {
        let context = Context::new(arguments.global, Environment::read())?;
        // Each verb's future is as large as all it awaits.
        Box::pin(commands::run(&context, arguments.command)).await
    });
    term::raw::restore();
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error::report(&error),
    };
    // A thread that still waits for somebody to type keeps nobody from leaving.
    runtime.shutdown_background();
    code
}
