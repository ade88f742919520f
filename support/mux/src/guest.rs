//! The guest's end: it accepts streams.

use std::{future::poll_fn, io};

use link::{Decoder, Heard, Nonce, encode_ack};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt as _, TokioAsyncReadCompatExt as _};
use tracing::debug;
use yamux::{Connection, Mode};

use crate::{MuxStream, framed::Framed, limits};

/// The guest's end of a serial port, through all sessions that the host begins.
#[derive(Debug)]
pub struct Guest<P> {
    framed: Compat<Framed<P>>,
}

impl<P: AsyncRead + AsyncWrite + Unpin> Guest<P> {
    /// Will wait for the first session over `pipe`, which waits, rather than ends, while there is no host.
    pub fn new(pipe: P) -> Self {
        Self { framed: Framed::new(pipe, Decoder::guest()).compat() }
    }

    /// Gives every stream that the host opens to `accept`, session after session.
    ///
    /// # Errors
    /// The pipe broke, or ended: the host can't be heard any more.
    pub async fn run(mut self, mut accept: impl FnMut(MuxStream)) -> io::Result<()> {
        loop {
            let nonce = self.next_reset().await?;
            self.framed.get_mut().begin(&encode_ack(&nonce)).await?;
            debug!("The host began a session");
            let mut session = Connection::new(&mut self.framed, limits(), Mode::Server);
            let why = loop {
                match poll_fn(|context| session.poll_next_inbound(context)).await {
                    Some(Ok(stream)) => accept(stream.compat()),
                    Some(Err(error)) => break Some(error),
                    None => break None,
                }
            };
            debug!(?why, "A session of the host ended");
        }
    }

    async fn next_reset(&mut self) -> io::Result<Nonce> {
        let framed = self.framed.get_mut();
        if let Some(nonce) = framed.reset() {
            return Ok(nonce);
        }
        loop {
            match framed.hear().await? {
                Some(Heard::Reset(nonce)) => return Ok(nonce),
                // Of a session that is over.
                Some(Heard::Data(_) | Heard::Acknowledged) => {}
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}
