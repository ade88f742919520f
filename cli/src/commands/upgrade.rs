//! `sprite upgrade` and `sprite version`

use clap::ValueEnum;

use crate::{error::Error, output};

const EXAMPLES: &str = "\
Examples:
  sprite upgrade --check    print the version

This `sprite` is built together with the server: in its repository, `git pull && make build`.";

/// What can be typed. The options are those of the vendor's own client, so that scripts go on working.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Only print the version
    #[arg(long)]
    check: bool,
    #[arg(long, hide = true)]
    force: bool,
    #[arg(long, hide = true, value_name = "VERSION")]
    version: Option<String>,
    #[arg(long, hide = true)]
    channel: Option<Channel>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Channel {
    Release,
    Rc,
    Dev,
}

pub(crate) fn run(args: &Args) -> Result<(), Error> {
    if args.check {
        return output::line(&version());
    }
    Err(Error::said(format!(
        "{} can't replace itself: it is built together with the server. In its repository: git pull && make build",
        version()
    )))
}

/// The program and its version.
pub(crate) fn version() -> String {
    format!("sprite {}", env!("CARGO_PKG_VERSION"))
}
