//! `sprite use`

use reqwest::Method;
use serde_json::json;

use super::list;
use crate::{
    config::project::{self, Project},
    context::Context,
    error::Error,
    output::{self, text},
};

const EXAMPLES: &str = "\
Examples:
  sprite use web        act on web in this directory and those below
  sprite use            say which sprite is in force, and which there are
  sprite use --unset    forget it

The choice is kept in the file .sprite, which can be checked in: there is no secret in it.";

/// What can be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The sprite's name
    #[arg(add = clap_complete::ArgValueCandidates::new(super::completion::names))]
    name: Option<String>,
    /// Remove the .sprite file in force
    #[arg(long, conflicts_with = "name")]
    unset: bool,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<(), Error> {
    if args.unset {
        let Some(path) = context.project_file() else {
            return Err(Error::said("there is no .sprite file here or above"));
        };
        std::fs::remove_file(path)?;
        output::note(&format!("Removed {}", path.display()));
        return Ok(());
    }
    let api = context.api()?;
    let Some(name) = args.name.or_else(|| context.global.sprite.clone()) else {
        let all = list::all(&api, "").await?;
        let now = context.sprite(None).ok();
        let value = json!({ "sprite": now, "file": context.project_file(), "sprites": all });
        return context.output.show(&value, |_| {
            let mut lines = vec![match &now {
                Some(name) => format!("in force: {name}"),
                None => "no sprite is chosen here; `sprite use NAME` chooses one of these:".to_owned(),
            }];
            lines.extend(all.iter().map(|sprite| format!("  {}", text(sprite, "name"))));
            lines.join("\n")
        });
    };
    // A name that is mistyped is noticed now, and not by the next command.
    let sprite = api.call(Method::GET, api.sprite(&name), None).await?;
    let organization = sprite["organization"].as_str().map(str::to_owned);
    let path = project::write(context.directory()?, &Project { organization, sprite: Some(name.clone()) })?;
    output::note(&format!("Using {name} from here on ({})", path.display()));
    if context.output.json { context.output.show(&sprite, |_| String::new()) } else { Ok(()) }
}
