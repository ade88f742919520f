//! A client's connection as Pingora sees it: the socket, with a ledger entry, a prefetch buffer and a
//! limit on what may be read.
//!
//! The buffer holds what was read while a request was parsed or held, before Pingora was entered. The
//! limit ends each HTTP/1 request where its framing says, so that the bytes of a pipelined request stay
//! here until they have been judged like any other's.

use std::{
    any::Any,
    fmt,
    future::poll_fn,
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, RawFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use nix::sys::socket::{setsockopt, sockopt};
use pingora::{
    http::ResponseHeader,
    protocols::{
        GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
        UniqueID, raw_connect::ProxyDigest,
    },
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::{
    chunks::{Chunks, Sender},
    head::Framing,
    transport::Transport,
};
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
    /// Read from the socket, not yet given to the reader.
    ahead: Ahead,
    limit: Limit,
    answer: AnswerHead,
    farewell: Option<Pin<Box<tokio::time::Sleep>>>,
}

/// Bytes that came before somebody wanted them. Empty, it has no room either: idle connections are many.
#[derive(Default)]
pub(crate) struct Ahead {
    bytes: Vec<u8>,
    at: usize,
}

impl Ahead {
    fn as_slice(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.bytes.is_empty() {
            self.bytes.reserve_exact(bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn advance(&mut self, count: usize) {
        self.at += count;
        if self.is_empty() {
            *self = Self::default();
        }
    }

    /// Takes the first bytes out; all of them without a copy.
    fn take(&mut self, count: usize) -> Vec<u8> {
        if self.at == 0 && count == self.bytes.len() {
            return std::mem::take(&mut self.bytes);
        }
        let taken = self.as_slice()[..count].to_vec();
        self.advance(count);
        taken
    }

    /// Puts bytes before all others.
    fn put_back(&mut self, mut bytes: Vec<u8>) {
        bytes.extend_from_slice(self.as_slice());
        *self = Self { bytes, at: 0 };
    }
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
    pub(crate) fn new(transport: Transport, conn: Arc<Conn>) -> Self {
        Self {
            transport,
            conn,
            ahead: Ahead::default(),
            limit: Limit::Open,
            answer: AnswerHead::Sent,
            farewell: None,
        }
    }

    pub(crate) const fn conn(&self) -> &Arc<Conn> {
        &self.conn
    }

    /// What has been read and not yet been given out.
    pub(crate) fn ahead(&self) -> &[u8] {
        self.ahead.as_slice()
    }

    /// Takes the first bytes of [`Tracked::ahead`] out.
    pub(super) fn take_ahead(&mut self, count: usize) -> Vec<u8> {
        self.ahead.take(count)
    }

    /// Forgets the first bytes of [`Tracked::ahead`].
    pub(super) fn skip_ahead(&mut self, count: usize) {
        self.ahead.advance(count);
    }

    /// Gives bytes back that were read, to be read next.
    pub(super) fn put_back(&mut self, bytes: Vec<u8>) {
        self.ahead.put_back(bytes);
    }

    /// Keeps bytes that were read for later.
    pub(super) fn keep_ahead(&mut self, bytes: &[u8]) {
        self.ahead.push(bytes);
    }

    /// Lets the reader have the request with this head, and nothing of the next.
    pub(crate) fn admit_request(&mut self, head_bytes: usize, framing: Framing) {
        self.limit = match framing {
            Framing::Length(length) => Limit::Length(length.saturating_add(head_bytes as u64)),
            Framing::Chunked => Limit::Chunked { head: head_bytes, body: Chunks::new(Sender::Client) },
            // One that is granted takes another way. A refused one has no body.
            Framing::Upgrade => Limit::Length(head_bytes as u64),
        };
        self.answer = AnswerHead::Awaited;
    }

    /// Lets the reader have everything, and keeps nothing back of what is written.
    pub(super) fn admit_all(&mut self) {
        self.limit = Limit::Open;
        self.answer = AnswerHead::Sent;
    }

    /// Reads from the socket, past everything that was read ahead.
    pub(super) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        std::task::ready!(self.transport.poll_read(cx, buf))?;
        self.conn.note_received(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }

    /// Writes to the socket at once.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = std::task::ready!(self.transport.poll_write(cx, bytes))?;
        self.conn.note_sent(sent);
        Poll::Ready(Ok(sent))
    }

    /// Sees to it that what was written leaves. (TLS may keep a part of a record.)
    pub(super) fn poll_send_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.transport.poll_flush(cx)
    }

    /// Closes after an answer. If more of what the client sends is unread, it is read for a while: closing
    /// at once would reset the connection, and the client might lose the answer (RFC 9112 §9.6).
    pub(super) async fn close(mut self, more_comes: bool) {
        self.admit_all();
        if more_comes || !self.ahead.is_empty() {
            self.limit = Limit::Length(u64::MAX);
        } else if matches!(self.transport, Transport::Plain(_)) {
            return;
        }
        // The peer may be gone already; either way there is nothing more to do.
        let _closed = tokio::time::timeout(FAREWELL * 2, AsyncWriteExt::shutdown(&mut self)).await;
    }

    /// Breaks the connection so that the client can't take what it got for the whole.
    pub(super) fn reset(self) {
        let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
        // Without it the client sees an end, which is the best that is left.
        let _set = setsockopt(self.transport.tcp(), sockopt::Linger, &at_once);
    }

    /// Waits for more bytes and keeps them; 0 when the client has ended.
    ///
    /// # Cancel safety
    /// Cancel safe: what was read is kept.
    pub(crate) async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// Reads what there is onto the stack and keeps exactly that: who waits for bytes holds no room for them.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut bytes = [MaybeUninit::uninit(); READ_AHEAD_BYTES];
        let mut buf = ReadBuf::uninit(&mut bytes);
        std::task::ready!(self.transport.poll_read(cx, &mut buf))?;
        let read = buf.filled();
        self.ahead.push(read);
        self.conn.note_received(read.len());
        Poll::Ready(Ok(read.len()))
    }

    /// Writes a last answer, and closes once the client has had time to read it.
    pub(crate) async fn end_with(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes).await?;
        // Whatever it was that came, it is not over.
        self.limit = Limit::Length(u64::MAX);
        AsyncWriteExt::shutdown(self).await
    }

    /// Moves from the buffer what the reader may have.
    fn give_ahead(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
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
                } else {
                    let of_body = body.take(&self.ahead.as_slice()[of_head..wanted]);
                    of_head + of_body.map_err(|_| malformed())?
                }
            }
        };
        buf.put_slice(&self.ahead.as_slice()[..allowed]);
        self.ahead.advance(allowed);
        Ok(())
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
        let mut forgotten = [MaybeUninit::uninit(); 16 * 1024];
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
            let mut bytes = [MaybeUninit::uninit(); 1024];
            let mut buf = ReadBuf::uninit(&mut bytes);
            std::task::ready!(self.transport.poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.conn.note_received(buf.filled().len());
            self.ahead.push(buf.filled());
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
                let taken = body.take(&buf.filled()[before..]).map_err(|_| malformed())?;
                self.ahead.push(&buf.filled()[before + taken..]);
                self.conn.note_received(buf.filled().len() - before - taken);
                buf.set_filled(before + taken);
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
            return Poll::Ready(this.give_ahead(buf));
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

impl Ssl for Tracked {}

impl Peek for Tracked {}

impl GetTimingDigest for Tracked {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Tracked {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        let header = ResponseHeader::build(200, Some(0)).ok()?;
        Some(Arc::new(ProxyDigest::new(Box::new(header), Some(Box::new(self.conn.clone())))))
    }
}

impl GetSocketDigest for Tracked {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the chunks of the body are malformed")
}

/// The ledger's entry of the connection that a Pingora session came over.
pub(crate) fn conn_of(digest: Option<&pingora::protocols::Digest>) -> Option<Arc<Conn>> {
    let proxy = digest?.proxy_digest.as_ref()?;
    let data: &(dyn Any + Send + Sync) = proxy.user_data.as_deref()?;
    data.downcast_ref::<Arc<Conn>>().cloned()
}

#[cfg(test)]
mod tests;
