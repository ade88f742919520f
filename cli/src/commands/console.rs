//! `sprite console`

use super::exec;
use crate::{context::Context, error::Error, net::Api};

const EXAMPLES: &str = "\
Examples:
  sprite console           a login shell in the sprite in force
  sprite console web

Ctrl+\\ detaches: the shell and what runs in it go on, and `sprite attach` comes back. Closing the
window does the same. If the connection breaks, the terminal comes back by itself.";

/// What can be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The sprite's name
    #[arg(add = clap_complete::ArgValueCandidates::new(super::completion::names))]
    name: Option<String>,
    /// Do not forward the ports that are opened in it
    #[arg(long)]
    no_port_forward: bool,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<(), Error> {
    let name = context.sprite(args.name.as_deref())?;
    let api = context.api()?;
    open(context, &api, &name, !args.no_port_forward).await
}

/// Opens a shell in a terminal and ends as it does.
pub(crate) async fn open(context: &Context, api: &Api, sprite: &str, forward: bool) -> Result<(), Error> {
    exec::start(api, sprite, exec::shell_query(context), forward).await
}
