//! `sprite info`

use reqwest::Method;
use serde_json::Value;

use crate::{
    context::Context,
    error::Error,
    output::{fields, text},
    term::progress,
};

const EXAMPLES: &str = "\
Examples:
  sprite info                 the sprite in force here
  sprite info web --json | jq -r .status

Looking at a sprite does not wake it.";

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
    let call = api.call(Method::GET, api.sprite(&name), None);
    context.output.show(&progress::while_working(&format!("looking at {name}"), call).await?, human)
}

/// How URL settings are said.
pub(crate) fn auth(sprite: &Value) -> String {
    match text(&sprite["url_settings"], "auth") {
        "sprite" => "default (members of the organization)".to_owned(),
        other => other.to_owned(),
    }
}

/// A sprite for people.
pub(crate) fn human(sprite: &Value) -> String {
    let mut shown = vec![
        ("name", text(sprite, "name").to_owned()),
        ("status", text(sprite, "status").to_owned()),
        ("url", text(sprite, "url").to_owned()),
        ("auth", auth(sprite)),
        ("organization", text(sprite, "organization").to_owned()),
        ("created", text(sprite, "created_at").to_owned()),
    ];
    if let Some(at) = sprite["last_running_at"].as_str() {
        shown.push(("last woken", at.to_owned()));
    }
    let labels: Vec<&str> =
        sprite["labels"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !labels.is_empty() {
        shown.push(("labels", labels.join(", ")));
    }
    fields(&shown)
}
