//! `sprite list`

use std::{collections::BTreeMap, io::IsTerminal};

use reqwest::Method;
use serde_json::Value;

use crate::{
    context::Context,
    error::Error,
    net::{Api, Body, segment},
    output::{self, ago, table, text},
    term::progress,
};

const EXAMPLES: &str = "\
Examples:
  sprite list
  sprite list --prefix web-
  sprite list --watch                    a table that follows every change, until Ctrl-C
  sprite list --json | jq -r '.[] | select(.status == \"running\").name'
  sprite list --watch --json             one line of JSON for each sprite and each change";

/// What can be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Only those whose names begin with this
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    /// Go on and show every change
    #[arg(short, long)]
    watch: bool,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<(), Error> {
    let api = context.api()?;
    if args.watch {
        return watch(context, &api, &args.prefix).await;
    }
    let all = progress::while_working("reading the list", all(&api, &args.prefix)).await?;
    context.output.show(&Value::Array(all), |all| {
        let rows = all.as_array().into_iter().flatten().map(|sprite| {
            let last = sprite["last_running_at"].as_str().map_or_else(|| "-".to_owned(), ago);
            vec![
                text(sprite, "name").to_owned(),
                text(sprite, "status").to_owned(),
                last,
                text(sprite, "url").to_owned(),
            ]
        });
        table(&["NAME", "STATUS", "LAST WOKEN", "URL"], &rows.collect::<Vec<_>>())
    })
}

/// All pages of the list.
pub(crate) async fn all(api: &Api, prefix: &str) -> Result<Vec<Value>, Error> {
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let page = format!("/v1/sprites?prefix={}&continuation_token={}", segment(prefix), segment(&token));
        let mut answer = api.call(Method::GET, api.url(&page), None).await?;
        if let Value::Array(sprites) = answer["sprites"].take() {
            all.extend(sprites);
        }
        match answer["next_continuation_token"].as_str() {
            // A server that gives the same token again would keep us for ever.
            Some(next) if answer["has_more"] == true && !next.is_empty() && next != token => {
                token = next.to_owned();
            }
            Some(_) | None => return Ok(all),
        }
    }
}

async fn watch(context: &Context, api: &Api, prefix: &str) -> Result<(), Error> {
    let url = api.url(&format!("/v1/sprites?prefix={}", segment(prefix)));
    let live = std::io::stdout().is_terminal() && !context.output.json;
    let mut known: BTreeMap<String, Value> = BTreeMap::new();
    let mut shown = 0;
    let watching = api.events(Method::GET, &url, Body::Nothing, None, |event| {
        let Some(name) = event["name"].as_str().map(str::to_owned) else { return Ok(()) };
        if !live {
            return context.output.event(&event, |event| {
                format!("{}  {:<10}{name}", text(event, "timestamp"), text(event, "status"))
            });
        }
        if event["type"] == "deleted" {
            known.remove(&name);
        } else {
            known.insert(name, event);
        }
        let drawn = draw(&known);
        // Up to where the table began, and over it.
        let up = if shown > 0 { format!("\u{1b}[{shown}A") } else { String::new() };
        shown = drawn.lines().count();
        output::raw(format!("{up}\u{1b}[J{drawn}\n").as_bytes())
    });
    tokio::select! {
        ended = watching => {
            ended?;
            Err(Error::said("the server ended the watch; it may be restarting"))
        }
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

fn draw(known: &BTreeMap<String, Value>) -> String {
    let rows: Vec<Vec<String>> = known
        .iter()
        .map(|(name, event)| {
            let last = event["last_running_at"].as_str().map_or_else(|| "-".to_owned(), ago);
            vec![name.clone(), text(event, "status").to_owned(), last]
        })
        .collect();
    let running = known.values().filter(|event| event["status"] == "running").count();
    format!(
        "{}\n\n{} sprites, {running} running",
        table(&["NAME", "STATUS", "LAST WOKEN"], &rows),
        known.len()
    )
}
