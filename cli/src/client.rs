//! The API's client.

use std::time::Duration;

use reqwest::{Client, Method, StatusCode};
use serde_json::Value;

/// A wake from cold fits into this several times over.
const CALL_TIMEOUT: Duration = Duration::from_secs(90);

/// Why a command failed, said to the person who typed it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "could not reach {api}: {reason}\nIs it running? `make run` starts it; --api or SPRITES_API_URL says where it is."
    )]
    Unreachable { api: String, reason: String },
    #[error(
        "{message}\nSet SPRITES_TOKEN (or --token) to a token of the organization; `vmm-agent token mint` makes one."
    )]
    Unauthorized { message: String },
    #[error("{message}")]
    Refused { message: String },
    #[error("{0}")]
    Usage(String),
}

/// One API, one token.
#[derive(Debug)]
pub(crate) struct Api {
    base: String,
    token: String,
    client: Client,
}

impl Api {
    pub(crate) fn new(base: &str, token: &str) -> Result<Self, Error> {
        let client = Client::builder()
            .timeout(CALL_TIMEOUT)
            .user_agent(concat!("sprite-cli/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Error::Usage(error.to_string()))?;
        Ok(Self { base: base.trim_end_matches('/').to_owned(), token: token.to_owned(), client })
    }

    /// Makes a call; `Null` for an empty answer.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, Error> {
        let mut request =
            self.client.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let unreachable =
            |error: reqwest::Error| Error::Unreachable { api: self.base.clone(), reason: root(&error) };
        let answer = request.send().await.map_err(unreachable)?;
        let status = answer.status();
        let text = answer.text().await.map_err(unreachable)?;
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        if status.is_success() {
            return Ok(value);
        }
        let message =
            value["message"].as_str().map_or_else(|| format!("the API answered {status}"), str::to_owned);
        Err(match status {
            StatusCode::UNAUTHORIZED => Error::Unauthorized { message },
            _ => Error::Refused { message },
        })
    }
}

/// The innermost cause: "connection refused" says more than "error sending request".
fn root(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
