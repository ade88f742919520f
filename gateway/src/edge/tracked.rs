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
use bytes::{Buf, BytesMut};
use pingora::{
    http::ResponseHeader,
    protocols::{
        ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
        TimingDigest, UniqueID, raw_connect::ProxyDigest,
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use super::{chunks::Chunks, head::Framing};
use crate::ledger::Conn;

/// How much of a pipelined request is taken in while its predecessor is answered.
const READ_AHEAD_BYTES: usize = 4 * 1024;

/// How long a client whose request was cut short may take to read why.
pub(super) const FAREWELL: Duration = Duration::from_secs(2);

/// What carries the bytes.
pub(crate) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

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
    h2: bool,
}

impl Tracked {
    pub(crate) fn new(transport: Transport, conn: Arc<Conn>) -> io::Result<Self> {
        let header = ResponseHeader::build(200, Some(0)).map_err(io::Error::other)?;
        let digest = Arc::new(ProxyDigest::new(Box::new(header), Some(Box::new(conn.clone()))));
        Ok(Self { transport, conn, digest, ahead: BytesMut::new(), limit: Limit::Open, h2: false })
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
            Framing::Upgrade => Limit::Open,
        };
    }

    /// Waits for more bytes and keeps them; 0 when the client has ended.
    ///
    /// # Cancel safety
    /// Cancel safe: what was read is kept.
    pub(crate) async fn fill(&mut self) -> io::Result<usize> {
        let Self { transport, conn, ahead, .. } = self;
        ahead.reserve(READ_AHEAD_BYTES);
        let read = match transport {
            Transport::Plain(tcp) => tcp.read_buf(ahead).await?,
            Transport::Tls(tls) => tls.read_buf(ahead).await?,
        };
        conn.note_received(read);
        Ok(read)
    }

    /// Writes an answer that Pingora never hears of.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes).await?;
        self.flush().await
    }

    /// Tells the client that nothing more will come.
    pub(crate) async fn half_close(&mut self) -> io::Result<()> {
        AsyncWriteExt::shutdown(self).await
    }

    /// Reads to the end and forgets it.
    pub(crate) async fn discard(&mut self) -> io::Result<()> {
        loop {
            self.ahead.clear();
            if self.fill().await? == 0 {
                return Ok(());
            }
        }
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
        let this = self.get_mut();
        let written = std::task::ready!(match &mut this.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Transport::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        })?;
        this.conn.note_sent(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = std::task::ready!(match &mut this.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            Transport::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, slices),
        })?;
        this.conn.note_sent(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(tcp) => tcp.is_write_vectored(),
            Transport::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Transport::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Transport::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
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
        let closed = AsyncWriteExt::shutdown(self).await;
        let is_cut_short = !matches!(self.limit, Limit::Open) && !self.request_is_over();
        if closed.is_ok() && is_cut_short {
            // Closing with unread bytes would reset the connection and take our last answer with it.
            let _ended = tokio::time::timeout(FAREWELL, self.discard()).await;
        }
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
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::{
        clock::Clock,
        ledger::{Accepted, Ledger},
    };

    async fn pair() -> (TcpStream, Tracked) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let client =
            TcpStream::connect(listener.local_addr().expect("its address")).await.expect("connected");
        let (tcp, peer) = listener.accept().await.expect("accepted");
        let ledger = Ledger::new(Clock::start());
        let fd = tcp.as_raw_fd();
        let conn = ledger.enter(Accepted { peer, local: peer, fd, tls: false, tls_name: None });
        (client, Tracked::new(Transport::Plain(tcp), conn).expect("tracked"))
    }

    async fn pending(tracked: &mut Tracked) -> bool {
        let mut byte = [0];
        tokio::time::timeout(Duration::from_millis(50), tracked.read(&mut byte)).await.is_err()
    }

    #[tokio::test]
    async fn a_reader_never_gets_a_byte_of_the_next_request() {
        const NEXT: &[u8] = b"GET /next HTTP/1.1\r\n";
        let chunked = b"HEAD3\r\nabc\r\n0\r\n\r\n";
        for (request, framing) in [(&b"HEADbody"[..], Framing::Length(4)), (&chunked[..], Framing::Chunked)] {
            // However much of it was read ahead, the head at least, when the reader came.
            for ahead in 4..=request.len() + NEXT.len() {
                let (mut client, mut tracked) = pair().await;
                let all = [request, NEXT].concat();
                client.write_all(&all[..ahead]).await.expect("sent");
                while tracked.ahead().len() < ahead {
                    tracked.fill().await.expect("read");
                }
                client.write_all(&all[ahead..]).await.expect("sent");
                tracked.admit_request(4, framing);
                let mut seen = vec![0; request.len()];
                tracked.read_exact(&mut seen).await.expect("the whole request");
                assert_eq!(seen, request, "{ahead} bytes ahead");
                assert!(pending(&mut tracked).await, "{ahead} bytes ahead");
                assert_eq!(tracked.ahead(), NEXT, "{ahead} bytes ahead");
            }
        }
    }

    #[tokio::test]
    async fn a_client_that_leaves_while_it_is_answered_is_noticed() {
        let (client, mut tracked) = pair().await;
        tracked.admit_request(0, Framing::Length(0));
        assert!(pending(&mut tracked).await);
        drop(client);
        let mut byte = [0];
        assert_eq!(tracked.read(&mut byte).await.expect("an end"), 0);
    }

    #[tokio::test]
    async fn whoever_reads_ahead_is_stopped_at_a_bound() {
        let (mut client, mut tracked) = pair().await;
        tracked.admit_request(0, Framing::Length(0));
        let flood = tokio::spawn(async move { client.write_all(&vec![b'x'; 64 << 20]).await });
        assert!(pending(&mut tracked).await);
        assert!(tracked.ahead().len() < READ_AHEAD_BYTES + 1024);
        drop(tracked);
        assert!(flood.await.expect("no panic").is_err(), "the rest was never taken");
    }

    #[tokio::test]
    async fn a_kill_wakes_whoever_reads() {
        let (_client, mut tracked) = pair().await;
        let conn = tracked.conn().clone();
        let reading = tokio::spawn(async move {
            let mut byte = [0];
            tracked.read(&mut byte).await
        });
        tokio::task::yield_now().await;
        conn.close();
        let ended = tokio::time::timeout(Duration::from_secs(5), reading).await.expect("at once");
        assert_eq!(ended.expect("no panic").expect("an end"), 0);
    }
}
