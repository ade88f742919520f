//! The host's end: it opens streams.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll},
};

use link::{Decoder, Heard, encode_reset};
use rand::RngCore as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot},
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt as _, TokioAsyncReadCompatExt as _};
use yamux::{Connection, Mode};

use crate::{MuxStream, framed::Framed, limits};

/// Streams that were asked for and wait for the session to open them; who asks for more waits, too.
const ASKED: usize = 64;

type Ask = oneshot::Sender<MuxStream>;

/// A session with a guest. It lives while [`Host::run`] is polled.
#[derive(Debug)]
pub struct Host<P> {
    session: Connection<Compat<Framed<P>>>,
    asks: mpsc::Receiver<Ask>,
}

/// Opens streams of a [`Host`].
#[derive(Clone, Debug)]
pub struct Opener {
    asks: mpsc::Sender<Ask>,
}

impl<P: AsyncRead + AsyncWrite + Unpin> Host<P> {
    /// Begins a session over `pipe`: whatever the guest did before is over when this returns.
    /// Waits until the guest answers, which one that boots does late: give it a deadline.
    ///
    /// # Errors
    /// The pipe broke, or ended.
    ///
    /// # Cancel safety
    /// Drop the pipe with it; a new connection can begin anew at any time.
    pub async fn connect(pipe: P) -> io::Result<(Self, Opener)> {
        let mut nonce = [0; 16];
        rand::rng().fill_bytes(&mut nonce);
        let mut framed = Framed::new(pipe, Decoder::host(nonce));
        framed.begin(&encode_reset(&nonce)).await?;
        match framed.hear().await? {
            // The first thing that such a decoder hears is the answer.
            Some(Heard::Acknowledged | Heard::Data(_) | Heard::Reset(_)) => {}
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        let session = Connection::new(framed.compat(), limits(), Mode::Client);
        let (sender, asks) = mpsc::channel(ASKED);
        Ok((Self { session, asks }, Opener { asks: sender }))
    }

    /// Moves bytes until the guest or every [`Opener`] is gone. Says why it ended.
    ///
    /// # Cancel safety
    /// Dropping it ends all streams.
    pub async fn run(self) -> io::Result<()> {
        let Self { mut session, mut asks } = self;
        let mut waiting: Option<Ask> = None;
        poll_fn(|context| poll_session(&mut session, &mut asks, &mut waiting, context)).await
    }
}

fn poll_session<P: AsyncRead + AsyncWrite + Unpin>(
    session: &mut Connection<Compat<Framed<P>>>,
    asks: &mut mpsc::Receiver<Ask>,
    waiting: &mut Option<Ask>,
    context: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    loop {
        if waiting.is_none() {
            match asks.poll_recv(context) {
                Poll::Ready(Some(ask)) => *waiting = Some(ask),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => {}
            }
        }
        if let Some(ask) = waiting.take() {
            match session.poll_new_outbound(context) {
                Poll::Ready(Ok(stream)) => {
                    // Whoever asked may have left; the stream is reset then.
                    let _left = ask.send(stream.compat());
                    continue;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                Poll::Pending => *waiting = Some(ask),
            }
        }
        // This also moves the bytes of all streams.
        match session.poll_next_inbound(context) {
            Poll::Ready(Some(Ok(uninvited))) => drop(uninvited),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(io::Error::other(error))),
            Poll::Ready(None) => return Poll::Ready(Ok(())),
            Poll::Pending => return Poll::Pending,
        }
    }
}

impl Opener {
    /// Opens a stream.
    ///
    /// # Errors
    /// The session is over.
    pub async fn open(&self) -> io::Result<MuxStream> {
        let (ask, opened) = oneshot::channel();
        let over = || io::Error::from(io::ErrorKind::ConnectionReset);
        self.asks.send(ask).await.map_err(|_| over())?;
        opened.await.map_err(|_| over())
    }
}
