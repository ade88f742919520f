//! A client of exec sockets.

use std::time::Duration;

use frames::{FromClient, FromServer, ServerMessage, SessionInfo};
use futures_util::{SinkExt as _, StreamExt as _};
use runtime_api::{Dialed, Target};
use tokio::{net::UnixStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, handshake::client::Response, protocol::CloseFrame},
};

use crate::harness::{LIMIT, Sprite};

/// An open exec socket.
pub(crate) struct Client {
    pub(crate) socket: WebSocketStream<UnixStream>,
    pub(crate) response: Response,
}

/// All that a command said until its socket was closed.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Binary messages of a terminal.
    pub(crate) terminal: Vec<u8>,
    /// What came, in order: `text:TYPE`, `stdout`, `stderr`, `exit`, `close`.
    pub(crate) order: Vec<String>,
    pub(crate) info: Option<SessionInfo>,
    pub(crate) exit_text: Option<i32>,
    pub(crate) exit_frame: Option<u8>,
    pub(crate) close: Option<CloseFrame>,
}

impl Said {
    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
    pub(crate) fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
    /// What a terminal shows, with the ends of lines of a file.
    pub(crate) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.terminal).replace("\r\n", "\n")
    }
    pub(crate) fn close_code(&self) -> Option<u16> {
        self.close.as_ref().map(|close| close.code.into())
    }
}

impl Sprite {
    /// Opens a WebSocket on the API.
    pub(crate) async fn websocket(&self, path: &str) -> Result<Client, Error> {
        let Dialed::Unix(stream) = self.dial(Target::Api, 0).await.unwrap() else {
            panic!("not the runtime")
        };
        let url = format!("ws://sprite{path}");
        let (socket, response) = timeout(LIMIT, client_async(url, stream)).await.unwrap()?;
        Ok(Client { socket, response })
    }

    /// Status and body of a WebSocket that is refused.
    pub(crate) async fn refused(&self, path: &str) -> (u16, String) {
        match self.websocket(path).await {
            Err(Error::Http(response)) => {
                let status = response.status().as_u16();
                let body = response.into_body().unwrap_or_default();
                (status, String::from_utf8(body).unwrap())
            }
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{path} was accepted"),
        }
    }

    /// Runs a shell script in the root directory.
    pub(crate) async fn sh(&self, script: &str, more: &str) -> Client {
        let mut query = String::new();
        for argument in ["sh", "-c", script] {
            frames::query::push(&mut query, "cmd", argument);
        }
        self.websocket(&format!("/exec?{query}&dir=/&{more}")).await.unwrap()
    }
}

impl Client {
    pub(crate) async fn send(&mut self, message: Message) {
        timeout(LIMIT, self.socket.send(message)).await.unwrap().unwrap();
    }

    pub(crate) async fn stdin(&mut self, bytes: &[u8]) {
        self.send(Message::Binary(FromClient::Stdin(bytes).encode().into())).await;
    }

    pub(crate) async fn stdin_eof(&mut self) {
        self.send(Message::Binary(FromClient::StdinEof.encode().into())).await;
    }

    pub(crate) async fn text(&mut self, text: &str) {
        self.send(Message::Text(text.to_owned().into())).await;
    }

    /// Types on a terminal.
    pub(crate) async fn keys(&mut self, keys: &str) {
        self.send(Message::Binary(keys.as_bytes().to_vec().into())).await;
    }

    /// The next message.
    pub(crate) async fn next(&mut self) -> Message {
        self.next_within(LIMIT).await
    }

    pub(crate) async fn next_within(&mut self, limit: Duration) -> Message {
        timeout(limit, self.socket.next()).await.expect("a message in time").unwrap().unwrap()
    }

    /// The first message, which says what session this is.
    pub(crate) async fn info(&mut self) -> SessionInfo {
        let Message::Text(text) = self.next().await else { panic!("no text first") };
        match ServerMessage::decode(text.as_bytes()).unwrap() {
            ServerMessage::SessionInfo(info) => info,
            other => panic!("{other:?}"),
        }
    }

    /// Reads binary messages until their payload holds `wanted`, and returns it all.
    pub(crate) async fn until(&mut self, wanted: &str) -> String {
        let mut seen: Vec<u8> = Vec::new();
        loop {
            if let Message::Binary(bytes) = self.next().await {
                // What is new, and as much before it as could complete it.
                let from = seen.len().saturating_sub(wanted.len());
                seen.extend_from_slice(&bytes);
                if seen[from..].windows(wanted.len()).any(|part| part == wanted.as_bytes()) {
                    return String::from_utf8_lossy(&seen).into_owned();
                }
            }
        }
    }

    /// Reads to the end.
    pub(crate) async fn all(mut self, tty: bool) -> Said {
        let mut said = Said::default();
        while let Some(message) = timeout(Duration::from_secs(60), self.socket.next()).await.expect("an end")
        {
            match message {
                Ok(Message::Text(text)) => {
                    let message = ServerMessage::decode(text.as_bytes()).unwrap();
                    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                    said.order.push(format!("text:{}", value["type"].as_str().unwrap()));
                    match message {
                        ServerMessage::SessionInfo(info) => said.info = Some(info),
                        ServerMessage::Exit(code) => said.exit_text = Some(code.exit_code),
                        _ => {}
                    }
                }
                Ok(Message::Binary(bytes)) if tty => {
                    said.order.push("terminal".into());
                    said.terminal.extend_from_slice(&bytes);
                }
                Ok(Message::Binary(bytes)) => {
                    let (name, to, payload): (_, Option<&mut Vec<u8>>, &[u8]) =
                        match FromServer::decode(&bytes).unwrap() {
                            FromServer::Stdout(payload) => ("stdout", Some(&mut said.stdout), payload),
                            FromServer::Stderr(payload) => ("stderr", Some(&mut said.stderr), payload),
                            FromServer::Exit(code) => {
                                said.exit_frame = Some(code);
                                ("exit", None, &[])
                            }
                        };
                    assert!(bytes.len() <= 65 << 10, "a frame of {} bytes", bytes.len());
                    if said.order.last().is_none_or(|last| last != name) {
                        said.order.push(name.into());
                    }
                    if let Some(to) = to {
                        to.extend_from_slice(payload);
                    }
                }
                Ok(Message::Close(close)) => {
                    said.order.push("close".into());
                    said.close = close;
                }
                Ok(_) => {}
                Err(error) => panic!("{error}; so far {said:?}"),
            }
        }
        said
    }
}
