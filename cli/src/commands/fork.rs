//! `sprite fork`

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::{UrlAuth, info, why};
use crate::{context::Context, error::Error, net::Api, output::text, term::progress};

const EXAMPLES: &str = "\
Examples:
  sprite fork copy                       a new sprite with the disk of this one as it is now
  sprite -s web fork old --checkpoint v1 with web's disk as it was at a checkpoint
  sprite fork copy --memory              with its memory, too: what runs in this one goes on in both

The source goes on undisturbed, awake or asleep; with --memory it is put to sleep on disk first, which ends its
connections. Without, services start in the fork as after a cold boot. From then on the two have nothing in common.";

/// To copy a large disk takes a while, and the server waits no longer.
const LIMIT: Duration = Duration::from_secs(600);

/// How long the source of a memory may take to be on disk.
const SLEEP_LIMIT: Duration = Duration::from_secs(60);
/// The pause between two looks at it.
const SLEEP_PAUSE: Duration = Duration::from_millis(100);

/// What can be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The new sprite's name
    name: String,
    /// The checkpoint to begin from, instead of the disk as it is now
    #[arg(long, value_name = "ID")]
    checkpoint: Option<String>,
    /// Go on from the memory, too, not from a cold boot (virtual machines)
    #[arg(long, conflicts_with = "checkpoint")]
    memory: bool,
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
    if args.memory {
        body["fork"]["memory"] = json!(true);
    }
    let forked = async {
        match fork(&api, &body).await {
            Err(Error::Refused { code, .. }) if code == "not_suspended" => {
                put_on_disk(&api, &source).await?;
                fork(&api, &body).await
            }
            forked => forked,
        }
    };
    let sprite = progress::while_working(&format!("copying {source}"), forked).await?;
    context.output.show(&sprite, info::human)
}

async fn fork(api: &Api, body: &Value) -> Result<Value, Error> {
    api.call_within(LIMIT, Method::POST, api.url("/v1/sprites"), Some(body.clone())).await
}

/// Puts the memory of the source on disk, where a fork takes it from.
async fn put_on_disk(api: &Api, source: &str) -> Result<(), Error> {
    let order = json!({ "depth": "suspended" });
    api.call(Method::POST, format!("{}/sleep", api.sprite(source)), Some(order)).await?;
    let asleep = async {
        loop {
            let why = why::ask(api, source).await?;
            match text(&why, "phase") {
                "suspended" => return Ok(()),
                "cold" => {
                    let reason = format!("{source} is cold and has no memory; `sprite wake {source}` first");
                    return Err(Error::said(reason));
                }
                _ => sleep(SLEEP_PAUSE).await,
            }
        }
    };
    let late = |_| {
        let limit = SLEEP_LIMIT.as_secs();
        Error::said(format!(
            "{source} was not on disk within {limit} s; `sprite why {source}` says what keeps it"
        ))
    };
    timeout(SLEEP_LIMIT, asleep).await.map_err(late)?
}
