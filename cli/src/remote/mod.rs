//! Running a command in a sprite, or attaching to one, as if it ran here.
//!
//! ```text
//!  stdin ──► input ─┐                       ┌─► stdout, stderr
//!  signals, size ───┼─► attachment (socket) ┼─► exit code
//!  Ctrl+\ ──────────┘        │ lost         └─► ports: forward
//!                            ▼
//!                     reattach (terminals)
//! ```
//!
//! Nothing of our own goes to stdout.

mod attachment;
mod forward;
mod input;
mod over_http;
mod reattach;
mod signals;

use std::{io::IsTerminal, time::Duration};

use frames::ExecQuery;

pub(crate) use over_http::run as over_http;
pub(crate) use signals::{Event, Signals};

use crate::{
    error::{Error, SIGNALLED},
    net::{Api, segment, ws},
    output::note,
    term::{
        progress,
        raw::{self, Raw},
    },
};
use attachment::{Attachment, Outcome};
use forward::Forwarder;
use input::Input;

/// How long a refusal that may pass by itself is tried again: a sprite that is restarted is back sooner.
const BUDGET: Duration = Duration::from_secs(60);

/// What to run, or what to attach to.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Command(ExecQuery),
    Session(String),
}

impl Target {
    fn url(&self, api: &Api, sprite: &str) -> String {
        match self {
            Self::Command(query) => format!("{}?{}", api.inside(sprite, "/exec"), query.encode()),
            Self::Session(id) => {
                format!("{}?stdin=true", api.inside(sprite, &format!("/exec/{}", segment(id))))
            }
        }
    }

    /// Whether it goes on without us, as far as we know before the server says so.
    fn outlives_us(&self) -> bool {
        match self {
            Self::Command(query) => query.tty || query.detachable,
            Self::Session(_) => true,
        }
    }
}

/// Runs until the command ended or we left, and returns the code to end with.
pub(crate) async fn run(api: &Api, sprite: &str, target: Target, forward_ports: bool) -> Result<u8, Error> {
    // Before anything is started, so that no signal falls between.
    let mut signals = Signals::listen()?;
    let opening = ws::open_patiently(api, target.url(api, sprite), BUDGET, |_| ());
    let mut socket = progress::for_a_person(&format!("waiting for {sprite}"), opening).await?;
    let wants_tty = matches!(&target, Target::Command(query) if query.tty);
    let (mut session, mut early) = attachment::first_message(&mut socket, wants_tty).await?;
    if let Target::Session(id) = &target {
        session.id.get_or_insert_with(|| id.clone());
    }

    let raw_mode = if session.tty { Raw::enter()? } else { None };
    let mut input = Input::start(session.tty);
    let mut forwarder = forward_ports.then(|| Forwarder::new(api, sprite));
    let mut tell_size = matches!(target, Target::Session(_));
    let outlives_us = target.outlives_us() || session.tty;
    let code = loop {
        let mut attachment = Attachment {
            api,
            sprite,
            session: &session,
            outlives_us,
            raw_mode: raw_mode.as_ref(),
            input: &mut input,
            signals: &mut signals,
            forwarder: forwarder.as_mut(),
        };
        let outcome = attachment.run(socket, early.take(), tell_size).await?;
        match outcome {
            Outcome::Exited(code) => break code,
            Outcome::Left(code) => {
                drop(raw_mode);
                farewell(sprite, &session, outlives_us);
                return Ok(code);
            }
            Outcome::Lost(reason) if session.tty && session.id.is_some() => {
                let back = reattach::wait(api, sprite, &session, &reason, &mut input, &mut signals).await?;
                match back {
                    Some(new) => {
                        socket = new;
                        tell_size = true;
                    }
                    None => {
                        drop(raw_mode);
                        farewell(sprite, &session, outlives_us);
                        return Ok(SIGNALLED + 1);
                    }
                }
            }
            Outcome::Lost(reason) => {
                let hint = match &session.id {
                    Some(id) if outlives_us => {
                        format!("\nIt goes on; come back with: sprite attach {id} -s {sprite}")
                    }
                    Some(_) | None => "\nIt is ended if nobody comes back to it.".to_owned(),
                };
                return Err(Error::said(format!("the connection to the command was lost: {reason}{hint}")));
            }
        }
    };
    Ok(code)
}

/// What is known of the session that we are in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Session {
    pub(crate) id: Option<String>,
    pub(crate) tty: bool,
}

/// Leaves the terminal as it was and says how to come back.
fn farewell(sprite: &str, session: &Session, outlives_us: bool) {
    if session.tty && std::io::stdout().is_terminal() {
        raw::undo_modes();
    }
    if let Some(id) = session.id.as_ref().filter(|_| outlives_us) {
        note(&format!("\nDetached; it goes on. Come back with: sprite attach {id} -s {sprite}"));
    }
}
