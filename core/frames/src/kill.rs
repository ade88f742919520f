//! Ending a session: the request in both its forms, and the lines of the streamed answer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Signal, TextError, duration, from_json, query, signal::UnknownSignal, to_json};

/// How long a session has to obey before it is killed, if the client does not say.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a client asks for, by query (`?signal=TERM&timeout=5s`) or by a JSON body
/// (`{"signal":"SIGTERM","timeout":5}`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KillRequest {
    /// The signal to send first.
    pub signal: Option<Signal>,
    /// After this the session is killed; zero means that it is not, and that nobody waits.
    pub timeout: Option<Duration>,
}

/// What is wrong with a request.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KillError {
    /// See [`UnknownSignal`].
    #[error(transparent)]
    Signal(#[from] UnknownSignal),
    /// The timeout is no duration.
    #[error("timeout must be a duration such as 10s, not {0:?}")]
    Timeout(String),
    /// The body is no JSON object.
    #[error("the body must be a JSON object with a signal and a timeout: {0}")]
    Body(#[from] TextError),
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    signal: Option<Scalar>,
    #[serde(default)]
    timeout: Option<Scalar>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Number(f64),
    Text(String),
}

impl KillRequest {
    /// Reads both forms; what the body says wins.
    ///
    /// # Errors
    /// See [`KillError`].
    pub fn decode(query: &str, body: &[u8]) -> Result<Self, KillError> {
        let mut request = Self::default();
        if let Some(text) = query::text(query, "signal") {
            request.signal = Some(text.parse()?);
        }
        if let Some(text) = query::text(query, "timeout") {
            request.timeout = Some(timeout(&text)?);
        }
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(request);
        }
        let body: Option<Body> = from_json(body)?;
        let Some(body) = body else { return Ok(request) };
        match body.signal {
            Some(Scalar::Text(text)) if !text.is_empty() => request.signal = Some(text.parse()?),
            Some(Scalar::Number(number)) => request.signal = Some((number as i64).to_string().parse()?),
            Some(Scalar::Text(_)) | None => {}
        }
        match body.timeout {
            Some(Scalar::Text(text)) if !text.is_empty() => request.timeout = Some(timeout(&text)?),
            Some(Scalar::Number(seconds)) => request.timeout = Some(from_seconds(seconds)?),
            Some(Scalar::Text(_)) | None => {}
        }
        Ok(request)
    }

    /// Writes the form that all servers know.
    #[must_use]
    pub fn to_query(self) -> String {
        let mut query = String::new();
        if let Some(signal) = self.signal {
            query::push(&mut query, "signal", signal.to_string());
        }
        if let Some(timeout) = self.timeout {
            query::push(&mut query, "timeout", duration::format(timeout));
        }
        query
    }
}

fn timeout(text: &str) -> Result<Duration, KillError> {
    let bare_seconds = || text.parse().ok().and_then(|seconds| from_seconds(seconds).ok());
    duration::parse(text)
        .or_else(bare_seconds)
        .ok_or_else(|| KillError::Timeout(text.chars().take(80).collect()))
}

fn from_seconds(seconds: f64) -> Result<Duration, KillError> {
    let duration = Duration::try_from_secs_f64(seconds).ok().filter(|found| *found <= duration::LONGEST);
    duration.ok_or_else(|| KillError::Timeout(seconds.to_string()))
}

/// A line of the answer. Clients look for the text in `message`, `data` or `error`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KillEvent {
    /// What happened.
    #[serde(rename = "type")]
    pub kind: KillEventKind,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The same text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// The same text, if it is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The signal that was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// The process group that it was sent to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// How the session ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

/// Kinds of [`KillEvent`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KillEventKind {
    /// A signal was sent.
    Signal,
    /// The session did not obey in time.
    Timeout,
    /// It ended by itself.
    Exited,
    /// It was killed.
    Killed,
    /// It could not be ended.
    Error,
    /// The last line.
    Complete,
    /// Something newer.
    #[default]
    #[serde(other)]
    Other,
}

impl KillEvent {
    /// A line with a text for people.
    #[must_use]
    pub fn new(kind: KillEventKind, text: impl Into<String>) -> Self {
        let text = text.into();
        let error = (kind == KillEventKind::Error).then(|| text.clone());
        Self { kind, message: Some(text.clone()), data: Some(text), error, ..Self::default() }
    }

    /// Reads a line.
    ///
    /// # Errors
    /// See [`TextError`].
    pub fn decode(line: &[u8]) -> Result<Self, TextError> {
        from_json(line)
    }

    /// Writes a line, with its end.
    #[must_use]
    pub fn encode(&self) -> String {
        to_json(self) + "\n"
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_forms_are_understood_and_the_body_wins() {
        let request = |query: &str, body: &str| {
            let found = KillRequest::decode(query, body.as_bytes()).unwrap();
            (found.signal.map(Signal::number), found.timeout.map(|timeout| timeout.as_millis()))
        };
        assert_eq!(request("", ""), (None, None));
        assert_eq!(request("signal=SIGTERM&timeout=0s", " \n"), (Some(15), Some(0)));
        assert_eq!(
            request("signal=INT&timeout=5s", r#"{"signal":"KILL","timeout":2.5}"#),
            (Some(9), Some(2500))
        );
        assert_eq!(request("", r#"{"signal":2,"timeout":"1m"}"#), (Some(2), Some(60_000)));
        assert_eq!(request("timeout=3", r#"{"signal":"","timeout":null}"#), (None, Some(3000)));
        assert_eq!(request("signal=hup", "null"), (Some(1), None));
        for (query, body) in [
            ("signal=NOPE", ""),
            ("timeout=soon", ""),
            ("", "[1]"),
            ("", "x"),
            ("", r#"{"signal":999}"#),
            ("", r#"{"timeout":-1}"#),
            ("", r#"{"timeout":1e300}"#),
            ("", r#"{"signal":[]}"#),
        ] {
            assert!(KillRequest::decode(query, body.as_bytes()).is_err(), "{query} {body}");
        }
    }

    #[test]
    fn lines_are_as_clients_know_them() {
        let line = KillEvent {
            signal: Some("SIGTERM".into()),
            pid: Some(7),
            ..KillEvent::new(KillEventKind::Signal, "Signaling SIGTERM to process group 7")
        };
        assert_eq!(
            line.encode(),
            "{\"type\":\"signal\",\"message\":\"Signaling SIGTERM to process group 7\",\
             \"data\":\"Signaling SIGTERM to process group 7\",\"signal\":\"SIGTERM\",\"pid\":7}\n"
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(number in prop::option::of(1i64..=64), seconds: Option<u32>, text in "\\PC*") {
            let request = KillRequest {
                signal: number.and_then(Signal::from_number),
                timeout: seconds.map(|seconds| Duration::from_secs(seconds.into()).min(duration::LONGEST)),
            };
            prop_assert_eq!(KillRequest::decode(&request.to_query(), b""), Ok(request));
            let event = KillEvent { exit_code: Some(3), ..KillEvent::new(KillEventKind::Error, text) };
            prop_assert_eq!(KillEvent::decode(event.encode().as_bytes()), Ok(event));
        }

        #[test]
        fn any_bytes_are_survived(query in "\\PC*", bytes: Vec<u8>) {
            let _ = (KillRequest::decode(&query, &bytes), KillEvent::decode(&bytes));
        }
    }
}
