//! The first message each way on a tunnel's WebSocket. After them binary messages are the connection's bytes.

use serde::{Deserialize, Serialize};

use crate::{TextError, from_json, to_json};

/// The longest host that is taken, in bytes: a name's longest (RFC 1035 §2.3.4), and an address has less.
pub const MAX_HOST_BYTES: usize = 255;

/// Where a client wants to be connected to.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
pub struct TunnelRequest {
    /// Seen from inside the sprite.
    pub host: String,
    /// 1 to 65535.
    pub port: u16,
    /// Whether the client knows [`TunnelMessage::Eof`]: without it, the end of one direction ends both.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub half_close: bool,
}

/// A text message after the first ones. Others are ignored, as text was before there were any.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TunnelMessage {
    /// No more bytes come from whoever says this; it still takes them.
    Eof,
    /// Something newer.
    #[serde(other)]
    Other,
}

impl TunnelMessage {
    /// Reads a message.
    ///
    /// # Errors
    /// See [`TextError`].
    pub fn decode(text: &[u8]) -> Result<Self, TextError> {
        from_json(text)
    }

    /// Writes a message.
    #[must_use]
    pub fn encode(self) -> String {
        to_json(&self)
    }
}

/// What is wrong with a request.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TunnelError {
    /// It is no JSON object.
    #[error("Invalid JSON in initialization message")]
    Json(#[from] TextError),
    /// The port is missing or is none.
    #[error("Invalid port number")]
    Port,
    /// The host is longer than [`MAX_HOST_BYTES`] or holds what no host holds.
    #[error("Invalid host")]
    Host,
}

#[derive(Deserialize)]
struct Loose {
    #[serde(default)]
    host: Option<String>,
    #[serde(default)]
    port: serde_json::Value,
    #[serde(default)]
    half_close: bool,
}

impl TunnelRequest {
    /// Reads a request. A host that is missing is `localhost`; brackets around an IPv6 address are removed.
    ///
    /// # Errors
    /// See [`TunnelError`].
    pub fn decode(text: &[u8]) -> Result<Self, TunnelError> {
        let loose: Loose = from_json(text)?;
        let port = match &loose.port {
            serde_json::Value::Number(number) => number.as_u64(),
            serde_json::Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
        let port = port.ok_or(TunnelError::Port)?;
        let host = loose.host.as_deref().map_or("", str::trim);
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let host = if host.is_empty() { "localhost" } else { host };
        if host.len() > MAX_HOST_BYTES || host.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(TunnelError::Host);
        }
        Ok(Self { host: host.to_owned(), port, half_close: loose.half_close })
    }

    /// Writes a request.
    #[must_use]
    pub fn encode(&self) -> String {
        to_json(self)
    }
}

/// What became of a request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TunnelReply {
    /// `connected`, or anything else for a failure.
    pub status: String,
    /// What was connected to: `host:port`.
    #[serde(default)]
    pub target: String,
    /// Why not, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl TunnelReply {
    /// The connection stands.
    #[must_use]
    pub fn connected(target: impl Into<String>) -> Self {
        Self { status: "connected".into(), target: target.into(), error: None }
    }

    /// There is none.
    #[must_use]
    pub fn failed(target: impl Into<String>, error: impl Into<String>) -> Self {
        Self { status: "error".into(), target: target.into(), error: Some(error.into()) }
    }

    /// Whether the connection stands.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.status == "connected"
    }

    /// Reads a reply.
    ///
    /// # Errors
    /// See [`TextError`].
    pub fn decode(text: &[u8]) -> Result<Self, TextError> {
        from_json(text)
    }

    /// Writes a reply.
    #[must_use]
    pub fn encode(&self) -> String {
        to_json(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_understood_or_told_apart() {
        let read = |text: &str| TunnelRequest::decode(text.as_bytes()).map(|found| (found.host, found.port));
        assert_eq!(read(r#"{"host":"localhost","port":5432}"#), Ok(("localhost".into(), 5432)));
        assert_eq!(read(r#"{"port":"80","more":1}"#), Ok(("localhost".into(), 80)));
        assert_eq!(read(r#"{"host":"[::1]","port":1}"#), Ok(("::1".into(), 1)));
        for text in ["", "x", "5", "[]", r#"{"host":5,"port":1}"#] {
            assert!(matches!(read(text), Err(TunnelError::Json(_))), "{text}");
        }
        for text in [r#"{}"#, r#"{"port":0}"#, r#"{"port":65536}"#, r#"{"port":-1}"#, r#"{"port":1.5}"#] {
            assert_eq!(read(text), Err(TunnelError::Port), "{text}");
        }
        assert_eq!(read(r#"{"host":"a b","port":1}"#), Err(TunnelError::Host));
        assert_eq!(read(&format!(r#"{{"host":"{}","port":1}}"#, "x".repeat(256))), Err(TunnelError::Host));
        let request = TunnelRequest { host: "localhost".into(), port: 80, half_close: false };
        assert_eq!(request.encode(), r#"{"host":"localhost","port":80}"#, "as all servers know it");
        assert_eq!(TunnelMessage::Eof.encode(), r#"{"type":"eof"}"#);
        assert_eq!(TunnelMessage::decode(br#"{"type":"news"}"#), Ok(TunnelMessage::Other));
        assert_eq!(
            TunnelReply::connected("localhost:80").encode(),
            r#"{"status":"connected","target":"localhost:80"}"#
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            host in "[a-z0-9.:-]{1,40}", port in 1u16.., half_close: bool, text in "\\PC*",
        ) {
            let request = TunnelRequest { host, port, half_close };
            prop_assert_eq!(TunnelRequest::decode(request.encode().as_bytes()), Ok(request));
            for reply in [TunnelReply::connected(text.clone()), TunnelReply::failed(text.clone(), text)] {
                prop_assert_eq!(TunnelReply::decode(reply.encode().as_bytes()), Ok(reply));
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = (TunnelRequest::decode(&bytes), TunnelReply::decode(&bytes), TunnelMessage::decode(&bytes));
        }
    }
}
