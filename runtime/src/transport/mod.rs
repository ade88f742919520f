//! How the host reaches the runtime: a listening Unix socket that the driver gave it, the serial port of a virtual
//! machine, or its vsock.
//!
//! Everything that depends on the kind of transport is here. Whatever it is, a stream of it is a Unix stream to the
//! rest; only one that came through a socket of the host's can carry descriptors ([`hand_over`]).

mod serial;
mod vsock;

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
};

use mux::{Guest, MuxStream};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
};
use tracing::{error, warn};

use self::{serial::SerialPort, vsock::VsockListener};

/// Streams from a serial port that wait to be accepted. More can't be open.
const MAX_WAITING: usize = mux::MAX_STREAMS;

/// Where streams from the host come from.
#[derive(Debug)]
pub(crate) enum Listener {
    /// A socket of the host's.
    Socket(UnixListener),
    /// A serial port; whoever reads it puts the streams there.
    Serial(tokio::sync::mpsc::Receiver<UnixStream>),
    /// The machine's vsock.
    Vsock(VsockListener),
}

impl Listener {
    /// The next stream. Cancel safe.
    ///
    /// # Errors
    /// Descriptors are short, say; or the port broke, which is for good.
    pub(crate) async fn accept(&mut self) -> io::Result<UnixStream> {
        match self {
            Self::Socket(listener) => Ok(listener.accept().await?.0),
            Self::Serial(streams) => streams.recv().await.ok_or_else(|| io::ErrorKind::BrokenPipe.into()),
            Self::Vsock(listener) => listener.accept().await,
        }
    }

    /// Serves what comes through a serial port. The port is read by a task that ends with the runtime.
    pub(crate) fn serial(path: &Path) -> io::Result<Self> {
        let guest = Guest::new(SerialPort::open(path)?);
        let (sender, streams) = tokio::sync::mpsc::channel(MAX_WAITING);
        tokio::spawn(async move {
            let ended = guest.run(|stream| relay(stream, &sender)).await;
            error!(?ended, "The port to the host can't be read any more");
        });
        Ok(Self::Serial(streams))
    }

    /// Serves what comes over the machine's vsock.
    pub(crate) fn vsock() -> io::Result<Self> {
        VsockListener::bind(runtime_api::VSOCK_PORT).map(Self::Vsock)
    }
}

/// Gives a stream of the serial port the form of all others.
fn relay(stream: MuxStream, to: &tokio::sync::mpsc::Sender<UnixStream>) {
    let (mut ours, theirs) = match UnixStream::pair() {
        Ok(pair) => pair,
        Err(error) => return warn!(%error, "Refused a stream of the host"),
    };
    if to.try_send(theirs).is_err() {
        return warn!("Refused a stream of the host: too many wait");
    }
    tokio::spawn(async move {
        let mut stream = stream;
        // Whichever side broke, the other one ends with it.
        let _broke = tokio::io::copy_bidirectional(&mut stream, &mut ours).await;
    });
}

/// Takes over the listening socket at descriptor `number`.
///
/// # Errors
/// It is not an open socket.
pub(crate) fn inherited_listener(number: RawFd) -> io::Result<UnixListener> {
    use nix::sys::socket::{getsockopt, sockopt::AcceptConn};
    // SAFETY: the driver put the socket there for us, and nothing else in this program touches it.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    if !getsockopt(&socket, AcceptConn)? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen"));
    }
    // Services must not inherit it.
    nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    let listener = std::os::unix::net::UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Sends `bytes` with a socket attached. The caller drops its own copy of the socket afterwards.
///
/// # Errors
/// The peer is gone, or its buffer is full, which a peer that reads can't cause.
pub(crate) async fn hand_over(stream: &UnixStream, bytes: &[u8], socket: &impl AsRawFd) -> io::Result<()> {
    let descriptors = [socket.as_raw_fd()];
    let sent = stream
        .async_io(Interest::WRITABLE, || {
            let slices = [io::IoSlice::new(bytes)];
            let rights = [ControlMessage::ScmRights(&descriptors)];
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            Ok(sendmsg::<()>(stream.as_raw_fd(), &slices, &rights, flags, None)?)
        })
        .await?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Resolves when the peer has closed its side. Bytes that it sends meanwhile stay unread. Cancel safe.
pub(crate) async fn hung_up(stream: &UnixStream) {
    use nix::sys::socket::recv;
    let gone = stream.async_io(Interest::READABLE, || {
        match recv(stream.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
            Ok(0) => Ok(()),
            // Somebody who speaks out of turn has not hung up; only the end is waited for.
            Ok(_) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => Err(error.into()),
        }
    });
    // An error is an end too.
    let _ended = gone.await;
}
