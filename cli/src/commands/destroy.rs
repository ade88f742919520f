//! `sprite destroy`

use std::io::{BufRead, IsTerminal, Write};

use reqwest::Method;

use crate::{context::Context, error::Error, output, term::progress};

const EXAMPLES: &str = "\
Examples:
  sprite destroy web            asks first
  sprite destroy web --force    does not

Its disk, its services and its URL are gone at once, and nothing brings them back.";

/// What can be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The sprite's name
    #[arg(add = clap_complete::ArgValueCandidates::new(super::completion::names))]
    name: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<(), Error> {
    // What was only remembered from the last `create` is not enough to destroy it.
    let name = context
        .chosen_sprite(args.name.as_deref())
        .ok_or_else(|| Error::said("which sprite is to be destroyed? Name it: sprite destroy NAME"))?;
    let api = context.api()?;
    if !args.force && !confirmed(&name)? {
        return Err(Error::said("nothing was destroyed"));
    }
    let call = api.call(Method::DELETE, api.sprite(&name), None);
    progress::while_working(&format!("destroying {name}"), call).await?;
    if let Ok(mut store) = context.store() {
        let selection = store.state.current_selection.as_mut();
        if let Some(selection) = selection.filter(|now| now.sprite.as_deref() == Some(&name)) {
            selection.sprite = None;
            // A stale selection is told as "no such sprite" by the next command.
            let _ = store.save();
        }
    }
    output::note(&format!("Destroyed {name}"));
    Ok(())
}

fn confirmed(name: &str) -> Result<bool, Error> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Error::said("destroying needs --force where nobody can be asked"));
    }
    eprint!("This destroys {name} with all its data. Type its name to go on: ");
    // A prompt that can't be shown is followed by an answer that can't be right.
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(answer.trim() == name)
}
