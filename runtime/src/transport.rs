//! How the host reaches the runtime: a listening Unix socket that the driver gave it.
//!
//! Everything that depends on the kind of transport is here. A virtual machine's transport would be
//! another one, without [`hand_over`].

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
};

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
