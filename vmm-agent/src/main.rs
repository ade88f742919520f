//! `vmm-agent`: one per host. It owns the sprites of its host: their disks, their states, who holds
//! them awake and why.
//!
//! - [`sprite`]: one task owns one sprite; it feeds the pure machines of `lifecycle` and `lease` and
//!   performs what they decide.
//! - [`drivers`]: how a sprite is run.
//! - [`images`]: what virtual machines boot.
//! - [`api`]: HTTP/JSON over a Unix socket, the watch stream, the lease channel.
//! - [`store`]: SQLite. [`directory`]: the published view that the API and watchers read.

mod agent;
mod api;
mod commands;
mod config;
mod directory;
mod drivers;
mod holders;
mod images;
mod memory;
mod metrics;
mod serve;
mod sparse;
mod sprite;
mod store;
mod tokens;
mod wakes;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // The process driver re-executes this program as its launcher. That must happen while there is
    // only one thread: a new user namespace can't be entered with more.
    drivers::process::launcher::run_if_asked();
    drivers::firecracker::pager::run_if_asked();
    commands::run(commands::Arguments::parse())
}
