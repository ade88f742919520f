//! `sprite wake`

use reqwest::Method;

use super::why;
use crate::{context::Context, error::Error, term::progress};

const EXAMPLES: &str = "\
Examples:
  sprite wake        so that the first visitor does not wait

Anything that reaches into a sprite wakes it by itself: its URL, exec, console, proxy.";

/// What can be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The sprite's name
    #[arg(add = clap_complete::ArgValueCandidates::new(super::completion::names))]
    name: Option<String>,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<(), Error> {
    let name = context.sprite(args.name.as_deref())?;
    let api = context.api()?;
    let url = format!("{}/wake", api.sprite(&name));
    let answer =
        progress::while_working(&format!("waking {name}"), api.call(Method::POST, &url, None)).await?;
    context.output.show(&answer, why::human)
}
