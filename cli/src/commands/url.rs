//! `sprite url`

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::{UrlAuth, info};
use crate::{
    context::Context,
    error::Error,
    net::Api,
    output::{fields, text},
    term::progress,
};

const EXAMPLES: &str = "\
Examples:
  sprite url                        where the sprite's web server is, and who may use it
  sprite url update --auth public   open it to anyone
  sprite url update --auth default  members of the organization only";

const UPDATE_EXAMPLES: &str = "\
Examples:
  sprite url update --auth public
  sprite url update --auth default -s web";

/// What can be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    /// The sprite's name
    #[arg(add = clap_complete::ArgValueCandidates::new(super::completion::names))]
    name: Option<String>,
    /// Who may use it from now on
    #[arg(short, long, value_enum, hide = true)]
    auth: Option<UrlAuth>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Change who may use the URL
    #[command(after_help = UPDATE_EXAMPLES)]
    Update {
        /// Who may use it from now on
        #[arg(short, long, value_enum)]
        auth: UrlAuth,
    },
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<(), Error> {
    let name = context.sprite(args.name.as_deref())?;
    let api = context.api()?;
    let auth = args.auth.or(args.verb.map(|Verb::Update { auth }| auth));
    let sprite = match auth {
        Some(auth) => change(&api, &name, json!({ "url_settings": { "auth": auth.wire() } })).await?,
        None => {
            let call = api.call(Method::GET, api.sprite(&name), None);
            progress::while_working(&format!("looking at {name}"), call).await?
        }
    };
    context.output.show(&sprite, human)
}

fn human(sprite: &Value) -> String {
    fields(&[("url", text(sprite, "url").to_owned()), ("auth", info::auth(sprite))])
}

/// Changes settings of a sprite and returns what it is now.
pub(crate) async fn change(api: &Api, name: &str, wish: Value) -> Result<Value, Error> {
    let call = api.call(Method::PUT, api.sprite(name), Some(wish));
    progress::while_working(&format!("changing {name}"), call).await
}
