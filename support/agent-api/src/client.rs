//! A client of the agent's API.
//!
//! Each call opens a connection of its own: over a Unix socket that costs some 50 µs, calls are rare
//! (no request to a sprite's URL makes one), and no call can be hurt by another's broken connection.

use std::{io, path::PathBuf, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, client::conn::http1, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, ReadHalf, WriteHalf},
    net::UnixStream,
    time::timeout,
};

use crate::{
    ApiError, ErrorBody,
    lease::{self, GrantorMessage, HolderMessage},
    watch::{HEARTBEAT_MS, WatchLine},
};

/// The largest answer to a plain call, in bytes.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// How long a plain call may take. A destroy waits for the sprite's processes to end.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long opening a stream may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Where an agent is.
#[derive(Clone, Debug)]
pub struct AgentClient {
    socket: PathBuf,
}

impl AgentClient {
    /// An agent behind a Unix socket on this host.
    #[must_use]
    pub const fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// `GET path`.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.call(Method::GET, path, None::<&()>).await
    }

    /// Any call with an optional JSON body and a JSON answer (`()` for an empty one).
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn call<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, ApiError> {
        self.call_within(CALL_TIMEOUT, method, path, body).await
    }

    /// As [`call`](Self::call), for what may take longer.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn call_within<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        limit: Duration,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, ApiError> {
        let body = to_json(body)?;
        let exchange = async {
            let response = self.send(method, path, body, None).await?;
            let (head, body) = response.into_parts();
            let bytes = collect(body).await?;
            if !head.status.is_success() {
                return Err(refused(head.status, &bytes));
            }
            let bytes: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
            serde_json::from_slice(bytes).map_err(|error| ApiError::Protocol(error.to_string()))
        };
        timeout(limit, exchange).await.map_err(|_| ApiError::TimedOut(limit))?
    }

    /// A call that is answered by lines, as the work goes on.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn lines<B: Serialize + Sync>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<LineStream, ApiError> {
        let open = self.send(method, path, to_json(body)?, None);
        let response = timeout(CALL_TIMEOUT, open).await.map_err(|_| ApiError::TimedOut(CALL_TIMEOUT))??;
        let status = response.status();
        if !status.is_success() {
            return Err(refused(status, &collect(response.into_body()).await?));
        }
        Ok(LineStream { body: response.into_body(), buffer: BytesMut::new() })
    }

    /// Opens the watch stream.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn watch(&self) -> Result<WatchStream, ApiError> {
        let open = self.send(Method::GET, "/v1/watch", Vec::new(), None);
        let response = timeout(OPEN_TIMEOUT, open).await.map_err(|_| ApiError::TimedOut(OPEN_TIMEOUT))??;
        if response.status() != StatusCode::OK {
            let status = response.status();
            return Err(refused(status, &collect(response.into_body()).await?));
        }
        Ok(WatchStream(LineStream { body: response.into_body(), buffer: BytesMut::new() }))
    }

    /// Opens a lease channel. The caller says [`HolderMessage::Hello`] first.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn leases(&self) -> Result<(LeaseReader, LeaseWriter), ApiError> {
        let open = async {
            let response =
                self.send(Method::POST, "/v1/leases", Vec::new(), Some(lease::UPGRADE_PROTOCOL)).await?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                let status = response.status();
                return Err(refused(status, &collect(response.into_body()).await?));
            }
            hyper::upgrade::on(response).await.map_err(unreachable)
        };
        let upgraded = timeout(OPEN_TIMEOUT, open).await.map_err(|_| ApiError::TimedOut(OPEN_TIMEOUT))??;
        let (reader, writer) = tokio::io::split(TokioIo::new(upgraded));
        Ok((LeaseReader(BufReader::new(reader)), LeaseWriter(writer)))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        upgrade: Option<&str>,
    ) -> Result<Response<Incoming>, ApiError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(ApiError::Unreachable)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
        // Ends by itself: when the answer's body (or the upgraded stream) is dropped or complete.
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "agent");
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(protocol) = upgrade {
            request = request.header(header::CONNECTION, "upgrade").header(header::UPGRADE, protocol);
        }
        let request =
            request.body(Full::new(Bytes::from(body))).map_err(|e| ApiError::Protocol(e.to_string()))?;
        sender.send_request(request).await.map_err(unreachable)
    }
}

async fn collect(body: Incoming) -> Result<Bytes, ApiError> {
    let collected = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
    Ok(collected.map_err(|error| ApiError::Unreachable(io::Error::other(error)))?.to_bytes())
}

fn unreachable(error: hyper::Error) -> ApiError {
    ApiError::Unreachable(io::Error::other(error))
}

fn refused(status: StatusCode, body: &[u8]) -> ApiError {
    let body = serde_json::from_slice::<ErrorBody>(body).unwrap_or_else(|_| ErrorBody {
        error: "unknown".into(),
        message: format!("the agent answered {status}: {}", String::from_utf8_lossy(body)),
    });
    ApiError::Answered { status: status.as_u16(), body }
}

fn to_json<B: Serialize>(body: Option<&B>) -> Result<Vec<u8>, ApiError> {
    let json = body.map(serde_json::to_vec).transpose();
    Ok(json.map_err(|error| ApiError::Protocol(error.to_string()))?.unwrap_or_default())
}

/// An answer that comes line by line. The agent says something at least every [`HEARTBEAT_MS`].
#[derive(Debug)]
pub struct LineStream {
    body: Incoming,
    buffer: BytesMut,
}

impl LineStream {
    /// The next line, without its end; `None` when the agent has ended the stream.
    ///
    /// # Errors
    /// A broken stream, or silence for three heartbeats.
    ///
    /// # Cancel safety
    /// Cancel safe: no line is lost.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let silence = Duration::from_millis(3 * HEARTBEAT_MS);
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                return Ok(Some(line.freeze()));
            }
            match timeout(silence, self.body.frame()).await.map_err(|_| ApiError::TimedOut(silence))? {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame.map_err(unreachable)?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

/// An open watch stream.
#[derive(Debug)]
pub struct WatchStream(LineStream);

impl WatchStream {
    /// The next line; `None` when the agent has ended the stream.
    ///
    /// # Errors
    /// A broken stream, silence for three heartbeats, or a line that is no event.
    ///
    /// # Cancel safety
    /// Cancel safe: no line is lost.
    pub async fn next(&mut self) -> Result<Option<WatchLine>, ApiError> {
        let Some(line) = self.0.next().await? else { return Ok(None) };
        serde_json::from_slice(&line).map(Some).map_err(|error| ApiError::Protocol(error.to_string()))
    }
}

/// The reading side of a lease channel.
#[derive(Debug)]
pub struct LeaseReader(BufReader<ReadHalf<TokioIo<Upgraded>>>);

impl LeaseReader {
    /// The next message; `None` when the agent has closed the channel.
    ///
    /// # Errors
    /// A broken channel or a line that is no message.
    ///
    /// # Cancel safety
    /// Not cancel safe in the middle of a line: read from one task, in one loop.
    pub async fn next(&mut self) -> io::Result<Option<GrantorMessage>> {
        let mut line = Vec::new();
        let length = (&mut self.0).take(lease::MAX_LINE_BYTES as u64).read_until(b'\n', &mut line).await?;
        if length == 0 {
            return Ok(None);
        }
        serde_json::from_slice(&line).map(Some).map_err(io::Error::other)
    }
}

/// The writing side of a lease channel.
#[derive(Debug)]
pub struct LeaseWriter(WriteHalf<TokioIo<Upgraded>>);

impl LeaseWriter {
    /// Sends messages, all in one write.
    ///
    /// # Errors
    /// A broken channel.
    pub async fn send(&mut self, messages: &[HolderMessage]) -> io::Result<()> {
        let mut lines = Vec::with_capacity(messages.len() * 160);
        for message in messages {
            serde_json::to_writer(&mut lines, message).map_err(io::Error::other)?;
            lines.push(b'\n');
        }
        self.0.write_all(&lines).await?;
        self.0.flush().await
    }
}
