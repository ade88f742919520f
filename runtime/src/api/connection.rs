//! One connection to the API, and what becomes of it when a request turns it into something else.
//!
//! The task that accepted a connection also serves what it is upgraded to, so that it counts, and ends, as
//! one stream.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the handlers of one connection's requests share. An extension of each request.
#[derive(Clone, Default)]
pub(super) struct Connection(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// What goes on when HTTP has ended.
    next: Mutex<Option<Task>>,
    /// Whether the next head of a 101 is to be held back: see [`HostStream`].
    cork: AtomicBool,
}

impl Connection {
    /// When this connection has been upgraded, `task` goes on with it. What it sends first leaves together
    /// with the answer's head; it must send something, or release the head.
    pub(super) fn continue_with(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.cork.store(true, Ordering::Relaxed);
        *self.0.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::pin(task));
    }

    /// What is to go on, if anything.
    pub(super) fn take_next(&self) -> Option<Task> {
        self.0.next.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A stream from the host that can hold back the head of a 101 until something follows it.
///
/// A client that attaches to a session wants to know at once whether it has a terminal, or it may speak first
/// and wrongly. Head and first message in one write can't be torn apart on their way.
#[derive(Debug)]
pub(super) struct HostStream {
    stream: UnixStream,
    connection: Connection,
    held: Vec<u8>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl HostStream {
    pub(super) fn new(stream: UnixStream, connection: Connection) -> Self {
        Self { stream, connection, held: Vec::new() }
    }

    /// Whether what is about to be written is a head to hold back.
    fn is_to_hold(&self, first: &[u8]) -> bool {
        first.starts_with(b"HTTP/1.1 101 ") && self.connection.0.cork.swap(false, Ordering::Relaxed)
    }

    /// Writes what was held back, and as much of `bytes` as goes with it.
    fn poll_held(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        while !self.held.is_empty() {
            let slices = [IoSlice::new(&self.held), IoSlice::new(bytes)];
            let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if let Some(beyond) = written.checked_sub(self.held.len()) {
                self.held = Vec::new();
                if beyond > 0 || bytes.is_empty() {
                    return Poll::Ready(Ok(beyond));
                }
            } else {
                self.held.drain(..written);
            }
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
}

impl AsFd for HostStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsyncRead for HostStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for HostStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_to_hold(bytes) {
            self.held.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        if self.held.is_empty() {
            return Pin::new(&mut self.stream).poll_write(cx, bytes);
        }
        self.poll_held(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
        if self.is_to_hold(first) {
            for slice in slices {
                self.held.extend_from_slice(slice);
            }
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        if self.held.is_empty() {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        }
        self.poll_held(cx, first)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does not push out what is held back: HTTP flushes the head, and does not know what follows.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.held.is_empty() {
            ready!(self.poll_held(cx, &[]))?;
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl HostStream {
    /// Sends what was held back without waiting for more.
    pub(super) async fn release(&mut self) -> io::Result<()> {
        std::future::poll_fn(
            |cx| {
                if self.held.is_empty() { Poll::Ready(Ok(0)) } else { self.poll_held(cx, &[]) }
            },
        )
        .await
        .map(drop)
    }
}
