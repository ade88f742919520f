//! `sprite restart`

use reqwest::Method;
use serde_json::Value;

use crate::{context::Context, error::Error, output::text, term::progress};

const EXAMPLES: &str = "\
Examples:
  sprite restart       end all its processes and start it again from its disk";

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
    let url = format!("{}/restart", api.sprite(&name));
    let call = api.call(Method::POST, &url, None);
    let answer = progress::while_working(&format!("restarting {name}"), call).await?;
    context.output.show(&answer, |answer: &Value| match text(answer, "message") {
        "-" => format!("Restarted {name}"),
        message => message.to_owned(),
    })
}
