//! An HTTP/1.1 exchange whose answer is read chunk by chunk: the border of a chunk is the border of a
//! frame in an exec over plain HTTP, and ordinary clients don't keep it.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    time::timeout,
};

use super::{Api, Stream, api};
use crate::error::Error;

/// An answer is held while a sprite wakes.
const HEAD_TIMEOUT: Duration = Duration::from_secs(90);
const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_HEADERS: usize = 64;
/// Larger than any frame that a server sends.
const MAX_CHUNK_BYTES: usize = 16 << 20;
/// What the rest of a refusal may take, when its head is there.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// The most of a refusal that is read.
const MAX_REFUSAL_BYTES: usize = 64 << 10;

/// The sending half: a body of unknown length.
pub(crate) struct Upload<W>(W);

/// The receiving half.
pub(crate) struct Download<R> {
    from: R,
    buffer: BytesMut,
}

/// What an answer's head says that matters here.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    chunked: bool,
    length: Option<usize>,
    retry_after: Option<u64>,
    pub(crate) accept_key: Option<String>,
}

/// Begins a POST whose body follows in chunks.
pub(crate) async fn post(
    api: &Api,
    url: &str,
) -> Result<(Upload<WriteHalf<Stream>>, Download<ReadHalf<Stream>>), Error> {
    let (stream, endpoint) = api.connect(url).await?;
    let target = url.parse::<http::Uri>().ok();
    let target = target.as_ref().and_then(|uri| uri.path_and_query()).map_or("/", |target| target.as_str());
    let head = format!(
        "POST {target} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nUser-Agent: sprite-cli/{}\r\n\
         Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
        endpoint.authority(),
        api.token().expose(),
        env!("CARGO_PKG_VERSION"),
    );
    if api.token().expose().bytes().any(|byte| byte.is_ascii_control()) {
        return Err(Error::said("the token has characters that can't be part of one"));
    }
    let (from, mut to) = tokio::io::split(stream);
    to.write_all(head.as_bytes()).await?;
    to.flush().await?;
    Ok((Upload(to), Download::new(from)))
}

impl<W: AsyncWrite + Unpin> Upload<W> {
    /// Sends a part of the body.
    pub(crate) async fn send(&mut self, part: &[u8]) -> std::io::Result<()> {
        if part.is_empty() {
            return Ok(());
        }
        self.0.write_all(format!("{:x}\r\n", part.len()).as_bytes()).await?;
        self.0.write_all(part).await?;
        self.0.write_all(b"\r\n").await?;
        self.0.flush().await
    }

    /// Ends the body.
    pub(crate) async fn end(&mut self) -> std::io::Result<()> {
        self.0.write_all(b"0\r\n\r\n").await?;
        self.0.flush().await
    }
}

impl<R> Download<R> {
    /// An answer that will come from there.
    pub(crate) fn new(from: R) -> Self {
        Self { from, buffer: BytesMut::new() }
    }

    /// The connection, and what was read of it beyond the head.
    pub(crate) fn into_parts(self) -> (R, Vec<u8>) {
        (self.from, self.buffer.to_vec())
    }
}

impl<R: AsyncRead + Unpin> Download<R> {
    async fn fill(&mut self) -> Result<(), Error> {
        if self.from.read_buf(&mut self.buffer).await? == 0 {
            return Err(Error::said("the connection broke in the middle of the answer"));
        }
        Ok(())
    }

    /// Waits for the answer's head. A refusal is read whole and becomes the error.
    pub(crate) async fn head(&mut self) -> Result<(), Error> {
        let head = self.any_head(HEAD_TIMEOUT).await?;
        match (head.status, head.chunked) {
            (200, true) => Ok(()),
            (200, false) => {
                Err(Error::said("the answer is not streamed; this server does not offer exec over HTTP"))
            }
            _ => Err(self.refusal(&head).await?),
        }
    }

    /// Waits for a head, whatever it says.
    pub(crate) async fn any_head(&mut self, limit: Duration) -> Result<Head, Error> {
        timeout(limit, self.read_head())
            .await
            .map_err(|_| Error::said(format!("no answer within {} s", limit.as_secs())))?
    }

    /// Reads the body of a refusal and makes an error of it.
    pub(crate) async fn refusal(&mut self, head: &Head) -> Result<Error, Error> {
        let body = timeout(REFUSAL_TIMEOUT, self.refusals_body(head)).await;
        // What it said is nice to have; that it refused is known.
        let body = body.ok().and_then(Result::ok).unwrap_or_default();
        Ok(api::refused(head.status, head.retry_after, &body))
    }

    async fn refusals_body(&mut self, head: &Head) -> Result<BytesMut, Error> {
        if !head.chunked {
            let length = head.length.unwrap_or(0).min(MAX_REFUSAL_BYTES);
            while self.buffer.len() < length {
                self.fill().await?;
            }
            return Ok(self.buffer.split_to(length));
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if body.len() < MAX_REFUSAL_BYTES {
                body.extend_from_slice(&chunk);
            }
        }
        Ok(body)
    }

    async fn read_head(&mut self) -> Result<Head, Error> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut head = httparse::Response::new(&mut headers);
            let parsed = head
                .parse(&self.buffer)
                .map_err(|error| Error::said(format!("the answer is no HTTP: {error}")))?;
            if let httparse::Status::Complete(length) = parsed {
                let value = |name: &str| {
                    let header = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
                    std::str::from_utf8(header.value).ok().map(str::trim)
                };
                let found = Head {
                    status: head.code.unwrap_or(0),
                    chunked: value("transfer-encoding")
                        .is_some_and(|how| how.eq_ignore_ascii_case("chunked")),
                    length: value("content-length").and_then(|length| length.parse().ok()),
                    retry_after: value("retry-after").and_then(|seconds| seconds.parse().ok()),
                    accept_key: value("sec-websocket-accept").map(str::to_owned),
                };
                self.buffer.advance(length);
                if found.status == 100 {
                    continue;
                }
                return Ok(found);
            }
            if self.buffer.len() > MAX_HEAD_BYTES {
                return Err(Error::said("the answer's head has no end"));
            }
            self.fill().await?;
        }
    }

    /// The next chunk, exactly as it was sent; `None` after the last.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let broken = || Error::said("the answer's chunks are damaged");
        let (head, size) = loop {
            match httparse::parse_chunk_size(&self.buffer).map_err(|_| broken())? {
                httparse::Status::Complete((head, size)) => break (head, size),
                httparse::Status::Partial => self.fill().await?,
            }
        };
        let size = usize::try_from(size).ok().filter(|size| *size <= MAX_CHUNK_BYTES).ok_or_else(broken)?;
        if size == 0 {
            return Ok(None);
        }
        while self.buffer.len() < head + size + 2 {
            self.fill().await?;
        }
        self.buffer.advance(head);
        let chunk = self.buffer.split_to(size).freeze();
        if self.buffer.split_to(2) != b"\r\n"[..] {
            return Err(broken());
        }
        Ok(Some(chunk))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(parts: &[&str]) -> Result<Vec<Bytes>, Error> {
        let (mut to, from) = tokio::io::duplex(1 << 16);
        for part in parts {
            to.write_all(part.as_bytes()).await?;
        }
        drop(to);
        let mut download = Download::new(from);
        download.head().await?;
        let mut chunks = Vec::new();
        while let Some(chunk) = download.chunk().await? {
            chunks.push(chunk);
        }
        Ok(chunks)
    }

    const HEAD: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

    #[tokio::test]
    async fn each_chunk_stays_one() {
        let chunks = read(&[HEAD, "3\r\n\x01hi\r\n2\r\n\x03\x07\r\n", "0\r\n\r\n"]).await.expect("reads");
        assert_eq!(chunks, [Bytes::from_static(b"\x01hi"), Bytes::from_static(b"\x03\x07")]);
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_its_words() {
        let body = r#"{"error":"not_found","message":"No such sprite."}"#;
        let head = format!("HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\n\r\n", body.len());
        assert_eq!(read(&[&head, body]).await.expect_err("refused").to_string(), "No such sprite.");
    }

    #[tokio::test]
    async fn damage_is_an_error_and_no_panic() {
        for parts in [
            &[HEAD, "3\r\n\x01hi"][..],
            &[HEAD, "zz\r\n"],
            &[HEAD, "1\r\nabc\r\n"],
            &["nonsense\r\n\r\n"],
            &[],
        ] {
            assert!(read(parts).await.is_err(), "{parts:?}");
        }
        assert!(read(&[HEAD, "ffffffffff\r\n"]).await.is_err());
    }
}
