//! `sprite config`

use clap::Subcommand;
use serde_json::json;

use super::{UrlAuth, info, url};
use crate::{context::Context, error::Error};

const EXAMPLES: &str = "\
Examples:
  sprite config update --url-auth public
  sprite config update --label team=docs --label stage=test
  sprite config update --clear-labels";

/// What can be typed.
#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Change settings; what is not named stays
    #[command(after_help = EXAMPLES)]
    Update(Update),
}

/// Settings to change.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Update {
    /// Who may use the sprite's URL
    #[arg(long, value_enum)]
    url_auth: Option<UrlAuth>,
    /// Its labels from now on; may be repeated
    #[arg(long, value_name = "LABEL", conflicts_with = "clear_labels")]
    label: Vec<String>,
    /// Take all labels off
    #[arg(long)]
    clear_labels: bool,
}

pub(crate) async fn run(context: &Context, args: Config) -> Result<(), Error> {
    let Config::Update(args) = args;
    let name = context.sprite(None)?;
    let api = context.api()?;
    let mut wish = json!({});
    if let Some(auth) = args.url_auth {
        wish["url_settings"] = json!({ "auth": auth.wire() });
    }
    if !args.label.is_empty() {
        wish["labels"] = json!(args.label);
    }
    if args.clear_labels {
        wish["clear_labels"] = json!(true);
    }
    context.output.show(&url::change(&api, &name, wish).await?, info::human)
}
