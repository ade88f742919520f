//! `sprite why`

use std::{io::IsTerminal, time::Duration};

use reqwest::Method;
use serde_json::Value;

use crate::{
    context::Context,
    error::Error,
    net::Api,
    output::{self, duration, text},
    term::progress,
};

/// How often the answer is asked for again.
const PERIOD: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  sprite why               who keeps it awake, since when, and when it will sleep
  sprite why web --watch   the same, every second, until Ctrl-C

Asking does not wake a sprite, nor keep it awake.";

/// What can be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The sprite's name
    #[arg(add = clap_complete::ArgValueCandidates::new(super::completion::names))]
    name: Option<String>,
    /// Go on asking
    #[arg(short, long)]
    watch: bool,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<(), Error> {
    let name = context.sprite(args.name.as_deref())?;
    let api = context.api()?;
    if !args.watch {
        let why = progress::while_working(&format!("asking about {name}"), ask(&api, &name)).await?;
        return context.output.show(&why, human);
    }
    let live = std::io::stdout().is_terminal() && !context.output.json;
    let mut shown = 0;
    let watching = async {
        loop {
            let why = ask(&api, &name).await?;
            if live {
                let drawn = human(&why);
                let up = if shown > 0 { format!("\u{1b}[{shown}A") } else { String::new() };
                shown = drawn.lines().count();
                output::raw(format!("{up}\u{1b}[J{drawn}\n").as_bytes())?;
            } else {
                context.output.event(&why, human)?;
            }
            tokio::time::sleep(PERIOD).await;
        }
    };
    tokio::select! {
        ended = watching => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

pub(super) async fn ask(api: &Api, name: &str) -> Result<Value, Error> {
    api.call(Method::GET, format!("{}/why", api.sprite(name)), None).await
}

/// The answer for people.
pub(crate) fn human(why: &Value) -> String {
    let mut lines =
        vec![format!("{} (inside: {}, epoch {})", text(why, "state"), text(why, "phase"), why["epoch"])];
    for holder in why["holders"].as_array().into_iter().flatten() {
        let held_for = duration(holder["held_for_ms"].as_u64().unwrap_or_default());
        let mut line =
            format!("held for {held_for} by {} of {}", text(holder, "activity"), text(holder, "holder"));
        line.push_str(&format!(": {} connections, {} requests", holder["connections"], holder["requests"]));
        if let Some(ago) = holder["last_byte_ms_ago"].as_u64() {
            line.push_str(&format!(", last byte {} ago", duration(ago)));
        }
        if let Some(id) = holder["request_id"].as_str() {
            line.push_str(&format!(", woken by request {id}"));
        }
        lines.push(line);
    }
    if let (Some(ms), Some(state)) = (why["sleeps_in_ms"].as_u64(), why["sinks_to"].as_str()) {
        lines.push(format!("nobody holds it: {state} in {}", duration(ms)));
    }
    if let Some(trouble) = why["trouble"]["message"].as_str() {
        lines.push(format!("trouble: {trouble}"));
    }
    lines.join("\n")
}
