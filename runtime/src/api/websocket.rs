//! WebSockets on the API: the handshake, limits, and the end.

use std::{io, os::fd::OwnedFd, time::Duration};

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header},
    response::Response,
};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper_util::rt::TokioIo;
use tokio::{
    io::AsyncReadExt as _,
    time::{timeout, timeout_at},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message, Utf8Bytes,
        error::CapacityError,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{
    connection::{Connection, HostStream},
    error::ApiError,
};
use crate::text::cut;

/// The longest message that is taken, in bytes. Clients send 32 KiB at a time; a terminal's paste may come
/// whole.
pub(super) const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// What is read at once, in bytes. Every socket owns so much, idle ones too.
const READ_BYTES: usize = 16 << 10;
/// How long the peer may take to answer a Close.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// How long a Close may wait for the peer to read what comes before it.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(30);

/// A request that wants to become a WebSocket.
#[derive(Debug)]
pub(super) struct Upgrade {
    upgraded: hyper::upgrade::OnUpgrade,
    connection: Connection,
    accept: String,
}

impl Upgrade {
    /// The upgrade that a request asks for; `None` if it is an ordinary one.
    ///
    /// # Errors
    /// The handshake is wrong (RFC 6455 §4.2.1).
    pub(super) fn from_request(request: &mut Request) -> Result<Option<Self>, ApiError> {
        let headers = request.headers();
        if !names(headers, header::UPGRADE, "websocket") {
            return Ok(None);
        }
        let bad = |message: &str| Err(ApiError::bad_request(message));
        if request.method() != Method::GET || request.version() < Version::HTTP_11 {
            return bad("a WebSocket begins with a GET of HTTP/1.1");
        }
        if !names(headers, header::CONNECTION, "upgrade") {
            return bad("Connection: upgrade is missing");
        }
        if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            return bad("Sec-WebSocket-Version must be 13");
        }
        let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
            return bad("Sec-WebSocket-Key is missing");
        };
        let accept = derive_accept_key(key.as_bytes());
        let connection = request.extensions().get::<Connection>().cloned();
        let connection =
            connection.ok_or_else(|| ApiError::internal("this connection can't be upgraded".into()))?;
        Ok(Some(Self { upgraded: hyper::upgrade::on(request), connection, accept }))
    }

    /// Accepts it. `serve` gets the socket; the head of the answer leaves with the first message that it sends,
    /// or when it is released. Extensions that the client offers are not taken: compression loses frames in
    /// clients that still inflate when the connection closes.
    pub(super) fn accept<F>(
        self,
        headers: &[(HeaderName, HeaderValue)],
        serve: impl FnOnce(Socket) -> F + Send + 'static,
    ) -> Response
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let upgraded = self.upgraded;
        self.connection.continue_with(async move {
            // The client may have left.
            let Ok(upgraded) = upgraded.await else { return };
            let Ok(parts) = upgraded.downcast::<TokioIo<HostStream>>() else { return };
            let Ok(socket) = Socket::new(parts.io.into_inner(), parts.read_buf.into()).await else { return };
            serve(socket).await;
        });
        let mut response = Response::default();
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let fields = response.headers_mut();
        fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        if let Ok(accept) = HeaderValue::try_from(self.accept) {
            fields.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        fields.extend(headers.iter().cloned());
        response
    }
}

/// Whether one of a header's comma-separated values is `word`, in any case.
fn names(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(word))
}

/// An open WebSocket, the server's side.
#[derive(Debug)]
pub(super) struct Socket {
    stream: WebSocketStream<HostStream>,
    hang_up: HangUp,
}

/// How a socket is read and written at the same time.
pub(super) type Source = futures_util::stream::SplitStream<WebSocketStream<HostStream>>;
/// See [`Source`].
pub(super) type Sink = futures_util::stream::SplitSink<WebSocketStream<HostStream>, Message>;

impl Socket {
    async fn new(stream: HostStream, read: Vec<u8>) -> io::Result<Self> {
        use std::os::fd::AsFd as _;
        let hang_up = HangUp(stream.as_fd().try_clone_to_owned()?);
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let stream = WebSocketStream::from_partially_read(stream, read, Role::Server, Some(config)).await;
        Ok(Self { stream, hang_up })
    }

    /// Sends the head of the answer now, for protocols in which the client speaks first.
    pub(super) async fn release_head(&mut self) -> io::Result<()> {
        self.stream.get_mut().release().await
    }

    pub(super) fn split(self) -> (Sink, Source, HangUp) {
        let (sink, source) = self.stream.split();
        (sink, source, self.hang_up)
    }

    #[expect(dead_code, reason = "the tunnel comes next")]
    /// See [`close`].
    pub(super) async fn close(self, code: u16, reason: &str) {
        let (sink, source, _) = self.split();
        close(sink, source, code, reason).await;
    }
}

/// Tells whether the peer has hung up although what it sent is not read.
#[derive(Debug)]
pub(super) struct HangUp(OwnedFd);

impl HangUp {
    pub(super) fn has_come(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd as _;
        let asked = PollFlags::from_bits_retain(libc::POLLRDHUP);
        let mut polled = [PollFd::new(self.0.as_fd(), asked)];
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }
}

/// The message of a Close.
pub(super) fn close_message(code: u16, reason: &str) -> Message {
    // Control frames hold 125 bytes, two of which are the code (RFC 6455 §5.5).
    let reason = Utf8Bytes::from(cut(reason, 123));
    Message::Close(Some(CloseFrame { code: CloseCode::from(code), reason }))
}

/// Sends a Close and waits a little for the answer, so that the peer reads everything before the connection
/// goes.
pub(super) async fn close(mut sink: Sink, source: Source, code: u16, reason: &str) {
    // The peer may be gone, or read nothing any more.
    if let Ok(Ok(())) = timeout(LAST_WORDS_LIMIT, sink.send(close_message(code, reason))).await {
        await_close(sink, source).await;
    }
}

/// Waits for the peer's Close, or its end, after ours. What it still sends is dropped.
pub(super) async fn await_close(sink: Sink, mut source: Source) {
    let deadline = tokio::time::Instant::now() + CLOSE_LIMIT;
    while let Ok(Some(Ok(message))) = timeout_at(deadline, source.next()).await {
        if message.is_close() {
            return;
        }
    }
    // After a message that was too long there are no frames any more, only bytes.
    if let Ok(stream) = source.reunite(sink) {
        let mut stream = stream;
        let mut dropped = vec![0; READ_BYTES];
        while let Ok(Ok(1..)) = timeout_at(deadline, stream.get_mut().read(&mut dropped)).await {}
    }
}

/// The Close that a broken message deserves: code and reason. `None` if the connection itself is gone.
pub(super) fn refusal(error: &Error) -> Option<(u16, String)> {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { size, max_size }) => {
            Some((1009, format!("a message of {size} bytes; {max_size} are taken")))
        }
        Error::Capacity(_) => Some((1009, "too long".into())),
        Error::Utf8(_) => Some((1007, "a text message that is not UTF-8".into())),
        Error::Protocol(
            tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        ) => None,
        Error::Protocol(error) => Some((1002, error.to_string())),
        _ => None,
    }
}
