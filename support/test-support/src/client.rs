//! Clients for tests: a comfortable one and a raw one.

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: reqwest::header::HeaderMap,
    /// Its body, as text.
    pub body: String,
}

impl Answer {
    /// Reads an answer to its end.
    ///
    /// # Errors
    /// It breaks off.
    pub async fn read(answer: reqwest::Response) -> anyhow::Result<Self> {
        Ok(Self {
            status: answer.status().as_u16(),
            headers: answer.headers().clone(),
            body: answer.text().await?,
        })
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// It is not JSON.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_str(&self.body).with_context(|| format!("not JSON: {:?}", self.body))
    }

    /// A header's value; empty if it is absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// A TCP connection on which a test writes exactly the bytes it means.
#[derive(Debug)]
pub struct Raw {
    /// The connection.
    pub stream: TcpStream,
    read: Vec<u8>,
}

impl Raw {
    /// Connects to a port of this machine.
    ///
    /// # Errors
    /// Refused.
    pub async fn connect(port: u16) -> anyhow::Result<Self> {
        Ok(Self::over(TcpStream::connect(("127.0.0.1", port)).await?))
    }

    /// Takes a connection over.
    #[must_use]
    pub const fn over(stream: TcpStream) -> Self {
        Self { stream, read: Vec::new() }
    }

    async fn fill(&mut self) -> std::io::Result<usize> {
        self.read.reserve(16 * 1024);
        self.stream.read_buf(&mut self.read).await
    }

    /// Writes.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> anyhow::Result<()> {
        Ok(self.stream.write_all(bytes.as_ref()).await?)
    }

    /// Reads until what was read contains `mark` and returns everything up to its end.
    ///
    /// # Errors
    /// The connection ends first, or the limit passes.
    pub async fn until(&mut self, mark: &str, limit: Duration) -> anyhow::Result<String> {
        let work = async {
            loop {
                if let Some(at) = find(&self.read, mark.as_bytes()) {
                    let rest = self.read.split_off(at + mark.len());
                    let taken = std::mem::replace(&mut self.read, rest);
                    return Ok(String::from_utf8_lossy(&taken).into_owned());
                }
                let length = self.fill().await?;
                ensure!(length > 0, "closed after {:?}", String::from_utf8_lossy(&self.read));
            }
        };
        timeout(limit, work).await.with_context(|| format!("no {mark:?} within {limit:?}"))?
    }

    /// One answer with a `Content-Length`: its head and its body.
    ///
    /// # Errors
    /// See [`Raw::until`].
    pub async fn answer(&mut self, limit: Duration) -> anyhow::Result<(String, String)> {
        let head = self.until("\r\n\r\n", limit).await?;
        let length = head
            .lines()
            .find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
            })
            .with_context(|| format!("no content-length in {head:?}"))?;
        let work = async {
            while self.read.len() < length {
                ensure!(self.fill().await? > 0, "closed in the middle of a body");
            }
            let rest = self.read.split_off(length);
            let body = std::mem::replace(&mut self.read, rest);
            Ok(String::from_utf8_lossy(&body).into_owned())
        };
        let body = timeout(limit, work).await.context("the body did not come")??;
        Ok((head, body))
    }

    /// Waits until the other side closes (or resets) and returns what came before.
    ///
    /// # Errors
    /// It does not within the limit.
    pub async fn closed(&mut self, limit: Duration) -> anyhow::Result<String> {
        let work = async {
            while self.fill().await.is_ok_and(|length| length > 0) {}
            String::from_utf8_lossy(&self.read).into_owned()
        };
        timeout(limit, work).await.with_context(|| format!("still open after {limit:?}"))
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
