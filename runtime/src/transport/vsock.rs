//! Streams over vsock, as Firecracker and Cloud Hypervisor give them to their guests.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, listen, socket,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixStream,
};

/// A listening socket that whoever has the other end of the machine's vsock can reach.
#[derive(Debug)]
pub(crate) struct VsockListener(AsyncFd<OwnedFd>);

impl VsockListener {
    pub(crate) fn bind(port: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
        bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
        listen(&listener, Backlog::MAXCONN)?;
        // SAFETY: an `OwnedFd` that we don't touch stays the same open descriptor until it is dropped.
        Ok(Self(unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }?))
    }

    /// The next stream. Cancel safe.
    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let accept = |listener: &OwnedFd| Ok(accept4(listener.as_raw_fd(), flags)?);
        let accepted = self.0.async_io(Interest::READABLE, accept).await?;
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        let stream = unsafe { OwnedFd::from_raw_fd(accepted) };
        // Nothing that is asked of it asks for the kind of its addresses: to the kernel it is one more stream.
        UnixStream::from_std(stream.into())
    }
}
