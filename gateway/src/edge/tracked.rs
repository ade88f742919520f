//! A client's connection as Pingora sees it: the socket, with a ledger entry, a prefetch buffer and a
//! limit on what may be read.
//!
//! The buffer holds what was read while a request was parsed or held, before Pingora was entered. The
//! limit ends each HTTP/1 request where its framing says, so that the bytes of a pipelined request stay
//! here until they have been judged like any other's.

use std::{
    any::Any,
    fmt, io,
    os::fd::{AsRawFd, RawFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use pingora::{
    http::ResponseHeader,
    protocols::{
        ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
        TimingDigest, UniqueID, raw_connect::ProxyDigest,
    },
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::{chunks::Chunks, head::Framing, transport::Transport};
use crate::ledger::Conn;

/// The largest beginning of an answer that is kept for the rest.
const ANSWER_HEAD_BYTES: usize = 4 * 1024;
/// How much of a pipelined request is taken in while its predecessor is answered.
const READ_AHEAD_BYTES: usize = 4 * 1024;

/// How long a client whose request was cut short may take to read why.
const FAREWELL: Duration = Duration::from_secs(2);

/// How many bytes the reader may still be given.
enum Limit {
    /// All there are.
    Open,
    /// This many.
    Length(u64),
    /// To the end of a chunked body, behind this many bytes of head.
    Chunked { head: usize, body: Chunks },
}

/// See the module's documentation.
pub(crate) struct Tracked {
    transport: Transport,
    conn: Arc<Conn>,
    digest: Arc<ProxyDigest>,
    /// Read from the socket, not yet given to the reader.
    ahead: BytesMut,
    limit: Limit,
    answer: AnswerHead,
    farewell: Option<Pin<Box<tokio::time::Sleep>>>,
    h2: bool,
}

/// The first bytes of an answer wait for the next ones, or for a flush, and leave together with them:
/// head and body of a small answer are one packet and one system call.
enum AnswerHead {
    /// Nothing has been written yet.
    Awaited,
    /// Written by the server, not yet to the socket.
    Kept(Bytes),
    /// Gone; everything is written through.
    Sent,
}

impl Tracked {
    pub(crate) fn new(transport: Transport, conn: Arc<Conn>) -> io::Result<Self> {
        let header = ResponseHeader::build(200, Some(0)).map_err(io::Error::other)?;
        let digest = Arc::new(ProxyDigest::new(Box::new(header), Some(Box::new(conn.clone()))));
        Ok(Self {
            transport,
            conn,
            digest,
            ahead: BytesMut::new(),
            limit: Limit::Open,
            answer: AnswerHead::Sent,
            farewell: None,
            h2: false,
        })
    }

    pub(crate) const fn conn(&self) -> &Arc<Conn> {
        &self.conn
    }

    /// What has been read and not yet been given out.
    pub(crate) fn ahead(&self) -> &[u8] {
        &self.ahead
    }

    /// From now on this is an HTTP/2 connection.
    pub(crate) const fn become_h2(&mut self) {
        self.h2 = true;
    }

    /// Lets the reader have the request with this head, and nothing of the next.
    pub(crate) fn admit_request(&mut self, head_bytes: usize, framing: Framing) {
        self.limit = match framing {
            Framing::Length(length) => Limit::Length(length.saturating_add(head_bytes as u64)),
            Framing::Chunked => Limit::Chunked { head: head_bytes, body: Chunks::default() },
            // Those take another way, and hold nothing back there.
            Framing::Upgrade => Limit::Open,
        };
        self.answer = AnswerHead::Awaited;
    }

    /// Forgets the head, and lets the reader have everything behind it. What is written is not kept back.
    pub(crate) fn admit_tunnel(&mut self, head_bytes: usize) {
        self.ahead.advance(head_bytes);
        self.limit = Limit::Open;
        self.answer = AnswerHead::Sent;
    }

    /// Waits for more bytes and keeps them; 0 when the client has ended.
    ///
    /// # Cancel safety
    /// Cancel safe: what was read is kept.
    pub(crate) async fn fill(&mut self) -> io::Result<usize> {
        let Self { transport, conn, ahead, .. } = self;
        let read = match transport {
            Transport::Plain(tcp) => loop {
                // Who waits for bytes holds no room for them.
                if ahead.is_empty() {
                    *ahead = BytesMut::new();
                }
                tcp.readable().await?;
                ahead.reserve(READ_AHEAD_BYTES);
                match tcp.try_read_buf(ahead) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => break read?,
                }
            },
            Transport::Tls(tls) => {
                ahead.reserve(READ_AHEAD_BYTES);
                tls.read_buf(ahead).await?
            }
        };
        conn.note_received(read);
        Ok(read)
    }

    /// Writes a last answer, and closes once the client has had time to read it.
    pub(crate) async fn end_with(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes).await?;
        // Whatever it was that came, it is not over.
        self.limit = Limit::Length(u64::MAX);
        AsyncWriteExt::shutdown(self).await
    }

    /// Moves from the buffer what the reader may have.
    fn give_ahead(&mut self, buf: &mut ReadBuf<'_>) {
        let wanted = buf.remaining().min(self.ahead.len());
        let allowed = match &mut self.limit {
            Limit::Open => wanted,
            Limit::Length(left) => {
                let allowed = usize::try_from(*left).unwrap_or(usize::MAX).min(wanted);
                *left -= allowed as u64;
                allowed
            }
            Limit::Chunked { head, body } => {
                let of_head = wanted.min(*head);
                *head -= of_head;
                if *head > 0 {
                    of_head
                } else if let Ok(of_body) = body.take(&self.ahead[of_head..wanted]) {
                    of_head + of_body
                } else {
                    // The reader will find the same fault and say so; there is no next request then.
                    self.limit = Limit::Open;
                    wanted
                }
            }
        };
        buf.put_slice(&self.ahead[..allowed]);
        self.ahead.advance(allowed);
    }

    const fn request_is_over(&self) -> bool {
        match &self.limit {
            Limit::Open => false,
            Limit::Length(left) => *left == 0,
            Limit::Chunked { head, body } => *head == 0 && body.is_done(),
        }
    }

    fn poll_write_slices(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        match &mut self.answer {
            AnswerHead::Awaited if length <= ANSWER_HEAD_BYTES => {
                let mut head = BytesMut::with_capacity(length);
                slices.iter().for_each(|slice| head.extend_from_slice(slice));
                self.answer = AnswerHead::Kept(head.freeze());
                return Poll::Ready(Ok(length));
            }
            AnswerHead::Kept(head) => {
                let together: Vec<io::IoSlice<'_>> =
                    std::iter::once(io::IoSlice::new(head)).chain(slices.iter().copied()).collect();
                let written = std::task::ready!(self.transport.poll_write_vectored(cx, &together))?;
                self.conn.note_sent(written);
                if written < head.len() {
                    head.advance(written);
                    // Of the bytes at hand nothing was taken: go on with the head alone.
                    std::task::ready!(self.poll_send_head(cx))?;
                    return self.poll_write_slices(cx, slices);
                }
                let written = written - head.len();
                self.answer = AnswerHead::Sent;
                // Nothing written is an end, which this is not.
                return if written > 0 || length == 0 {
                    Poll::Ready(Ok(written))
                } else {
                    self.poll_write_slices(cx, slices)
                };
            }
            AnswerHead::Awaited | AnswerHead::Sent => self.answer = AnswerHead::Sent,
        }
        let written = std::task::ready!(self.transport.poll_write_vectored(cx, slices))?;
        self.conn.note_sent(written);
        Poll::Ready(Ok(written))
    }

    /// Writes what is kept of an answer's beginning.
    fn poll_send_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let AnswerHead::Kept(head) = &mut self.answer {
            let written =
                std::task::ready!(self.transport.poll_write_vectored(cx, &[io::IoSlice::new(head)]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.conn.note_sent(written);
            head.advance(written);
            if head.is_empty() {
                self.answer = AnswerHead::Sent;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The request was cut short, and its rest is still coming. Closing with unread bytes would reset the
    /// connection and take our answer with it: reads on until the client has understood, for a while.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let enough = self.farewell.get_or_insert_with(|| Box::pin(tokio::time::sleep(FAREWELL)));
        if enough.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut forgotten = [std::mem::MaybeUninit::uninit(); 16 * 1024];
        loop {
            let mut buf = ReadBuf::uninit(&mut forgotten);
            std::task::ready!(self.transport.poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// The reader waits for the client to leave: what comes instead is kept for the next request.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.ahead.len() >= READ_AHEAD_BYTES {
                return Poll::Pending;
            }
            let mut bytes = [std::mem::MaybeUninit::uninit(); 1024];
            let mut buf = ReadBuf::uninit(&mut bytes);
            std::task::ready!(self.transport.poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.conn.note_received(buf.filled().len());
            self.ahead.extend_from_slice(buf.filled());
        }
    }

    /// Reads from the socket straight into the reader's buffer; what lies beyond the limit is kept.
    fn poll_direct(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match &mut self.limit {
            Limit::Open => std::task::ready!(self.transport.poll_read(cx, buf))?,
            Limit::Length(left) => {
                let read = match usize::try_from(*left) {
                    Ok(most) if most < buf.remaining() => {
                        let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
                        std::task::ready!(self.transport.poll_read(cx, &mut part))?;
                        let read = part.filled().len();
                        buf.advance(read);
                        read
                    }
                    Ok(_) | Err(_) => {
                        std::task::ready!(self.transport.poll_read(cx, buf))?;
                        buf.filled().len() - before
                    }
                };
                *left -= read as u64;
            }
            Limit::Chunked { body, .. } => {
                std::task::ready!(self.transport.poll_read(cx, buf))?;
                match body.take(&buf.filled()[before..]) {
                    Ok(taken) => {
                        self.ahead.extend_from_slice(&buf.filled()[before + taken..]);
                        self.conn.note_received(buf.filled().len() - before - taken);
                        buf.set_filled(before + taken);
                    }
                    // As above.
                    Err(_) => self.limit = Limit::Open,
                }
            }
        }
        self.conn.note_received(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Tracked {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.request_is_over() {
            return this.poll_idle(cx);
        }
        if !this.ahead.is_empty() {
            this.give_ahead(buf);
            return Poll::Ready(Ok(()));
        }
        this.poll_direct(cx, buf)
    }
}

impl AsyncWrite for Tracked {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_slices(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_slices(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        std::task::ready!(this.poll_send_head(cx))?;
        this.transport.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        std::task::ready!(this.poll_send_head(cx))?;
        std::task::ready!(this.transport.poll_shutdown(cx))?;
        if matches!(this.limit, Limit::Open) || this.request_is_over() {
            return Poll::Ready(Ok(()));
        }
        this.poll_farewell(cx)
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.conn.socket_gone();
    }
}

impl fmt::Debug for Tracked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracked").field("peer", &self.conn.peer()).field("ahead", &self.ahead.len()).finish()
    }
}

#[async_trait]
impl Shutdown for Tracked {
    async fn shutdown(&mut self) {
        // The peer may be gone already; either way there is nothing more to do.
        let _closed = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Tracked {
    fn id(&self) -> RawFd {
        self.transport.tcp().as_raw_fd()
    }
}

impl Ssl for Tracked {
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.h2.then_some(ALPN::H2)
    }
}

impl Peek for Tracked {}

impl GetTimingDigest for Tracked {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Tracked {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.digest.clone())
    }
}

impl GetSocketDigest for Tracked {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}

/// The ledger's entry of the connection that a Pingora session came over.
pub(crate) fn conn_of(digest: Option<&pingora::protocols::Digest>) -> Option<Arc<Conn>> {
    let proxy = digest?.proxy_digest.as_ref()?;
    let data: &(dyn Any + Send + Sync) = proxy.user_data.as_deref()?;
    data.downcast_ref::<Arc<Conn>>().cloned()
}

#[cfg(test)]
mod tests;
