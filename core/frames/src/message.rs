//! Text messages on an exec WebSocket, both directions. They are the same with and without a terminal.

use serde::{Deserialize, Serialize};

use crate::{Signal, TextError, from_json, lenient, signal::UnknownSignal, to_json};

/// What a client says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    /// The client's terminal has this size now.
    Resize {
        /// Columns.
        #[serde(deserialize_with = "lenient::integer")]
        cols: u16,
        /// Rows.
        #[serde(deserialize_with = "lenient::integer")]
        rows: u16,
    },
    /// Send the command a signal: see [`ClientMessage::signal`].
    Signal {
        /// Its name, with or without `SIG`, or its number.
        #[serde(deserialize_with = "lenient::text")]
        signal: String,
    },
    /// Something that a newer client says, to be ignored.
    #[serde(other)]
    Other,
}

impl ClientMessage {
    /// Reads a message.
    ///
    /// # Errors
    /// See [`TextError`].
    pub fn decode(text: &[u8]) -> Result<Self, TextError> {
        from_json(text)
    }

    /// Writes a message.
    #[must_use]
    pub fn encode(&self) -> String {
        to_json(self)
    }

    /// A message that asks for a signal.
    #[must_use]
    pub fn signal(signal: Signal) -> Self {
        Self::Signal { signal: signal.to_string() }
    }

    /// The signal that this asks for, if it asks for one.
    ///
    /// # Errors
    /// It asks for one that does not exist.
    pub fn asked_signal(&self) -> Result<Option<Signal>, UnknownSignal> {
        match self {
            Self::Signal { signal } => signal.parse().map(Some),
            Self::Resize { .. } | Self::Other => Ok(None),
        }
    }
}

/// What a server says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    /// The first message on every exec WebSocket.
    SessionInfo(SessionInfo),
    /// The command ended; all its output has come before.
    Exit(ExitCode),
    /// A process of this session began to listen.
    PortOpened(PortNotice),
    /// It stopped.
    PortClosed(PortNotice),
    /// The same as [`PortOpened`](Self::PortOpened), under the name that one client looks for.
    Port {
        /// The port.
        #[serde(deserialize_with = "lenient::integer")]
        port: u16,
    },
    /// Nothing has happened for a while. Some clients take 45 s of silence for a broken connection.
    Keepalive,
    /// Something is wrong that a person should know.
    Error {
        /// What happened and what to do.
        message: String,
    },
    /// Something that a newer server says, to be ignored.
    #[serde(other)]
    Other,
}

impl ServerMessage {
    /// Reads a message.
    ///
    /// # Errors
    /// See [`TextError`].
    pub fn decode(text: &[u8]) -> Result<Self, TextError> {
        from_json(text)
    }

    /// Writes a message.
    #[must_use]
    pub fn encode(&self) -> String {
        to_json(self)
    }
}

/// What a client is told about the session that it started or attached to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionInfo {
    /// The session's id. Text for all clients; some servers wrote a number.
    #[serde(deserialize_with = "lenient::text")]
    pub session_id: String,
    /// Program and arguments, joined by spaces.
    #[serde(default)]
    pub command: String,
    /// When it was started, in Unix seconds.
    #[serde(default, deserialize_with = "lenient::integer")]
    pub created: i64,
    /// The terminal's columns; 0 without one.
    #[serde(default, deserialize_with = "lenient::integer")]
    pub cols: u16,
    /// Its rows.
    #[serde(default, deserialize_with = "lenient::integer")]
    pub rows: u16,
    /// Whether this connection started the session.
    #[serde(default)]
    pub is_owner: bool,
    /// Whether the session has a terminal, and so how binary messages are to be read.
    #[serde(default)]
    pub tty: bool,
}

/// An exit code under both names that clients look for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "EitherCode")]
pub struct ExitCode {
    /// The code.
    pub exit_code: i32,
    code: i32,
}

#[derive(Deserialize)]
struct EitherCode {
    #[serde(default, deserialize_with = "lenient::optional_integer")]
    exit_code: Option<i32>,
    #[serde(default, deserialize_with = "lenient::optional_integer")]
    code: Option<i32>,
}

impl From<EitherCode> for ExitCode {
    fn from(either: EitherCode) -> Self {
        Self::from(either.exit_code.or(either.code).unwrap_or(0))
    }
}

impl From<i32> for ExitCode {
    fn from(code: i32) -> Self {
        Self { exit_code: code, code }
    }
}

/// A listening port, when it is opened, closed or listed.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct PortNotice {
    /// The port.
    #[serde(deserialize_with = "lenient::integer")]
    pub port: u16,
    /// A host at which the sprite's tunnel reaches it.
    #[serde(default)]
    pub address: String,
    /// A process that listens, if one was found.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "lenient::optional_integer"
    )]
    pub pid: Option<u32>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_as_clients_know_them() {
        assert_eq!(ServerMessage::Exit(7.into()).encode(), r#"{"type":"exit","exit_code":7,"code":7}"#);
        assert_eq!(ServerMessage::Keepalive.encode(), r#"{"type":"keepalive"}"#);
        let notice = PortNotice { port: 3000, address: "localhost".into(), pid: Some(5) };
        assert_eq!(
            ServerMessage::PortOpened(notice).encode(),
            r#"{"type":"port_opened","port":3000,"address":"localhost","pid":5}"#
        );
        let info = SessionInfo {
            session_id: "12".into(),
            command: "/bin/sh".into(),
            created: 5,
            cols: 80,
            rows: 24,
            is_owner: true,
            tty: true,
        };
        let text = ServerMessage::SessionInfo(info).encode();
        assert!(
            text.starts_with(r#"{"type":"session_info","session_id":"12","command":"/bin/sh""#),
            "{text}"
        );
    }

    #[test]
    fn other_spellings_are_understood() {
        let resize = ClientMessage::Resize { cols: 100, rows: 30 };
        for text in [
            r#"{"type":"resize","cols":100,"rows":30}"#,
            r#"{"type":"resize","cols":100.0,"rows":"30","more":null}"#,
            r#"{"rows":30,"cols":100,"type":"resize"}"#,
        ] {
            assert_eq!(ClientMessage::decode(text.as_bytes()), Ok(resize.clone()), "{text}");
        }
        for (text, signal) in
            [(r#"{"type":"signal","signal":"INT"}"#, 2), (r#"{"type":"signal","signal":15}"#, 15)]
        {
            let message = ClientMessage::decode(text.as_bytes()).unwrap();
            assert_eq!(message.asked_signal().unwrap().unwrap().number(), signal);
        }
        assert_eq!(ClientMessage::decode(br#"{"type":"later","x":1}"#), Ok(ClientMessage::Other));
        for text in [
            r#"{"type":"exit","exit_code":7}"#,
            r#"{"type":"exit","code":7}"#,
            r#"{"type":"exit","exit_code":7,"code":null}"#,
        ] {
            assert_eq!(ServerMessage::decode(text.as_bytes()), Ok(ServerMessage::Exit(7.into())), "{text}");
        }
        let ServerMessage::SessionInfo(info) =
            ServerMessage::decode(br#"{"type":"session_info","session_id":28}"#).unwrap()
        else {
            panic!("no session_info")
        };
        assert_eq!(info.session_id, "28");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "",
            "x",
            "[]",
            "{}",
            r#"{"type":5}"#,
            r#"{"type":"resize"}"#,
            r#"{"type":"resize","cols":-1,"rows":1}"#,
            r#"{"type":"resize","cols":70000,"rows":1}"#,
            r#"{"type":"resize","cols":1.5,"rows":1}"#,
            r#"{"type":"signal"}"#,
        ] {
            assert!(ClientMessage::decode(text.as_bytes()).is_err(), "{text}");
        }
        let long = format!(r#"{{"type":"signal","signal":"{}"}}"#, "x".repeat(crate::MAX_TEXT_BYTES));
        assert_eq!(ClientMessage::decode(long.as_bytes()), Err(TextError::TooLong));
    }

    proptest! {
        #[test]
        fn what_a_client_writes_is_read_back(cols: u16, rows: u16, number in 1i64..=64) {
            let signal = ClientMessage::signal(Signal::from_number(number).unwrap());
            for message in [ClientMessage::Resize { cols, rows }, signal] {
                prop_assert_eq!(ClientMessage::decode(message.encode().as_bytes()), Ok(message));
            }
        }

        #[test]
        fn what_a_server_writes_is_read_back(code: i32, port: u16, pid: Option<u32>, text in "\\PC*", flag: bool) {
            let notice = PortNotice { port, address: text.clone(), pid };
            let info = SessionInfo {
                session_id: text.clone(), command: text.clone(), created: code.into(),
                cols: port, rows: port, is_owner: flag, tty: !flag,
            };
            for message in [
                ServerMessage::Exit(code.into()),
                ServerMessage::PortOpened(notice.clone()),
                ServerMessage::PortClosed(notice),
                ServerMessage::SessionInfo(info),
                ServerMessage::Port { port },
                ServerMessage::Keepalive,
                ServerMessage::Error { message: text },
            ] {
                prop_assert_eq!(ServerMessage::decode(message.encode().as_bytes()), Ok(message));
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = (ClientMessage::decode(&bytes), ServerMessage::decode(&bytes));
        }
    }
}
