//! Coming back to a terminal's session after its connection broke.
//!
//! A gateway that was restarted is waited for. A sprite that sleeps is left asleep until somebody presses a
//! key: to reattach by ourselves would undo the sleep that was asked for.

use std::{io::IsTerminal, time::Duration};

use reqwest::Method;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    BUDGET, Session, Target, attachment,
    input::{DETACH, Input},
    signals::{self, Event, Signals},
};
use crate::{
    error::Error,
    net::{
        Api,
        ws::{self, Socket},
    },
    output,
    term::progress,
};

/// How long a server that is gone is waited for.
const PATIENCE: Duration = Duration::from_secs(600);
/// What a server needs to know better than we why a connection ended.
const SETTLING: Duration = Duration::from_millis(400);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Ctrl-C.
const INTERRUPT: u8 = 0x03;

/// What can be done now.
enum Now {
    Attach,
    /// Something is going on; look again.
    Look,
    Sleeps,
    Gone,
}

/// Says something in the middle of a raw terminal.
fn say(text: &str) {
    eprint!("\r\n[sprite: {text}]\r\n");
}

/// Waits until the session can be had again and attaches to it; `None` if the person left.
pub(super) async fn wait(
    api: &Api,
    sprite: &str,
    session: &Session,
    reason: &str,
    input: &mut Input,
    signals: &mut Signals,
) -> Result<Option<Socket>, Error> {
    let Some(id) = session.id.clone() else { return Err(Error::said(reason)) };
    let input_is_terminal = input.is_terminal;
    say(&format!("connection lost ({reason}); coming back, Ctrl+\\ leaves"));
    let (pressed, keys) = watch::channel(());
    tokio::select! {
        socket = attach(api, sprite, id, keys, input_is_terminal) => socket.map(Some),
        () = wants_out(input, signals, &pressed) => Ok(None),
    }
}

async fn attach(
    api: &Api,
    sprite: &str,
    id: String,
    mut keys: watch::Receiver<()>,
    somebody_types: bool,
) -> Result<Socket, Error> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = FIRST_PAUSE;
    // Connections are cut a moment before a sprite that is put to sleep says so.
    sleep(SETTLING).await;
    loop {
        match look(api, sprite).await {
            Ok(Now::Attach) => {}
            Ok(Now::Gone) => {
                return Err(Error::said(format!("{sprite} was stopped, and its session {id} ended with it")));
            }
            Ok(Now::Sleeps) if somebody_types => {
                say(&format!("{sprite} sleeps; press a key to wake it and go on, Ctrl+\\ leaves"));
                keys.mark_unchanged();
                // The other end lives as long as we wait.
                let _ = keys.changed().await;
            }
            Ok(Now::Sleeps) => {}
            Ok(Now::Look) => {
                sleep(FIRST_PAUSE).await;
                continue;
            }
            Err(error) if error.is_passing() && Instant::now() < deadline => {
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
            Err(error) => return Err(error),
        }
        let url = Target::Session(id.clone()).url(api, sprite);
        let opening = ws::open_patiently(api, &url, BUDGET, |_| ());
        let mut socket = match progress::for_a_person(&format!("coming back to {sprite}"), opening).await {
            Ok(opened) => opened,
            Err(error) if error.is_absence() => {
                return Err(Error::said(format!("the session {id} has ended meanwhile")));
            }
            Err(error) if error.is_passing() && Instant::now() < deadline => continue,
            Err(error) => return Err(error),
        };
        attachment::first_message(&mut socket, true).await?;
        say("back again");
        if std::io::stdout().is_terminal() {
            // What was on the screen is sent once more.
            output::raw(b"\x1b[0m\x1b[H\x1b[2J")?;
        }
        return Ok(socket);
    }
}

/// Asks without waking.
async fn look(api: &Api, sprite: &str) -> Result<Now, Error> {
    let (state, phase) = match api.call(Method::GET, format!("{}/why", api.sprite(sprite)), None).await {
        Ok(why) => (why["state"].clone(), why["phase"].clone()),
        // A server without this call.
        Err(error) if error.is_absence() => {
            let found = api.call(Method::GET, api.sprite(sprite), None).await?;
            (found["status"].clone(), serde_json::Value::Null)
        }
        Err(error) => return Err(error),
    };
    Ok(match (state.as_str().unwrap_or_default(), phase.as_str().unwrap_or_default()) {
        (_, "pausing" | "stopping" | "starting") => Now::Look,
        ("warm", _) => Now::Sleeps,
        ("cold", _) => Now::Gone,
        _ => Now::Attach,
    })
}

/// Waits until the person wants to leave; tells of other keys.
async fn wants_out(input: &mut Input, signals: &mut Signals, pressed: &watch::Sender<()>) {
    loop {
        tokio::select! {
            part = input.next() => {
                let part = part.unwrap_or_default();
                if input.is_terminal && part.iter().any(|byte| [DETACH, INTERRUPT].contains(byte)) {
                    return;
                }
                pressed.send_replace(());
            }
            event = signals.next() => match event {
                Event::Signal(signal)
                    if matches!(signal.number(), signals::INT | signals::QUIT | signals::TERM | signals::HUP) =>
                {
                    return;
                }
                Event::Signal(_) | Event::Resized | Event::Continued => {}
            },
        }
    }
}
