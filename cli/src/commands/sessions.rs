//! `sprite sessions` and `sprite attach`

use clap::Subcommand;
use frames::{
    KillRequest, SessionList, Signal, duration,
    kill::{KillEvent, KillEventKind},
    session::SessionEntry,
};
use reqwest::Method;
use serde_json::Value;

use super::exec::{self, IN_A_SHELL};
use crate::{
    context::Context,
    error::{Error, FAILED},
    net::{Api, Body, segment},
    output::{ago, note, table},
    term::progress,
};

const LIST_EXAMPLES: &str = "\
Examples:
  sprite sessions list
  sprite sessions list --json | jq -r '.[].id'";
const ATTACH_EXAMPLES: &str = "\
Examples:
  sprite attach            the only session, if there is only one
  sprite attach 42         Ctrl+\\ detaches again
  sprite exec --id 42      the same, as the oldest documentation has it";
const KILL_EXAMPLES: &str = "\
Examples:
  sprite sessions kill 42                          TERM, and KILL after ten seconds
  sprite sessions kill 42 --signal INT --timeout 1m
  sprite sessions kill 42 --signal HUP --timeout 0s   only send it";

/// What can be typed.
#[derive(Debug, Subcommand)]
pub(crate) enum Sessions {
    /// List what runs in a sprite
    #[command(visible_alias = "ls", after_help = LIST_EXAMPLES)]
    List,
    /// Attach to a session
    Attach(Attach),
    /// End a session
    #[command(after_help = KILL_EXAMPLES)]
    Kill {
        /// The session's id
        id: String,
        /// The signal to begin with
        #[arg(long, default_value = "TERM")]
        signal: Signal,
        /// How long it may take before it is killed; 0s does not wait
        #[arg(long, value_name = "TIME", default_value = "10s")]
        timeout: String,
    },
}

/// What can be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = ATTACH_EXAMPLES)]
pub(crate) struct Attach {
    /// The session's id
    id: Option<String>,
    /// Do not forward the ports that are opened in it
    #[arg(long)]
    no_port_forward: bool,
}

pub(crate) async fn run(context: &Context, args: Sessions) -> Result<(), Error> {
    match args {
        Sessions::List => list(context).await,
        Sessions::Attach(args) => attach(context, args).await,
        Sessions::Kill { id, signal, timeout } => kill(context, &id, signal, &timeout).await,
    }
}

async fn fetch(api: &Api, sprite: &str) -> Result<(Value, Vec<SessionEntry>), Error> {
    let url = api.inside(sprite, "/exec");
    let call = api.call(Method::GET, &url, None);
    let mut answer = progress::while_working(&format!("asking {sprite}, which may be waking"), call).await?;
    let list: SessionList = SessionList::decode(answer.to_string().as_bytes())
        .map_err(|error| Error::said(format!("the list of sessions is not understood: {error}")))?;
    Ok((answer["sessions"].take(), list.sessions))
}

/// Lists sessions.
pub(crate) async fn list(context: &Context) -> Result<(), Error> {
    let sprite = context.sprite(None)?;
    let (answer, sessions) = fetch(&context.api()?, &sprite).await?;
    context.output.show(&answer, |_| {
        if sessions.is_empty() {
            return format!("nothing runs in {sprite}; `sprite exec COMMAND` runs something");
        }
        human(&sessions)
    })
}

fn human(sessions: &[SessionEntry]) -> String {
    let rows = sessions.iter().map(|session| {
        let kind = if session.tty { "terminal" } else { "command" };
        let last = session.last_activity.as_deref().map_or_else(|| "-".to_owned(), ago);
        vec![session.id.clone(), kind.to_owned(), ago(&session.created), last, shown(&session.command)]
    });
    table(&["ID", "KIND", "STARTED", "LAST ACTIVE", "COMMAND"], &rows.collect::<Vec<_>>())
}

/// A command as it was typed: without the shell that we put around a line.
fn shown(command: &str) -> String {
    command.split_once(IN_A_SHELL).map_or(command, |(_, line)| line).trim().to_owned()
}

pub(crate) async fn attach(context: &Context, args: Attach) -> Result<(), Error> {
    let sprite = context.sprite(None)?;
    let api = context.api()?;
    let id = match args.id {
        Some(id) => id,
        None => only(&api, &sprite).await?,
    };
    exec::attach(&api, &sprite, id, !args.no_port_forward).await
}

/// The session that is meant where none is named.
async fn only(api: &Api, sprite: &str) -> Result<String, Error> {
    let (_, sessions) = fetch(api, sprite).await?;
    match sessions.as_slice() {
        [] => Err(Error::said(format!("nothing runs in {sprite}; `sprite console` opens a terminal"))),
        [one] => Ok(one.id.clone()),
        many => Err(Error::said(format!("which one? `sprite attach ID`\n{}", human(many)))),
    }
}

async fn kill(context: &Context, id: &str, signal: Signal, timeout: &str) -> Result<(), Error> {
    let timeout = duration::parse(timeout)
        .ok_or_else(|| Error::said(format!("--timeout wants a time such as 10s or 1m, not {timeout:?}")))?;
    let sprite = context.sprite(None)?;
    let api = context.api()?;
    let request = KillRequest { signal: Some(signal), timeout: Some(timeout) };
    let url = api.inside(&sprite, &format!("/exec/{}/kill?{}", segment(id), request.to_query()));
    let mut failed = false;
    api.events(Method::POST, &url, Body::Nothing, None, |event| {
        let known = KillEvent::decode(event.to_string().as_bytes()).unwrap_or_default();
        failed |= known.kind == KillEventKind::Error;
        if context.output.json {
            return context.output.event(&event, |_| String::new());
        }
        if let Some(text) = known.message.or(known.data).or(known.error) {
            note(&text);
        }
        Ok(())
    })
    .await?;
    if failed { Err(Error::Exit(FAILED)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_a_shell_is_shown_as_it_was_typed() {
        assert_eq!(shown(&format!("/usr/bin/dash -c {IN_A_SHELL} npm run dev")), "npm run dev");
        assert_eq!(shown("/usr/bin/python3 app.py"), "/usr/bin/python3 app.py");
    }
}
