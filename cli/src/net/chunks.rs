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
/// The most of a refusal that is read.
const MAX_REFUSAL_BYTES: usize = 64 << 10;

/// The sending half: a body of unknown length.
pub(crate) struct Upload<W>(W);

/// The receiving half.
pub(crate) struct Download<R> {
    from: R,
    buffer: BytesMut,
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
    Ok((Upload(to), Download { from, buffer: BytesMut::new() }))
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

impl<R: AsyncRead + Unpin> Download<R> {
    async fn fill(&mut self) -> Result<(), Error> {
        if self.from.read_buf(&mut self.buffer).await? == 0 {
            return Err(Error::said("the connection broke in the middle of the answer"));
        }
        Ok(())
    }

    /// Waits for the answer's head. A refusal is read whole and becomes the error.
    pub(crate) async fn head(&mut self) -> Result<(), Error> {
        let (status, chunked, length, retry_after) = timeout(HEAD_TIMEOUT, self.read_head())
            .await
            .map_err(|_| Error::said(format!("no answer within {} s", HEAD_TIMEOUT.as_secs())))??;
        if status == 200 && chunked {
            return Ok(());
        }
        let mut body = BytesMut::new();
        if chunked {
            while let Some(chunk) = self.chunk().await? {
                if body.len() < MAX_REFUSAL_BYTES {
                    body.extend_from_slice(&chunk);
                }
            }
        } else {
            let length = length.unwrap_or(0).min(MAX_REFUSAL_BYTES);
            while self.buffer.len() < length {
                self.fill().await?;
            }
            body = self.buffer.split_to(length);
        }
        if status == 200 {
            return Err(Error::said("the answer is not streamed; this server does not offer exec over HTTP"));
        }
        Err(api::refused(status, retry_after, &body))
    }

    async fn read_head(&mut self) -> Result<(u16, bool, Option<usize>, Option<u64>), Error> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut head = httparse::Response::new(&mut headers);
            let parsed = head
                .parse(&self.buffer)
                .map_err(|error| Error::said(format!("the answer is no HTTP: {error}")))?;
            if let httparse::Status::Complete(length) = parsed {
                let status = head.code.unwrap_or(0);
                let value = |name: &str| {
                    let header = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
                    std::str::from_utf8(header.value).ok().map(str::trim)
                };
                let chunked =
                    value("transfer-encoding").is_some_and(|how| how.eq_ignore_ascii_case("chunked"));
                let length_of_body = value("content-length").and_then(|length| length.parse().ok());
                let retry_after = value("retry-after").and_then(|seconds| seconds.parse().ok());
                self.buffer.advance(length);
                if status == 100 {
                    continue;
                }
                return Ok((status, chunked, length_of_body, retry_after));
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
        let mut download = Download { from, buffer: BytesMut::new() };
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
