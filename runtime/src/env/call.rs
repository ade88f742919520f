//! Calls to the management socket.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response,
    body::Incoming,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::UnixStream, time::timeout};

/// How long the runtime may take to begin its answer: that about a checkpoint comes when it is there.
const ANSWER_LIMIT: Duration = Duration::from_secs(610);

/// The management socket.
#[derive(Debug)]
pub(super) struct Socket(PathBuf);

impl Socket {
    pub(super) fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The whole answer, as JSON.
    pub(super) async fn json(&self, method: &str, path: &str, body: Option<String>) -> anyhow::Result<Value> {
        let answer = self.call(method, path, body).await?;
        let bytes = answer.into_body().collect().await.context("the answer broke off")?.to_bytes();
        serde_json::from_slice(&bytes).context("the answer is no JSON")
    }

    /// Prints the answer as it comes.
    pub(super) async fn stream(&self, method: &str, path: &str, body: Option<String>) -> anyhow::Result<()> {
        let mut answer = self.call(method, path, body).await?.into_body();
        let mut out = std::io::stdout();
        while let Some(frame) = answer.frame().await {
            if let Ok(bytes) = frame.context("the answer broke off")?.into_data() {
                out.write_all(&bytes)?;
                out.flush()?;
            }
        }
        Ok(())
    }

    async fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<String>,
    ) -> anyhow::Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "sprite")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .with_context(|| format!("{method} {path:?} can't be asked"))?;
        let stream = UnixStream::connect(&self.0).await.with_context(|| {
            format!("could not reach {}; it is there in a sprite, for root", self.0.display())
        })?;
        let exchange = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            // It ends with the answer, and this program soon after.
            tokio::spawn(connection);
            sender.send_request(request).await
        };
        let answer = timeout(ANSWER_LIMIT, exchange).await.context("the runtime does not answer")??;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let bytes = answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        match serde_json::from_slice::<Value>(&bytes) {
            Ok(value) if value["message"].is_string() => {
                bail!("{}", value["message"].as_str().unwrap_or_default())
            }
            Ok(_) | Err(_) => bail!("{status}: {}", String::from_utf8_lossy(&bytes)),
        }
    }
}

/// A name as one segment of a path.
pub(super) fn segment(name: &str) -> String {
    name.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => text.push(byte.into()),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_segment() {
        assert_eq!(segment("web-1"), "web-1");
        assert_eq!(segment("a/../b c"), "a%2F..%2Fb%20c");
    }
}
