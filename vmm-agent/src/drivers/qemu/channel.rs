//! The way into a machine: its vsock, as Firecracker would serve it, over its serial port.
//!
//! Whoever connects to the socket writes `CONNECT 1024`, reads `OK <number>`, and has a stream to the runtime. The
//! streams share the machine's one serial port (see the crate `mux`). When the machine or this agent goes, all of
//! them end; those that come while the machine boots wait.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mux::{Host, MAX_STREAMS, Opener};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use crate::drivers::files::remove_if_there;

/// How long a guest may take to answer the beginning of a session: one that boots on a busy host is slow.
const SESSION_LIMIT: Duration = Duration::from_secs(60);
/// The pause before the next session, after one that ended.
const SESSION_PAUSE: Duration = Duration::from_millis(20);
/// How long who connects may take to say to what.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How long a stream may wait for the machine to take it.
const OPEN_LIMIT: Duration = Duration::from_secs(60);
/// The pause after a failed accept, which usually means that descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// More than the longest request.
const MAX_REQUEST_BYTES: usize = 32;

/// The socket, and the session behind it. Both end with it.
#[derive(Debug)]
pub(super) struct Channel {
    _tasks: JoinSet<()>,
    socket: PathBuf,
}

impl Channel {
    /// Serves the vsock of a machine at `socket`, over its serial port at `port`.
    pub(super) fn open(socket: &Path, port: &Path) -> io::Result<Self> {
        remove_if_there(socket)?;
        let listener = UnixListener::bind(socket)?;
        let (session, opener) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(keep_session(port.to_owned(), session));
        tasks.spawn(accept(listener, opener));
        Ok(Self { _tasks: tasks, socket: socket.to_owned() })
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if let Err(error) = remove_if_there(&self.socket) {
            // The next one removes it, too.
            warn!(socket = %self.socket.display(), %error, "Could not remove a socket");
        }
    }
}

/// Begins a session with the guest whenever there is none.
async fn keep_session(port: PathBuf, session: watch::Sender<Option<Opener>>) {
    loop {
        let asked = tokio::time::Instant::now();
        let begun = timeout(SESSION_LIMIT, async { Host::connect(UnixStream::connect(&port).await?).await });
        match begun.await.unwrap_or_else(|late| Err(late.into())) {
            Ok((host, opener)) => {
                debug!(port = %port.display(), elapsed = ?asked.elapsed(), "Began a session with a machine");
                session.send_replace(Some(opener));
                let ended = host.run().await;
                session.send_replace(None);
                debug!(port = %port.display(), ?ended, "A session with a machine ended");
            }
            Err(error) => debug!(port = %port.display(), %error, "Could not begin a session with a machine"),
        }
        sleep(SESSION_PAUSE).await;
    }
}

async fn accept(listener: UnixListener, opener: watch::Receiver<Option<Opener>>) {
    let room = Arc::new(Semaphore::new(MAX_STREAMS));
    let mut streams = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = async {
                // Never closed.
                let place = Arc::clone(&room).acquire_owned().await.map_err(io::Error::other)?;
                Ok::<_, io::Error>((listener.accept().await?.0, place))
            } => accepted,
            Some(_ended) = streams.join_next() => continue,
        };
        match accepted {
            Ok((stream, place)) => {
                let opener = opener.clone();
                streams.spawn(async move {
                    if let Err(error) = serve(stream, opener).await {
                        debug!(%error, "A stream into a machine broke");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "Could not accept a stream into a machine");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(mut stream: UnixStream, mut opener: watch::Receiver<Option<Opener>>) -> io::Result<()> {
    let port = timeout(REQUEST_LIMIT, read_request(&mut stream)).await??;
    if port != runtime_api::VSOCK_PORT {
        // As Firecracker: what nobody listens on is closed without a word.
        return Ok(());
    }
    let opened = timeout(OPEN_LIMIT, async {
        loop {
            let session = opener.wait_for(Option::is_some).await.map_err(io::Error::other)?.clone();
            if let Some(session) = session
                && let Ok(opened) = session.open().await
            {
                return Ok::<_, io::Error>(opened);
            }
            // It ended meanwhile, and whoever keeps it is about to say so.
            opener.changed().await.map_err(io::Error::other)?;
        }
    });
    let mut inside = opened.await??;
    timeout(REQUEST_LIMIT, stream.write_all(format!("OK {port}\n").as_bytes())).await??;
    copy_bidirectional(&mut stream, &mut inside).await.map(drop)
}

/// Reads `CONNECT <port>`, byte by byte: what follows is for the port.
async fn read_request(stream: &mut UnixStream) -> io::Result<u32> {
    let mut line = Vec::with_capacity(MAX_REQUEST_BYTES);
    loop {
        match stream.read_u8().await? {
            b'\n' => break,
            _ if line.len() == MAX_REQUEST_BYTES => return Err(io::ErrorKind::InvalidData.into()),
            byte => line.push(byte),
        }
    }
    let port = std::str::from_utf8(&line).ok().and_then(|line| line.strip_prefix("CONNECT ")?.parse().ok());
    port.ok_or_else(|| io::ErrorKind::InvalidData.into())
}
