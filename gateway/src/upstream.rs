//! The way into one sprite under one lease: dialling it, and every socket that came of it.
//!
//! Connections that wait for their next request are parked with the lease, last in, first out; nobody else
//! has a pool of them, and no lock is shared by two sprites. Those that Pingora keeps (HTTP/2, for gRPC) have
//! the lease's key in the pool's, and a tag that is compared before use (T22). When the lease ends, so do the
//! sockets, at once: whatever still runs over them sees it immediately (B10).

use std::{
    collections::HashMap,
    os::fd::{AsRawFd, RawFd},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use agent_api::lease::Endpoint;
use async_trait::async_trait;
use ids::{Epoch, Moment};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};
use parking_lot::Mutex;
use pingora::{
    Error, ErrorType,
    connectors::L4Connect,
    http::ResponseHeader,
    protocols::{
        Digest, GetProxyDigest,
        l4::{socket::SocketAddr, stream::Stream},
        raw_connect::ProxyDigest,
    },
    upstreams::peer::Tracing,
};
use runtime_api::{DialError, DialRequest, Dialed, Target};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    dial::{DialFailure, connect},
    ledger::Conn,
};

/// Unused connections of one lease, at most: as many as a browser farm needs, and a small part of what a
/// sprite's server can have open.
const MOST_PARKED: usize = 256;
/// Counts the leases of this process, so that no two have the same key.
static NEXT_KEY: AtomicU64 = AtomicU64::new(1);
/// Room below the key for a target (a port, or one of two others) and a protocol.
const TARGET_BITS: u32 = 18;

/// One lease's way into its sprite.
#[derive(Debug)]
pub(crate) struct Upstream {
    key: u64,
    epoch: Epoch,
    endpoint: Endpoint,
    sockets: Mutex<Sockets>,
}

#[derive(Debug, Default)]
struct Sockets {
    stage: Stage,
    next: u64,
    open: HashMap<SocketId, OpenSocket>,
    /// The one that was used last is the last.
    parked: Vec<Parked>,
}

/// A connection without a request.
#[derive(Debug)]
struct Parked {
    target: Target,
    socket: SocketId,
    since: Moment,
    stream: Dialed,
}

impl Sockets {
    /// Closes the parked connections that `condemned` picks.
    fn close_parked(&mut self, condemned: impl Fn(&Parked) -> bool) {
        let Self { open, parked, .. } = self;
        parked.retain(|connection| {
            let closes = condemned(connection);
            if closes {
                // Before the stream is closed, and its number free again.
                open.remove(&connection.socket);
            }
            !closes
        });
    }
}

/// How far a lease has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Stage {
    #[default]
    Live,
    /// No new connections; those without a request are closed, the others may finish.
    Retired,
    /// Everything is closed.
    Ended,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct SocketId(u64);

#[derive(Debug)]
struct OpenSocket {
    fd: RawFd,
    /// Requests on it.
    busy: u32,
}

impl OpenSocket {
    fn close(&self) {
        // One that its peer has closed already is as good.
        let _closed = nix::sys::socket::shutdown(self.fd, nix::sys::socket::Shutdown::Both);
    }
}

/// What a connection is for, and which it is. It travels with the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Tag {
    pool_key: u64,
    socket: SocketId,
}

/// A request on a connection, from its sending to its end.
#[derive(Debug)]
pub(crate) struct Busy {
    upstream: Arc<Upstream>,
    socket: SocketId,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut sockets = self.upstream.sockets.lock();
        let stage = sockets.stage;
        if let Some(socket) = sockets.open.get_mut(&self.socket) {
            socket.busy = socket.busy.saturating_sub(1);
            if socket.busy == 0 && stage != Stage::Live {
                socket.close();
            }
        }
    }
}

impl Upstream {
    pub(crate) fn new(epoch: Epoch, endpoint: Endpoint) -> Arc<Self> {
        let key = NEXT_KEY.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { key, epoch, endpoint, sockets: Mutex::default() })
    }

    pub(crate) const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What connections to `target` may be shared by.
    pub(crate) fn pool_key(&self, target: Target, h2: bool) -> u64 {
        let target = match target {
            Target::Port(port) => u64::from(port.get()),
            Target::Web => 1 << 16,
            Target::Api => (1 << 16) + 1,
        };
        self.key << TARGET_BITS | u64::from(h2) << 17 | target
    }

    /// Whether the lease has ended, or is about to.
    pub(crate) fn has_ended(&self) -> bool {
        self.sockets.lock().stage != Stage::Live
    }

    /// The sprite is about to sleep: requests under way may finish, and nothing else begins.
    pub(crate) fn retire(&self) {
        let mut sockets = self.sockets.lock();
        if sockets.stage == Stage::Live {
            sockets.stage = Stage::Retired;
        }
        sockets.close_parked(|_| true);
        sockets.open.values().filter(|socket| socket.busy == 0).for_each(OpenSocket::close);
    }

    /// The lease has ended: so does every connection, at once.
    pub(crate) fn end(&self) {
        let mut sockets = self.sockets.lock();
        sockets.stage = Stage::Ended;
        sockets.close_parked(|_| true);
        sockets.open.values().for_each(OpenSocket::close);
    }

    /// How many connections there are.
    pub(crate) fn open_sockets(&self) -> usize {
        self.sockets.lock().open.len()
    }

    /// Whether the lease has ended, and every connection with it.
    pub(crate) fn is_over(&self) -> bool {
        self.sockets.lock().stage == Stage::Ended
    }

    /// A parked connection to `target` that has not been idle for `most_idle`, and on which the sprite has
    /// neither closed nor said anything, as far as we have heard; see [`Direct::is_quiet`].
    pub(crate) fn take_parked(
        self: &Arc<Self>,
        target: Target,
        now: Moment,
        most_idle: Duration,
    ) -> Option<Direct> {
        loop {
            let mut sockets = self.sockets.lock();
            let at = sockets.parked.iter().rposition(|parked| parked.target == target)?;
            let Parked { socket, since, stream, .. } = sockets.parked.remove(at);
            drop(sockets);
            let registration = Registration { upstream: Some(self.clone()), socket };
            let direct = Direct { registration, stream, reused: true };
            if now - since < most_idle && direct.has_heard_nothing() {
                return Some(direct);
            }
        }
    }

    /// Closes what has been parked for `most_idle`, and what its sprite has closed.
    pub(crate) fn sweep(&self, now: Moment, most_idle: Duration) {
        self.sockets
            .lock()
            .close_parked(|parked| now - parked.since >= most_idle || !is_silent(&parked.stream));
    }

    /// Enters a new connection; `None` if the lease has ended meanwhile.
    fn register(&self, fd: RawFd) -> Option<SocketId> {
        let mut sockets = self.sockets.lock();
        if sockets.stage != Stage::Live {
            return None;
        }
        let id = SocketId(sockets.next);
        sockets.next += 1;
        sockets.open.insert(id, OpenSocket { fd, busy: 0 });
        Some(id)
    }

    /// Begins a request on a connection that Pingora made or took from its pool; `None` if it was not made
    /// for this key, which would send one sprite's request to another.
    pub(crate) fn begin(self: &Arc<Self>, digest: Option<&Digest>, pool_key: u64) -> Option<Busy> {
        let tag = digest
            .and_then(|digest| digest.proxy_digest.as_ref())
            .and_then(|proxy| proxy.user_data.as_deref())
            .and_then(|data| data.downcast_ref::<Tag>())
            .filter(|tag| tag.pool_key == pool_key)?;
        if let Some(socket) = self.sockets.lock().open.get_mut(&tag.socket) {
            socket.busy += 1;
        }
        Some(Busy { upstream: self.clone(), socket: tag.socket })
    }
}

/// Connects for one request, and remembers why it could not.
#[derive(Debug)]
pub(crate) struct Dialer {
    upstream: Arc<Upstream>,
    /// Whose request it is.
    client: Arc<Conn>,
    request: DialRequest,
    pool_key: u64,
    socket: Arc<Socket>,
    failure: Mutex<Option<DialFailure>>,
    abandoned: AtomicBool,
}

/// The registered socket of one connection. Gone from the register before its number is free again.
#[derive(Debug)]
struct Socket {
    upstream: Arc<Upstream>,
    id: Mutex<Option<SocketId>>,
}

impl Dialer {
    pub(crate) fn new(
        upstream: Arc<Upstream>,
        client: Arc<Conn>,
        request: DialRequest,
        pool_key: u64,
    ) -> Arc<Self> {
        let socket = Arc::new(Socket { upstream: upstream.clone(), id: Mutex::new(None) });
        let failure = Mutex::new(None);
        Arc::new(Self {
            upstream,
            client,
            request,
            pool_key,
            socket,
            failure,
            abandoned: AtomicBool::new(false),
        })
    }

    /// Whether the client left while the sprite was dialled.
    pub(crate) fn was_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// To be told when the connection ends.
    pub(crate) fn tracing(&self) -> Box<dyn Tracing> {
        Box::new(Tracer(self.socket.clone()))
    }

    /// Why there is no connection.
    pub(crate) fn take_failure(&self) -> Option<DialFailure> {
        self.failure.lock().take()
    }

    async fn dial(&self) -> Result<Stream, DialFailure> {
        let dialed = tokio::select! {
            dialed = connect(&self.upstream.endpoint, &self.request) => dialed?,
            () = self.client.left() => {
                self.abandoned.store(true, Ordering::Relaxed);
                return Err(DialError::Unreachable(std::io::ErrorKind::ConnectionAborted.into()).into());
            }
        };
        let (fd, mut stream) = match dialed {
            Dialed::Tcp(tcp) => (tcp.as_raw_fd(), Stream::from(tcp)),
            Dialed::Unix(unix) => (unix.as_raw_fd(), Stream::from(unix)),
        };
        let Some(socket) = self.upstream.register(fd) else {
            let gone =
                std::io::Error::new(std::io::ErrorKind::ConnectionAborted, "the lease ended meanwhile");
            return Err(DialError::Unreachable(gone).into());
        };
        *self.socket.id.lock() = Some(socket);
        let header = ResponseHeader::build(200, Some(0)).map_err(|e| DialError::Protocol(e.to_string()))?;
        let tag = Tag { pool_key: self.pool_key, socket };
        stream.set_proxy_digest(ProxyDigest::new(Box::new(header), Some(Box::new(tag))));
        Ok(stream)
    }
}

#[async_trait]
impl L4Connect for Dialer {
    async fn connect(&self, _: &SocketAddr) -> pingora::Result<Stream> {
        match self.dial().await {
            Ok(stream) => Ok(stream),
            Err(error) => {
                let refused =
                    Error::because(ErrorType::ConnectError, "dialling the sprite", error.to_string());
                *self.failure.lock() = Some(error);
                Err(refused)
            }
        }
    }
}

#[derive(Debug)]
struct Tracer(Arc<Socket>);

impl Tracing for Tracer {
    fn on_connected(&self) {}

    fn on_disconnected(&self) {
        if let Some(id) = self.0.id.lock().take() {
            self.0.upstream.sockets.lock().open.remove(&id);
        }
    }

    fn boxed_clone(&self) -> Box<dyn Tracing> {
        Box::new(Self(self.0.clone()))
    }
}

/// A connection's place among those of its lease.
#[derive(Debug)]
struct Registration {
    /// Absent once the place is somebody else's to give up.
    upstream: Option<Arc<Upstream>>,
    socket: SocketId,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(upstream) = &self.upstream {
            upstream.sockets.lock().open.remove(&self.socket);
        }
    }
}

/// A connection into a sprite that Pingora has no part in. Fields are dropped in this order: the stream is
/// out of the lease's register before its number is free again.
#[derive(Debug)]
pub(crate) struct Direct {
    registration: Registration,
    stream: Dialed,
    reused: bool,
}

/// Whether nothing has come that we know of. No system call, unless something has.
fn is_silent(stream: &Dialed) -> bool {
    let mut byte = [0];
    let read = match stream {
        Dialed::Tcp(tcp) => tcp.try_read(&mut byte),
        Dialed::Unix(unix) => unix.try_read(&mut byte),
    };
    read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

impl Direct {
    /// Dials under the lease; the connection ends with it.
    pub(crate) async fn dial(upstream: &Arc<Upstream>, request: &DialRequest) -> Result<Self, DialFailure> {
        let stream = connect(&upstream.endpoint, request).await?;
        let Some(socket) = upstream.register(fd_of(&stream)) else {
            let gone =
                std::io::Error::new(std::io::ErrorKind::ConnectionAborted, "the lease ended meanwhile");
            return Err(DialError::Unreachable(gone).into());
        };
        if let Some(socket) = upstream.sockets.lock().open.get_mut(&socket) {
            socket.busy = 1;
        }
        Ok(Self {
            registration: Registration { upstream: Some(upstream.clone()), socket },
            stream,
            reused: false,
        })
    }

    /// From now on the end of the lease does not end it: only the sprite's runtime does, or the client.
    pub(crate) fn outlive_lease(&mut self) {
        if let Some(upstream) = self.registration.upstream.take() {
            upstream.sockets.lock().open.remove(&self.registration.socket);
        }
    }

    /// Whether it carried another request before.
    pub(crate) const fn is_reused(&self) -> bool {
        self.reused
    }

    fn has_heard_nothing(&self) -> bool {
        is_silent(&self.stream)
    }

    /// Whether the sprite has neither closed nor said anything, as the kernel knows it at this moment.
    pub(crate) fn is_quiet(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(fd_of(&self.stream), &mut [0], flags) == Err(Errno::EAGAIN)
    }

    /// Keeps the connection for the next request to `target`, if its lease still lives.
    pub(crate) fn park(self, target: Target, now: Moment) {
        let Self { mut registration, stream, .. } = self;
        let Some(upstream) = registration.upstream.take() else { return };
        let mut sockets = upstream.sockets.lock();
        if sockets.stage == Stage::Live && sockets.parked.len() < MOST_PARKED {
            sockets.parked.push(Parked { target, socket: registration.socket, since: now, stream });
        } else {
            sockets.open.remove(&registration.socket);
        }
    }
}

fn fd_of(stream: &Dialed) -> RawFd {
    match stream {
        Dialed::Tcp(tcp) => tcp.as_raw_fd(),
        Dialed::Unix(unix) => unix.as_raw_fd(),
    }
}

impl AsyncRead for Direct {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match &mut self.get_mut().stream {
            Dialed::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Dialed::Unix(unix) => Pin::new(unix).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Direct {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        match &mut self.get_mut().stream {
            Dialed::Tcp(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Dialed::Unix(unix) => Pin::new(unix).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        match &mut self.get_mut().stream {
            Dialed::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            Dialed::Unix(unix) => Pin::new(unix).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        // Sockets keep nothing back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match &mut self.get_mut().stream {
            Dialed::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Dialed::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
        }
    }
}
