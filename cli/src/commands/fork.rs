//! `sprite fork`

use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use super::{UrlAuth, info};
use crate::{context::Context, error::Error, term::progress};

const EXAMPLES: &str = "\
Examples:
  sprite fork copy                       a new sprite with the disk of this one as it is now
  sprite -s web fork old --checkpoint v1 with web's disk as it was at a checkpoint

The source goes on undisturbed, awake or asleep. Memory is not copied: services start in the fork as after a
cold boot. From then on the two have nothing in common.";

/// To copy a large disk takes a while, and the server waits no longer.
const LIMIT: Duration = Duration::from_secs(600);

/// What can be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The new sprite's name
    name: String,
    /// The checkpoint to begin from, instead of the disk as it is now
    #[arg(long, value_name = "ID")]
    checkpoint: Option<String>,
    /// A label of the new sprite; may be repeated
    #[arg(long, value_name = "LABEL")]
    label: Vec<String>,
    /// Who may use the new sprite's URL
    #[arg(short, long, value_enum, default_value_t = UrlAuth::Default)]
    auth: UrlAuth,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<(), Error> {
    let source = context.sprite(None)?;
    let api = context.api()?;
    let mut body = json!({
        "name": args.name,
        "url_settings": { "auth": args.auth.wire() },
        "labels": args.label,
        "fork": { "sprite": source },
    });
    if let Some(checkpoint) = args.checkpoint {
        body["fork"]["checkpoint"] = json!(checkpoint);
    }
    let call = api.call_within(LIMIT, Method::POST, api.url("/v1/sprites"), Some(body));
    let sprite = progress::while_working(&format!("copying the disk of {source}"), call).await?;
    context.output.show(&sprite, info::human)
}
