//! TCP connections into a sprite, one WebSocket each.
//!
//! A server that knows `half_close` is told of the end of one direction, and tells of the other's; see
//! [`frames::TunnelMessage`]. A connection that breaks is passed on as a reset, so that nobody takes a part for the whole.

mod relay;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use frames::{TunnelReply, TunnelRequest};
use futures_util::{SinkExt, StreamExt};
use reqwest::Method;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

pub(crate) use relay::{Ended, TheirEnd, relay};

use crate::{
    error::{Error, root},
    net::{
        Api,
        ws::{self, Message, Socket},
    },
    output::note,
};

/// The most connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 4096;
/// How long a local client is kept waiting while the API can't be reached.
const BUDGET: Duration = Duration::from_secs(30);
/// How long the target's side may take to be connected, once the WebSocket stands.
const REPLY: Duration = Duration::from_secs(30);
/// The pause after a connection that could not be accepted, for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who hears what happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Voice {
    /// Each connection is told on stderr.
    Aloud,
    /// Nobody.
    Silent,
}

/// Tunnels into one sprite.
#[derive(Clone, Debug)]
pub(crate) struct Tunnels {
    api: Api,
    sprite: Arc<str>,
    voice: Voice,
    open: Arc<AtomicUsize>,
    room: Arc<Semaphore>,
}

impl Tunnels {
    pub(crate) fn new(api: Api, sprite: &str, voice: Voice) -> Self {
        let (open, room) = (Arc::default(), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
        Self { api, sprite: sprite.into(), voice, open, room }
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.voice == Voice::Aloud {
            note(&text());
        }
    }

    /// Serves a listener for as long as it is awaited; dropping it resets its connections.
    pub(crate) async fn serve(self, listener: TcpListener, target: TunnelRequest) {
        let mut connections = JoinSet::new();
        loop {
            let room = Arc::clone(&self.room).acquire_owned().await;
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((local, _)) => {
                        let (tunnels, target) = (self.clone(), target.clone());
                        connections.spawn(async move {
                            tunnels.carry(local, target).await;
                            drop(room);
                        });
                    }
                    Err(error) => {
                        self.say(|| format!("port {}: could not accept a connection: {error}", target.port));
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    /// Carries one local connection, from its first byte to its last.
    async fn carry(&self, local: TcpStream, target: TunnelRequest) {
        let port = target.port;
        // Typing must not wait for more typing. A socket that can't be tuned still works.
        let _ = local.set_nodelay(true);
        let began = Instant::now();
        let alone = self.open.fetch_add(1, Ordering::Relaxed) == 0;
        let slept = async {
            if alone && self.voice == Voice::Aloud {
                self.state().await.filter(|state| state != "running")
            } else {
                None
            }
        };
        let (opened, slept) = tokio::join!(self.open_tunnel(&target), slept);
        match opened {
            Ok(socket) => {
                let took = began.elapsed().as_millis();
                self.say(|| match slept {
                    Some(state) => {
                        format!("port {port}: connected; {} was {state} and woke in {took} ms", self.sprite)
                    }
                    None => format!("port {port}: connected in {took} ms"),
                });
                let (from, to) = local.into_split();
                let (ended, halves) = relay(socket, from, to, TheirEnd::Half).await;
                if let Ended::Broken(why) = ended {
                    self.say(|| format!("port {port}: connection lost: {why}"));
                    reset(halves);
                }
            }
            Err(error) => {
                self.say(|| format!("port {port}: {error}"));
                reset_whole(local);
            }
        }
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// The sprite's state, asked without waking it.
    async fn state(&self) -> Option<String> {
        let found = self.api.call(Method::GET, self.api.sprite(&self.sprite), None).await.ok()?;
        found["status"].as_str().map(str::to_owned)
    }

    /// Opens a tunnel. Nothing has been sent yet, so what may pass by itself is tried again.
    pub(crate) async fn open_tunnel(&self, target: &TunnelRequest) -> Result<Socket, Error> {
        let url = self.api.inside(&self.sprite, "/proxy");
        let mut told = false;
        let mut socket = ws::open_patiently(&self.api, &url, BUDGET, |error| {
            if !std::mem::replace(&mut told, true) {
                self.say(|| {
                    format!("port {}: {error}\nTrying again for {} s", target.port, BUDGET.as_secs())
                });
            }
        })
        .await?;
        let lost = |why: String| Error::said(format!("the tunnel broke while it was opened: {why}"));
        socket.send(Message::text(target.encode())).await.map_err(|error| lost(root(&error)))?;
        let reply = async {
            loop {
                match socket.next().await {
                    None => return Err(lost("it was closed".to_owned())),
                    Some(Err(error)) => return Err(lost(root(&error))),
                    Some(Ok(Message::Text(text))) => {
                        return TunnelReply::decode(text.as_bytes())
                            .map_err(|error| lost(format!("the server's reply is not understood: {error}")));
                    }
                    Some(Ok(Message::Close(frame))) => {
                        return Err(lost(frame.map_or_else(String::new, |frame| frame.reason.to_string())));
                    }
                    Some(Ok(Message::Binary(_))) => {
                        return Err(lost("bytes came before the server's reply".to_owned()));
                    }
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                }
            }
        };
        let reply = timeout(REPLY, reply)
            .await
            .map_err(|_| lost(format!("no reply within {} s", REPLY.as_secs())))??;
        if reply.is_connected() {
            return Ok(socket);
        }
        let why = reply.error.unwrap_or(reply.status);
        Err(Error::said(format!(
            "{}:{} in {} can't be reached: {why}",
            target.host, target.port, self.sprite
        )))
    }
}

/// Ends a local connection by a reset.
fn reset(halves: (tokio::net::tcp::OwnedReadHalf, tokio::net::tcp::OwnedWriteHalf)) {
    if let Ok(local) = halves.0.reunite(halves.1) {
        reset_whole(local);
    }
}

fn reset_whole(local: TcpStream) {
    // Without it the client sees an ordinary end, which is the next best.
    let _ = rustix::net::sockopt::set_socket_linger(&local, Some(Duration::ZERO));
    drop(local);
}
