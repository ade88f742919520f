//! A virtio serial port as a stream.

use std::{
    fs::File,
    future::Future as _,
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd},
    time::{Sleep, sleep},
};

/// How often an absent host is looked for. There is none only between a machine's wake and its host's next
/// connection, and while the host's program is being replaced.
const NO_HOST_PAUSE: Duration = Duration::from_millis(2);

/// The port. While no host is connected to it, reading and writing wait.
#[derive(Debug)]
pub(crate) struct SerialPort {
    /// `None` only while it is being registered anew.
    port: Option<AsyncFd<File>>,
    /// There was no host; until then nothing is tried.
    pause: Option<Pin<Box<Sleep>>>,
}

impl SerialPort {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let port = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        Ok(Self { port: Some(register(port)?), pause: None })
    }

    /// Waits out a pause. What is known of the port's readiness then is forgotten with its registration: that the
    /// host had hung up is remembered there for ever.
    fn poll_port(&mut self, context: &mut Context<'_>) -> Poll<io::Result<&AsyncFd<File>>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(context));
            self.pause = None;
            if let Some(port) = self.port.take() {
                self.port = Some(register(port.into_inner())?);
            }
        }
        Poll::Ready(self.port.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }

    fn no_host(&mut self) {
        self.pause = Some(Box::pin(sleep(NO_HOST_PAUSE)));
    }
}

fn register(port: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a `File` that we don't touch stays the same open descriptor until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(port, Interest::READABLE | Interest::WRITABLE) }?)
}

impl AsyncRead for SerialPort {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let port = ready!(self.poll_port(context))?;
            let mut ready = ready!(port.poll_read_ready(context))?;
            let closed = ready.ready().is_read_closed();
            match ready.try_io(|port| port.get_ref().read(buffer.initialize_unfilled())) {
                Ok(Ok(0)) => self.no_host(),
                Ok(Ok(bytes)) => {
                    buffer.advance(bytes);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) if closed => self.no_host(),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for SerialPort {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let port = ready!(self.poll_port(context))?;
            let mut ready = ready!(port.poll_write_ready(context))?;
            let closed = ready.ready().is_write_closed();
            match ready.try_io(|port| port.get_ref().write(bytes)) {
                Ok(done) => return Poll::Ready(done),
                Err(_would_block) if closed => self.no_host(),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
