//! A pipe that carries link frames, as a stream of the bytes in them.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use link::{Decoder, Heard, Nonce, encode_data};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

/// How much is read from the pipe at once, at most.
const READ_BYTES: usize = 32 * 1024;

/// The bytes in the data frames of a pipe. A reset ends it, and can then be asked for.
#[derive(Debug)]
pub(crate) struct Framed<P> {
    pipe: P,
    decoder: Decoder,
    /// What was heard and not yet read, from `read` on.
    input: Vec<u8>,
    read: usize,
    /// A frame on its way out, from `written` on.
    output: Vec<u8>,
    written: usize,
    reset: Option<Nonce>,
    scratch: Box<[u8]>,
}

impl<P: AsyncRead + AsyncWrite + Unpin> Framed<P> {
    pub(crate) fn new(pipe: P, decoder: Decoder) -> Self {
        Self {
            pipe,
            decoder,
            input: Vec::new(),
            read: 0,
            output: Vec::new(),
            written: 0,
            reset: None,
            scratch: vec![0; READ_BYTES].into(),
        }
    }

    /// The next thing that comes; `None` at the end of the pipe.
    pub(crate) async fn hear(&mut self) -> io::Result<Option<Heard>> {
        std::future::poll_fn(|context| self.poll_hear(context)).await
    }

    fn poll_hear(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Heard>>> {
        loop {
            match self.decoder.hear() {
                Ok(Some(heard)) => return Poll::Ready(Ok(Some(heard))),
                Ok(None) => {}
                Err(broken) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, broken)));
                }
            }
            let mut buffer = ReadBuf::new(&mut self.scratch);
            ready!(Pin::new(&mut self.pipe).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(None));
            }
            self.decoder.push(buffer.filled());
        }
    }

    /// The reset that ended this stream, if one did.
    pub(crate) const fn reset(&mut self) -> Option<Nonce> {
        self.reset.take()
    }

    /// Begins anew with `greeting`: what was under way is forgotten, as the other side has forgotten it.
    pub(crate) async fn begin(&mut self, greeting: &[u8]) -> io::Result<()> {
        self.input.clear();
        self.output.clear();
        (self.read, self.written) = (0, 0);
        self.pipe.write_all(greeting).await?;
        self.pipe.flush().await
    }

    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.output.len() {
            let rest = &self.output[self.written..];
            match ready!(Pin::new(&mut self.pipe).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                bytes => self.written += bytes,
            }
        }
        self.output.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl<P: AsyncRead + AsyncWrite + Unpin> AsyncRead for Framed<P> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.read == this.input.len() {
            match ready!(this.poll_hear(context))? {
                Some(Heard::Data(bytes)) => (this.input, this.read) = (bytes, 0),
                Some(Heard::Acknowledged) => {}
                Some(Heard::Reset(nonce)) => {
                    this.reset = Some(nonce);
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                None => return Poll::Ready(Ok(())),
            }
        }
        let rest = &this.input[this.read..];
        let bytes = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..bytes]);
        this.read += bytes;
        Poll::Ready(Ok(()))
    }
}

impl<P: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Framed<P> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(context))?;
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let taken = encode_data(bytes, &mut self.output);
        // As much as goes now; the rest goes before anything else.
        match self.poll_drain(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.pipe).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The pipe stays: the next session needs it.
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.pipe).poll_flush(context)
    }
}
