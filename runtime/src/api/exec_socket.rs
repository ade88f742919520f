//! One client on one session, over a WebSocket.
//!
//! Two halves run beside each other in one task: what the session says goes out, what the client says goes in.
//! A client that reads nothing stops the first, a command that reads nothing stops the second; neither stops the
//! other.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use frames::{ClientMessage, FromClient, FromServer, PortNotice, ServerMessage, stream::FrameError};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_tungstenite::tungstenite::{Error, Message};
use tracing::debug;

use super::websocket::{HangUp, Sink, Socket, Source, await_close, close, close_message, refusal};
use crate::{
    exec::belongs,
    ports::{Waiting, to_notice},
    sessions::{Attachment, Next, Session},
    state::Runtime,
};

/// A socket on which the server has said nothing for so long gets a keepalive. Some clients count messages only,
/// and give up after 45 s.
const SILENCE: Duration = Duration::from_secs(15);
/// A client that attaches to a terminal may send an end of input before it knows better.
const EARLY: Duration = Duration::from_millis(500);
/// Between two looks whether a client has gone that can't be read from because the command reads nothing.
const HANG_UP_PAUSE: Duration = Duration::from_millis(250);
/// How long the first message may take to leave.
const FIRST_LIMIT: Duration = Duration::from_secs(30);

/// The end of a command, orderly.
const NORMAL: u16 = 1000;
/// The end of a terminal's program with a code that is not 0: one client has no other way to see that.
const FAILED: u16 = 4000;
/// The client was too slow, and output is lost to it.
const TOO_SLOW: u16 = 4001;

/// What is to be known of a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    /// It started the session.
    pub(super) is_owner: bool,
    /// What it sends is for the command.
    pub(super) input: bool,
    /// An end of input that comes at once is not meant.
    pub(super) drop_early_eof: bool,
}

/// Why the client's half has ended.
enum Left {
    /// The client has gone.
    Gone,
    /// It must go, and why.
    Refused(u16, String),
}

/// How the session's half has ended.
enum Said {
    /// All, and the Close.
    All,
    /// The client can't be written to.
    Gone,
}

/// Serves the client until it leaves or the session ends.
pub(super) async fn serve(runtime: Arc<Runtime>, socket: Socket, attachment: Attachment, client: Client) {
    let (mut sink, mut source, hang_up) = socket.split();
    let left = {
        let outgoing = send(&runtime, &attachment, client, &mut sink);
        let incoming = receive(attachment.session(), client, &mut source, &hang_up);
        tokio::pin!(outgoing, incoming);
        tokio::select! {
            said = &mut outgoing => match said {
                Said::All => None,
                Said::Gone => Some(Left::Gone),
            },
            left = &mut incoming => Some(left),
        }
    };
    // From here on the session counts as left.
    let session = attachment.session().number();
    drop(attachment);
    match left {
        None => await_close(sink, source).await,
        Some(Left::Gone) => debug!(session, "A client has left"),
        Some(Left::Refused(code, reason)) => {
            debug!(session, code, reason, "A client broke the protocol");
            close(sink, source, code, &reason).await;
        }
    }
}

/// The session's half: everything that it writes, and how it ended.
async fn send(runtime: &Runtime, attachment: &Attachment, client: Client, sink: &mut Sink) -> Said {
    match say(runtime, attachment, client, sink).await {
        Ok(()) => Said::All,
        Err(_) => Said::Gone,
    }
}

async fn say(
    runtime: &Runtime,
    attachment: &Attachment,
    client: Client,
    sink: &mut Sink,
) -> Result<(), Error> {
    let session = attachment.session();
    let info = ServerMessage::SessionInfo(session.info(client.is_owner));
    let first = sink.send(text(&info));
    timeout_at(Instant::now() + FIRST_LIMIT, first)
        .await
        .map_err(|_| Error::Io(io::ErrorKind::TimedOut.into()))??;
    let mut spoken = Instant::now();
    let mut ports = SessionPorts::new(runtime, session);
    if !client.is_owner {
        // What it listens on already is news to this client.
        ports.changes.mark_changed();
    }
    loop {
        let next = tokio::select! {
            next = timeout_at(spoken + SILENCE, attachment.next()) => next,
            () = ports.changes.changed() => {
                for message in ports.news() {
                    sink.send(text(&message)).await?;
                    spoken = Instant::now();
                }
                continue;
            }
        };
        match next {
            Ok(Next::Output(chunk, count)) => {
                let bytes = if session.has_terminal() { chunk.payload() } else { chunk.frame().clone() };
                sink.send(Message::Binary(bytes)).await?;
                attachment.sent(count);
            }
            Ok(Next::Ended(code)) => return say_end(session, code, sink).await,
            Ok(Next::Lost) => {
                let message = "this client read too slowly and output is lost to it; attach again".to_owned();
                sink.feed(text(&ServerMessage::Error { message: message.clone() })).await?;
                return sink.send(close_message(TOO_SLOW, &message)).await;
            }
            Err(_silence) => {
                sink.feed(text(&ServerMessage::Keepalive)).await?;
                sink.send(Message::Ping(Bytes::new())).await?;
            }
        }
        spoken = Instant::now();
    }
}

/// The ports that processes of one session listen on, as one client knows them.
struct SessionPorts<'a> {
    runtime: &'a Runtime,
    leader: i32,
    changes: Waiting<'a>,
    told: BTreeMap<u16, PortNotice>,
}

impl<'a> SessionPorts<'a> {
    fn new(runtime: &'a Runtime, session: &Session) -> Self {
        Self { runtime, leader: session.pid(), changes: runtime.ports.watch(), told: BTreeMap::new() }
    }

    /// What the client does not know yet. A port counts once, however many addresses it is open on.
    fn news(&mut self) -> Vec<ServerMessage> {
        let mut now = BTreeMap::new();
        for (listener, pid) in self.runtime.ports.known() {
            if pid.is_some_and(|pid| self.told_of(listener.port.get(), pid) || belongs(pid, self.leader)) {
                now.entry(listener.port.get()).or_insert_with(|| to_notice(listener, pid));
            }
        }
        let gone: Vec<u16> = self.told.keys().filter(|port| !now.contains_key(port)).copied().collect();
        let mut news: Vec<ServerMessage> =
            gone.iter().filter_map(|port| self.told.remove(port)).map(ServerMessage::PortClosed).collect();
        for (port, notice) in now {
            if let Entry::Vacant(untold) = self.told.entry(port) {
                untold.insert(notice.clone());
                news.push(ServerMessage::PortOpened(notice));
                news.push(ServerMessage::Port { port });
            }
        }
        news
    }

    /// A process that outlives its parents still holds what it was known for.
    fn told_of(&self, port: u16, pid: u32) -> bool {
        self.told.get(&port).is_some_and(|notice| notice.pid == Some(pid))
    }
}

/// The end, in the order and the forms that every client understands: text, then a frame unless there is a
/// terminal, then a Close.
async fn say_end(session: &Session, code: u8, sink: &mut Sink) -> Result<(), Error> {
    sink.feed(text(&ServerMessage::Exit(i32::from(code).into()))).await?;
    if !session.has_terminal() {
        sink.feed(Message::Binary(FromServer::Exit(code).encode().into())).await?;
    }
    let close = if session.has_terminal() && code != 0 {
        close_message(FAILED, &format!("exit {code}"))
    } else {
        close_message(NORMAL, "")
    };
    sink.send(close).await
}

fn text(message: &ServerMessage) -> Message {
    Message::Text(message.encode().into())
}

/// The client's half.
async fn receive(session: &Session, client: Client, source: &mut Source, hang_up: &HangUp) -> Left {
    let attached = Instant::now();
    let mut first = true;
    loop {
        let message = match source.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => {
                return refusal(&error).map_or(Left::Gone, |(code, reason)| Left::Refused(code, reason));
            }
            None => return Left::Gone,
        };
        let (was_first, is_data) = (first, message.is_binary() || message.is_text());
        first &= !is_data;
        let carried = async {
            match message {
                Message::Binary(bytes) => {
                    let meant =
                        !(client.drop_early_eof && was_first && *bytes == [4] && attached.elapsed() < EARLY);
                    if client.input && meant {
                        carry(session, bytes).await;
                    }
                }
                Message::Text(text) => obey(session, text.as_bytes()),
                Message::Close(_) => return true,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
            false
        };
        let left = tokio::select! {
            biased;
            left = carried => left,
            () = gone(hang_up) => true,
        };
        if left {
            return Left::Gone;
        }
    }
}

/// Input: raw for a terminal, in frames without one. What is no frame for a command is not for anybody.
async fn carry(session: &Session, bytes: Bytes) {
    if session.has_terminal() {
        return session.write(bytes).await;
    }
    match FromClient::decode(&bytes) {
        Ok(FromClient::Stdin(_)) => session.write(bytes.slice(1..)).await,
        Ok(FromClient::StdinEof) => session.end_input().await,
        Err(FrameError::Empty) => {}
        Err(error) => debug!(session = session.number(), %error, "A client sent what is no input"),
    }
}

fn obey(session: &Session, text: &[u8]) {
    match ClientMessage::decode(text) {
        Ok(ClientMessage::Resize { cols, rows }) => session.resize(rows, cols),
        Ok(message @ ClientMessage::Signal { .. }) => match message.asked_signal() {
            Ok(Some(signal)) => session.signal(signal),
            Ok(None) => {}
            Err(error) => {
                debug!(session = session.number(), %error, "A client asked for a strange signal");
            }
        },
        Ok(ClientMessage::Other) => {}
        Err(error) => {
            debug!(session = session.number(), %error, "A client sent text that is no message");
        }
    }
}

/// Resolves when the client has hung up, for as long as it is not read from.
async fn gone(hang_up: &HangUp) {
    loop {
        sleep(HANG_UP_PAUSE).await;
        if hang_up.has_come() {
            return;
        }
    }
}
