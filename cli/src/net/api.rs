//! The API's client.

use std::{path::PathBuf, sync::Arc, time::Duration};

use reqwest::{Client, Method, Response};
use rustls::ClientConfig;
use serde_json::Value;

use super::stream::{self, CONNECT_TIMEOUT, Endpoint, Stream};
use crate::{
    config::Secret,
    error::{Error, root},
};

/// A wake from cold fits into this several times over.
const CALL_TIMEOUT: Duration = Duration::from_secs(90);
/// The most of an error's body that is shown.
const MAX_ERROR_BYTES: usize = 16 << 10;

const USER_AGENT: &str = concat!("sprite-cli/", env!("CARGO_PKG_VERSION"));

/// What a call sends.
pub(crate) enum Body {
    Nothing,
    Json(Value),
    /// As it comes, with this length if it is known.
    Stream(reqwest::Body, Option<u64>),
}

impl From<Option<Value>> for Body {
    fn from(value: Option<Value>) -> Self {
        value.map_or(Self::Nothing, Self::Json)
    }
}

/// One API, one token.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) base: String,
    /// A server that is one sprite's own.
    sprite_base: Option<String>,
    token: Secret,
    client: Client,
    tls: Option<Arc<ClientConfig>>,
    cacert: Option<PathBuf>,
    debug: bool,
}

impl Api {
    pub(crate) fn new(
        base: &str,
        sprite_base: Option<String>,
        token: Secret,
        cacert: Option<PathBuf>,
        debug: bool,
    ) -> Result<Self, Error> {
        let mut ends = vec![Endpoint::of(base)?];
        if let Some(own) = &sprite_base {
            ends.push(Endpoint::of(own)?);
        }
        // Reading the system's roots takes longer than a call to this machine.
        let tls = if ends.iter().any(|end| end.tls) { Some(stream::trust(cacert.as_deref())?) } else { None };
        let mut client =
            Client::builder().http1_only().connect_timeout(CONNECT_TIMEOUT).user_agent(USER_AGENT);
        for end in ends.iter().filter(|end| end.is_this_machine()) {
            client = client.resolve(&end.host, (std::net::Ipv4Addr::LOCALHOST, 0).into());
        }
        if let Some(tls) = &tls {
            client = client.use_preconfigured_tls(tls.clone());
        }
        let client = client.build().map_err(|error| Error::said(root(&error)))?;
        let tls = tls.map(Arc::new);
        Ok(Self { base: base.to_owned(), sprite_base, token, client, tls, cacert, debug })
    }

    /// The token, for the one place that hands it to curl.
    pub(crate) const fn token(&self) -> &Secret {
        &self.token
    }

    /// The private CA that was named.
    pub(crate) const fn cacert(&self) -> Option<&PathBuf> {
        self.cacert.as_ref()
    }

    /// Says something under `--debug`.
    pub(crate) fn trace(&self, text: impl FnOnce() -> String) {
        if self.debug {
            eprintln!("sprite: debug: {}", text());
        }
    }

    /// The URL of something inside a sprite; `path` begins with a slash.
    pub(crate) fn inside(&self, sprite: &str, path: &str) -> String {
        match &self.sprite_base {
            Some(own) => format!("{own}{path}"),
            None => format!("{}/v1/sprites/{}{path}", self.base, segment(sprite)),
        }
    }

    /// The URL of something else of the API.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// The URL of a sprite itself.
    pub(crate) fn sprite(&self, sprite: &str) -> String {
        format!("{}/v1/sprites/{}", self.base, segment(sprite))
    }

    fn unreachable(&self, error: &reqwest::Error) -> Error {
        Error::Unreachable { api: self.base.clone(), reason: root(error) }
    }

    /// Makes a call and returns its successful answer, whose body is still to come.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: impl AsRef<str>,
        accept: Option<&str>,
        body: Body,
        limit: Option<Duration>,
    ) -> Result<Response, Error> {
        let (url, began) = (url.as_ref(), std::time::Instant::now());
        let mut request = self.client.request(method.clone(), url).bearer_auth(self.token.expose());
        if let Some(limit) = limit {
            request = request.timeout(limit);
        }
        if let Some(accept) = accept {
            request = request.header(http::header::ACCEPT, accept);
        }
        request = match body {
            Body::Nothing => request,
            Body::Json(value) => request.json(&value),
            Body::Stream(body, None) => request.body(body),
            Body::Stream(body, Some(length)) => {
                request.header(http::header::CONTENT_LENGTH, length).body(body)
            }
        };
        let answer = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = answer.status();
        self.trace(|| {
            let id = answer.headers().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or("-");
            format!("{method} {url}: {status} in {} ms, request {id}", began.elapsed().as_millis())
        });
        if status.is_success() {
            return Ok(answer);
        }
        let retry_after = answer
            .headers()
            .get(http::header::RETRY_AFTER)
            .and_then(|seconds| seconds.to_str().ok()?.parse().ok());
        let text = answer.text().await.unwrap_or_default();
        Err(refused(status.as_u16(), retry_after, text.as_bytes()))
    }

    /// Makes a call; `Null` for an empty answer.
    pub(crate) async fn call(
        &self,
        method: Method,
        url: impl AsRef<str>,
        body: Option<Value>,
    ) -> Result<Value, Error> {
        self.call_within(CALL_TIMEOUT, method, url, body).await
    }

    /// The same, for what may take longer.
    pub(crate) async fn call_within(
        &self,
        limit: Duration,
        method: Method,
        url: impl AsRef<str>,
        body: Option<Value>,
    ) -> Result<Value, Error> {
        let answer = self.send(method, url, None, body.into(), Some(limit)).await?;
        let text = answer.text().await.map_err(|error| self.unreachable(&error))?;
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// Makes a call whose answer is a line of JSON for each event, and shows each to `on`. A call without
    /// a limit goes on for as long as the server likes.
    pub(crate) async fn events(
        &self,
        method: Method,
        url: impl AsRef<str>,
        body: Body,
        limit: Option<Duration>,
        mut on: impl FnMut(Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut answer = self.send(method, url, Some("application/x-ndjson"), body, limit).await?;
        let mut pending = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(|error| self.unreachable(&error))? {
            pending.extend_from_slice(&part);
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                if let Ok(event) = serde_json::from_slice(&line) {
                    on(event)?;
                }
            }
        }
        match serde_json::from_slice(&pending) {
            Ok(event) => on(event),
            Err(_) => Ok(()),
        }
    }

    /// A connection of our own to where a URL is.
    pub(crate) async fn connect(&self, url: &str) -> Result<(Stream, Endpoint), Error> {
        let endpoint = Endpoint::of(url)?;
        let tls = self.tls.as_ref().filter(|_| endpoint.tls);
        let stream = stream::connect(&endpoint, tls)
            .await
            .map_err(|reason| Error::Unreachable { api: self.base.clone(), reason })?;
        Ok((stream, endpoint))
    }
}

/// Makes an error of an answer that is none of success: JSON with a message, or plain text.
pub(crate) fn refused(status: u16, retry_after: Option<u64>, body: &[u8]) -> Error {
    let value: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let code = value["code"].as_str().or_else(|| value["error"].as_str()).unwrap_or_default().to_owned();
    let text = || {
        let text = String::from_utf8_lossy(&body[..body.len().min(MAX_ERROR_BYTES)]).trim().to_owned();
        (!text.is_empty() && value.is_null() && !text.starts_with('<')).then_some(text)
    };
    let message = value["message"]
        .as_str()
        .or_else(|| value["error"].as_str())
        .map(str::to_owned)
        .or_else(text)
        .unwrap_or_else(|| format!("the API answered {status}"));
    match status {
        401 => Error::Unauthorized { message },
        _ => Error::Refused { status, code, message, retry_after },
    }
}

/// A name as one path segment or query value. What is no name at all is for the API to refuse.
pub(crate) fn segment(name: &str) -> String {
    name.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' | b'.' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_every_form_give_their_message() {
        let said = |body: &str| refused(409, None, body.as_bytes()).to_string();
        assert_eq!(said(r#"{"error":"name_taken","message":"It is taken."}"#), "It is taken.");
        assert_eq!(said(r#"{"error":"no such file","code":"ENOENT"}"#), "no such file");
        assert_eq!(said("session not found: 7\n"), "session not found: 7");
        assert_eq!(said("<html>"), "the API answered 409");
        assert_eq!(said(""), "the API answered 409");
    }

    #[test]
    fn nothing_shows_a_token() {
        let api = Api::new("http://a", None, Secret::new("acme/x/1/verysecret"), None, true).expect("an API");
        assert!(!format!("{api:?}").contains("verysecret"));
    }
}
