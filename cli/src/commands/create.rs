//! `sprite create`

use std::io::IsTerminal;

use reqwest::Method;
use serde_json::json;

use super::{UrlAuth, console, info};
use crate::{config::Selection, context::Context, error::Error, output, term::progress};

const EXAMPLES: &str = "\
Examples:
  sprite create web                      make a sprite and open a console in it
  sprite create web --skip-console       only make it
  sprite create site --auth public --label team=docs

A new sprite is the one that further commands act on, unless -s or a .sprite file names another.
Where there is no terminal, no console is opened.";

/// What can be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Its name: lowercase letters, digits and single hyphens
    #[arg(required_unless_present = "sprite")]
    name: Option<String>,
    /// Open no console afterwards
    #[arg(long)]
    skip_console: bool,
    /// A label; may be repeated
    #[arg(long, value_name = "LABEL")]
    label: Vec<String>,
    /// Who may use its URL
    #[arg(short, long, value_enum, default_value_t = UrlAuth::Default)]
    auth: UrlAuth,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<(), Error> {
    let name = context.sprite(args.name.as_deref())?;
    let api = context.api()?;
    let mut body = json!({ "name": name, "url_settings": { "auth": args.auth.wire() } });
    if !args.label.is_empty() {
        body["labels"] = json!(args.label);
    }
    let call = api.call(Method::POST, api.url("/v1/sprites"), Some(body));
    let sprite = progress::while_working(&format!("making {name}"), call).await?;
    remember(context, &api.base, &sprite["organization"], &name);
    context.output.show(&sprite, info::human)?;
    let a_person_waits = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if args.skip_console || context.output.json || !a_person_waits {
        return Ok(());
    }
    output::note("");
    console::open(context, &api, &name, true).await
}

/// Selects a new sprite for the commands that follow.
fn remember(context: &Context, url: &str, org: &serde_json::Value, name: &str) {
    let Ok(mut store) = context.store() else { return };
    let org = org.as_str().unwrap_or_default();
    let mut selection = Selection::new(url, org);
    selection.sprite = Some(name.to_owned());
    store.state.current_selection = Some(selection);
    // The sprite was made; that it isn't selected is no reason to fail.
    if let Err(error) = store.save() {
        output::note(&format!("sprite: {name} is not selected for further commands: {error}"));
    }
}
