//! One connection to a session, from its first message to its end.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use frames::{ClientMessage, FromServer, KillRequest, ServerMessage, Signal, Stream as Frame};
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::{
    io::AsyncWriteExt,
    time::{interval_at, timeout},
};
use tokio_tungstenite::tungstenite::{self, protocol::CloseFrame};

use super::{
    Session,
    forward::Forwarder,
    input::{DETACH, END_OF_TEXT, Input},
    signals::{self, Event, Signals},
};
use crate::{
    error::{Error, SIGNALLED, root},
    net::{
        Api, segment,
        ws::{CloseCode, Message, Socket},
    },
    output::note,
    term::raw::{self, Raw},
};

/// How long the first message may take; the sprite is awake by then.
const FIRST_MESSAGE: Duration = Duration::from_secs(30);
/// A silent server sends something every 15 s; after three times that it is gone.
const SILENCE: Duration = Duration::from_secs(45);
const PING: Duration = Duration::from_secs(15);
/// What a polite end may take.
const CLOSING: Duration = Duration::from_secs(1);

/// How it ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The command ended with this code.
    Exited(u8),
    /// We left, with this code.
    Left(u8),
    /// The connection broke.
    Lost(String),
}

/// Reads what a session is. From a server that does not say, what came instead is returned too.
pub(super) async fn first_message(
    socket: &mut Socket,
    wants_tty: bool,
) -> Result<(Session, Option<Message>), Error> {
    let lost = |why: String| Error::said(format!("the connection ended before the session began: {why}"));
    loop {
        let message = timeout(FIRST_MESSAGE, socket.next())
            .await
            .map_err(|_| lost(format!("nothing came within {} s", FIRST_MESSAGE.as_secs())))?;
        let message = match message {
            None => return Err(lost("it was closed".to_owned())),
            Some(Err(error)) => return Err(lost(root(&error))),
            Some(Ok(Message::Close(frame))) => return Err(lost(said(frame.as_ref()))),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
            Some(Ok(message)) => message,
        };
        if let Message::Text(text) = &message {
            match ServerMessage::decode(text.as_bytes()) {
                Ok(ServerMessage::SessionInfo(info)) => {
                    return Ok((Session { id: Some(info.session_id), tty: info.tty }, None));
                }
                // Some servers say other things first.
                Ok(ServerMessage::Other | ServerMessage::Keepalive) | Err(_) => continue,
                Ok(
                    ServerMessage::Exit(_)
                    | ServerMessage::PortOpened(_)
                    | ServerMessage::PortClosed(_)
                    | ServerMessage::Port { .. }
                    | ServerMessage::Error { .. },
                ) => {}
            }
        }
        return Ok((Session { id: None, tty: wants_tty }, Some(message)));
    }
}

/// See the module.
pub(super) struct Attachment<'a> {
    pub(super) api: &'a Api,
    pub(super) sprite: &'a str,
    pub(super) session: &'a Session,
    pub(super) outlives_us: bool,
    pub(super) raw_mode: Option<&'a Raw>,
    pub(super) input: &'a mut Input,
    pub(super) signals: &'a mut Signals,
    pub(super) forwarder: Option<&'a mut Forwarder>,
}

impl Attachment<'_> {
    /// Runs it. `tell_size` sends the terminal's size first: a session that was there before has another.
    pub(super) async fn run(
        &mut self,
        socket: Socket,
        early: Option<Message>,
        tell_size: bool,
    ) -> Result<Outcome, Error> {
        let (mut sink, mut stream) = socket.split();
        let tty = self.session.tty;
        let mut up = Up {
            api: self.api,
            sprite: self.sprite,
            session: self.session,
            outlives_us: self.outlives_us,
            raw_mode: self.raw_mode,
            input: self.input,
            signals: self.signals,
        };
        let mut down = Down { tty, forwarder: self.forwarder.as_deref_mut(), early };
        let outcome = tokio::select! {
            outcome = up.run(&mut sink, tell_size) => outcome,
            outcome = down.run(&mut stream) => outcome?,
        };
        // The other side may be gone, or still be busy sending; neither keeps us.
        let goodbye = async {
            let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            sink.send(Message::Close(Some(frame))).await?;
            while let Some(Ok(_)) = stream.next().await {}
            Ok::<(), tungstenite::Error>(())
        };
        if !matches!(outcome, Outcome::Lost(_)) {
            let _ = timeout(CLOSING, goodbye).await;
        }
        Ok(outcome)
    }
}

/// From the server to us.
struct Down<'a> {
    tty: bool,
    forwarder: Option<&'a mut Forwarder>,
    early: Option<Message>,
}

impl Down<'_> {
    async fn run(
        &mut self,
        stream: &mut (impl Stream<Item = Result<Message, tungstenite::Error>> + Unpin),
    ) -> Result<Outcome, Error> {
        let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
        loop {
            let message = match self.early.take() {
                Some(message) => message,
                None => match timeout(SILENCE, stream.next()).await {
                    Err(_) => {
                        return Ok(Outcome::Lost(format!("no sign of life for {} s", SILENCE.as_secs())));
                    }
                    Ok(None) => return Ok(Outcome::Lost("it was cut".to_owned())),
                    Ok(Some(Err(error))) => return Ok(Outcome::Lost(root(&error))),
                    Ok(Some(Ok(message))) => message,
                },
            };
            match message {
                Message::Binary(bytes) if self.tty => {
                    stdout.write_all(&bytes).await?;
                    stdout.flush().await?;
                }
                Message::Binary(bytes) => match FromServer::decode(&bytes) {
                    Ok(FromServer::Stdout(bytes)) => {
                        stdout.write_all(bytes).await?;
                        stdout.flush().await?;
                    }
                    Ok(FromServer::Stderr(bytes)) => {
                        stderr.write_all(bytes).await?;
                        stderr.flush().await?;
                    }
                    Ok(FromServer::Exit(code)) => return Ok(Outcome::Exited(code)),
                    // Newer servers may have more streams.
                    Err(_) => {}
                },
                Message::Text(text) => match ServerMessage::decode(text.as_bytes()) {
                    Ok(ServerMessage::Exit(code)) => {
                        // A process can't end with anything else; one that lies has failed.
                        return Ok(Outcome::Exited(u8::try_from(code.exit_code).unwrap_or(u8::MAX)));
                    }
                    Ok(ServerMessage::PortOpened(notice)) => {
                        if let Some(forwarder) = &mut self.forwarder {
                            forwarder.open(notice);
                        }
                    }
                    Ok(ServerMessage::PortClosed(notice)) => {
                        if let Some(forwarder) = &mut self.forwarder {
                            forwarder.close(notice.port);
                        }
                    }
                    Ok(ServerMessage::Error { message }) => note(&format!("sprite: {message}")),
                    Ok(
                        ServerMessage::SessionInfo(_)
                        | ServerMessage::Port { .. }
                        | ServerMessage::Keepalive
                        | ServerMessage::Other,
                    )
                    | Err(_) => {}
                },
                Message::Close(frame) => return Ok(Outcome::Lost(said(frame.as_ref()))),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }
}

/// From us to the server.
struct Up<'a> {
    api: &'a Api,
    sprite: &'a str,
    session: &'a Session,
    outlives_us: bool,
    raw_mode: Option<&'a Raw>,
    input: &'a mut Input,
    signals: &'a mut Signals,
}

/// What an event asks for.
enum Wish {
    Send(Message),
    /// The socket can't take it in time.
    Aside(Signal),
    Leave(u8),
    Nothing,
}

impl Up<'_> {
    async fn run(
        &mut self,
        sink: &mut (impl Sink<Message, Error = tungstenite::Error> + Unpin),
        tell_size: bool,
    ) -> Outcome {
        let mut interrupted = false;
        if let Some(message) = self.size().filter(|_| tell_size)
            && let Err(error) = sink.send(message).await
        {
            return Outcome::Lost(root(&error));
        }
        let mut pings = interval_at(tokio::time::Instant::now() + PING, PING);
        loop {
            let wish = tokio::select! {
                biased;
                event = self.signals.next() => self.on_event(event, &mut interrupted, false),
                part = self.input.next() => match self.on_input(part, sink).await {
                    Ok(wish) => wish,
                    Err(error) => return Outcome::Lost(root(&error)),
                },
                _ = pings.tick() => Wish::Send(Message::Ping(Bytes::new())),
            };
            let message = match wish {
                Wish::Send(message) => message,
                Wish::Leave(code) => return Outcome::Left(code),
                Wish::Aside(_) | Wish::Nothing => continue,
            };
            // A command that doesn't read its stdin keeps the socket full. Signals then take another way.
            let sending = sink.send(message);
            tokio::pin!(sending);
            loop {
                tokio::select! {
                    sent = &mut sending => match sent {
                        Ok(()) => break,
                        Err(error) => return Outcome::Lost(root(&error)),
                    },
                    event = self.signals.next() => match self.on_event(event, &mut interrupted, true) {
                        Wish::Leave(code) => return Outcome::Left(code),
                        Wish::Aside(signal) => self.send_aside(signal).await,
                        Wish::Send(_) | Wish::Nothing => {}
                    },
                }
            }
        }
    }

    fn size(&self) -> Option<Message> {
        let (cols, rows) = raw::size().filter(|_| self.session.tty)?;
        Some(Message::text(ClientMessage::Resize { cols, rows }.encode()))
    }

    fn on_event(&self, event: Event, interrupted: &mut bool, busy: bool) -> Wish {
        match event {
            Event::Resized => self.size().map_or(Wish::Nothing, Wish::Send),
            Event::Continued => {
                if let Some(raw_mode) = self.raw_mode {
                    raw_mode.again();
                }
                self.size().map_or(Wish::Nothing, Wish::Send)
            }
            Event::Signal(signal) => {
                let number = signal.number();
                let code = SIGNALLED + u8::try_from(number).unwrap_or(0);
                // Whoever closes the window or ends us leaves a terminal's session as it is.
                if self.session.tty && matches!(number, signals::HUP | signals::TERM) {
                    return Wish::Leave(code);
                }
                // Ctrl+\ without raw mode.
                if number == signals::QUIT && self.outlives_us && self.input.is_terminal {
                    return Wish::Leave(0);
                }
                if matches!(number, signals::INT | signals::TERM) && std::mem::replace(interrupted, true) {
                    return Wish::Leave(code);
                }
                if busy {
                    Wish::Aside(signal)
                } else {
                    Wish::Send(Message::text(ClientMessage::signal(signal).encode()))
                }
            }
        }
    }

    /// Makes a message of what was typed; what comes before Ctrl+\ is sent.
    async fn on_input(
        &self,
        part: Option<Bytes>,
        sink: &mut (impl Sink<Message, Error = tungstenite::Error> + Unpin),
    ) -> Result<Wish, tungstenite::Error> {
        if !self.session.tty {
            return Ok(Wish::Send(Message::Binary(match part {
                Some(part) => framed(&part),
                None => Bytes::from_static(&[Frame::StdinEof as u8]),
            })));
        }
        let Some(part) = part else {
            // A terminal that is gone sends SIGHUP as well; text that ended is a Ctrl-D.
            let end = Message::Binary(Bytes::from_static(&[END_OF_TEXT]));
            return Ok(if self.input.is_terminal { Wish::Nothing } else { Wish::Send(end) });
        };
        match part.iter().position(|byte| *byte == DETACH).filter(|_| self.input.is_terminal) {
            None => Ok(Wish::Send(Message::Binary(part))),
            Some(at) => {
                if at > 0 {
                    sink.send(Message::Binary(part.slice(..at))).await?;
                }
                Ok(Wish::Leave(0))
            }
        }
    }

    /// Sends a signal by a call of its own.
    async fn send_aside(&self, signal: Signal) {
        let Some(id) = &self.session.id else { return };
        let request = KillRequest { signal: Some(signal), timeout: Some(Duration::ZERO) };
        let path = format!("/exec/{}/kill?{}", segment(id), request.to_query());
        let url = self.api.inside(self.sprite, &path);
        if let Err(error) = self.api.call(reqwest::Method::POST, &url, None).await {
            note(&format!("sprite: the command could not be sent {signal}: {error}"));
        }
    }
}

/// One frame of stdin.
fn framed(part: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(part.len() + 1);
    frame.put_u8(Frame::Stdin.byte());
    frame.put_slice(part);
    frame.freeze()
}

/// What a Close frame says.
fn said(frame: Option<&CloseFrame>) -> String {
    match frame {
        Some(frame) if !frame.reason.is_empty() => frame.reason.to_string(),
        Some(frame) => format!("it was closed with code {}", frame.code),
        None => "it was closed".to_owned(),
    }
}
