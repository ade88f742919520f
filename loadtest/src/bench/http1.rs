//! An HTTP/1.1 and WebSocket client that does as little as one can.

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::target::{Scheme, Target, Wire};

const BUFFER: usize = 64 * 1024;
/// Idle connections are many, and read little.
const SMALL_BUFFER: usize = 2 * 1024;
/// More than any peer adds.
const HEADERS: usize = 48;

#[derive(Clone, Copy, Debug)]
enum Length {
    Exactly(u64),
    Chunked,
    UntilClosed,
}

/// One connection and what was read from it but not yet looked at: `buffer[start..end]`.
pub(crate) struct Connection {
    wire: Box<dyn Wire>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Connection {
    pub(crate) async fn open(target: &Target, scheme: Scheme) -> anyhow::Result<Self> {
        Self::with_buffer(target, scheme, BUFFER).await
    }

    pub(crate) async fn open_small(target: &Target, scheme: Scheme) -> anyhow::Result<Self> {
        Self::with_buffer(target, scheme, SMALL_BUFFER).await
    }

    async fn with_buffer(target: &Target, scheme: Scheme, size: usize) -> anyhow::Result<Self> {
        let wire = target.connect(scheme).await?;
        Ok(Self { wire, buffer: vec![0; size].into_boxed_slice(), start: 0, end: 0 })
    }

    async fn fill(&mut self) -> anyhow::Result<usize> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            ensure!(self.end < self.buffer.len(), "a head or line is longer than {}", self.buffer.len());
        }
        let length = self.wire.read(&mut self.buffer[self.end..]).await?;
        self.end += length;
        Ok(length)
    }

    /// Sends a request and reads the whole answer: the length of its body.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<u64> {
        self.wire.write_all(request).await?;
        self.wire.flush().await?;
        self.answer().await
    }

    async fn answer(&mut self) -> anyhow::Result<u64> {
        let (status, length) = self.head().await?;
        ensure!(status == 200, "answered {status}");
        self.body(length).await
    }

    async fn head(&mut self) -> anyhow::Result<(u16, Length)> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; HEADERS];
            let mut response = httparse::Response::new(&mut headers);
            if let httparse::Status::Complete(length) = response.parse(&self.buffer[self.start..self.end])? {
                let status = response.code.context("an answer has a status")?;
                let body = length_of(response.headers)?;
                self.start += length;
                return Ok((status, body));
            }
            ensure!(self.fill().await? > 0, "closed before an answer");
        }
    }

    async fn body(&mut self, length: Length) -> anyhow::Result<u64> {
        match length {
            Length::Exactly(length) => {
                self.skip(length).await?;
                Ok(length)
            }
            Length::Chunked => {
                let mut total = 0;
                loop {
                    let size = self.chunk_size().await?;
                    // The CRLF after it, too; after the last chunk (no trailers here) that is the end.
                    self.skip(size + 2).await?;
                    total += size;
                    if size == 0 {
                        return Ok(total);
                    }
                }
            }
            Length::UntilClosed => {
                let mut total = 0;
                loop {
                    total += (self.end - self.start) as u64;
                    self.start = self.end;
                    if self.fill().await? == 0 {
                        return Ok(total);
                    }
                }
            }
        }
    }

    async fn skip(&mut self, mut length: u64) -> anyhow::Result<()> {
        loop {
            let here = length.min((self.end - self.start) as u64);
            self.start += usize::try_from(here)?;
            length -= here;
            if length == 0 {
                return Ok(());
            }
            ensure!(self.fill().await? > 0, "closed in the middle of a body");
        }
    }

    async fn chunk_size(&mut self) -> anyhow::Result<u64> {
        loop {
            match httparse::parse_chunk_size(&self.buffer[self.start..self.end]) {
                Ok(httparse::Status::Complete((length, size))) => {
                    self.start += length;
                    return Ok(size);
                }
                Ok(httparse::Status::Partial) => ensure!(self.fill().await? > 0, "closed between chunks"),
                Err(_) => bail!("not a chunk"),
            }
        }
    }

    /// Reads until the other side closes.
    pub(crate) async fn closed(&mut self) -> anyhow::Result<()> {
        self.start = self.end;
        let length = self.fill().await.unwrap_or(0);
        ensure!(length == 0, "more after the answer");
        Ok(())
    }

    /// Becomes a WebSocket.
    pub(crate) async fn upgrade(&mut self, target: &Target) -> anyhow::Result<()> {
        let more = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        self.wire.write_all(&target.head("GET", "/ws", more)).await?;
        let (status, _) = self.head().await?;
        ensure!(status == 101, "the upgrade was answered {status}");
        Ok(())
    }

    /// Sends a message and waits for its echo.
    pub(crate) async fn ping_pong(&mut self) -> anyhow::Result<()> {
        self.wire.write_all(&MESSAGE).await?;
        while self.end - self.start < ECHO {
            ensure!(self.fill().await? > 0, "closed in the middle of a message");
        }
        let echo = &self.buffer[self.start..self.end];
        ensure!(echo.len() == ECHO && echo[0] == BINARY && usize::from(echo[1]) == PAYLOAD, "not the echo");
        self.start = self.end;
        Ok(())
    }
}

const PAYLOAD: usize = 64;
/// A final frame of binary data.
const BINARY: u8 = 0x82;
/// What comes back is not masked: two bytes before the payload.
const ECHO: usize = 2 + PAYLOAD;
/// Masked with zeros, as a client may: the frame's head, the mask, the payload.
const MESSAGE: [u8; 6 + PAYLOAD] = {
    let mut message = [0; 6 + PAYLOAD];
    message[0] = BINARY;
    message[1] = 0x80 | PAYLOAD as u8;
    message
};

fn length_of(headers: &[httparse::Header<'_>]) -> anyhow::Result<Length> {
    for header in headers {
        if header.name.eq_ignore_ascii_case("content-length") {
            return Ok(Length::Exactly(std::str::from_utf8(header.value)?.trim().parse()?));
        }
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Ok(Length::Chunked);
        }
    }
    Ok(Length::UntilClosed)
}
