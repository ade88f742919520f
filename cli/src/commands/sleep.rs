//! `sprite sleep`

use reqwest::Method;
use serde_json::json;

use super::why;
use crate::{context::Context, error::Error, term::progress};

const EXAMPLES: &str = "\
Examples:
  sprite sleep           keep its memory: the next wake goes on where it was
  sprite sleep --disk    the same, and give its RAM back: the memory is on disk (virtual machines)
  sprite sleep --cold    keep only its disk: the next wake is a boot

Whoever uses the sprite is cut off. An idle sprite sleeps by itself; see `sprite why`.";

/// What can be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The sprite's name
    #[arg(add = clap_complete::ArgValueCandidates::new(super::completion::names))]
    name: Option<String>,
    /// Keep its memory on disk, not in RAM
    #[arg(long, conflicts_with = "cold")]
    disk: bool,
    /// Keep only its disk, not its memory
    #[arg(long)]
    cold: bool,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<(), Error> {
    let name = context.sprite(args.name.as_deref())?;
    let api = context.api()?;
    let depth = match (args.disk, args.cold) {
        (true, _) => "suspended",
        (false, true) => "cold",
        (false, false) => "warm",
    };
    let body = json!({ "depth": depth });
    let url = format!("{}/sleep", api.sprite(&name));
    let call = api.call(Method::POST, &url, Some(body));
    let answer = progress::while_working(&format!("putting {name} to sleep"), call).await?;
    context.output.show(&answer, why::human)
}
