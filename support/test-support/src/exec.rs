//! WebSockets of the API, and commands over them.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest, http::HeaderValue},
};

use crate::World;

/// How long a message may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// An open WebSocket.
pub type Socket = WebSocketStream<TcpStream>;

impl World {
    /// Opens a WebSocket of the API, on a connection of its own.
    ///
    /// # Errors
    /// It is refused.
    pub async fn websocket(&self, path: &str) -> anyhow::Result<Socket> {
        let mut request = format!("ws://127.0.0.1:{}{path}", self.http).into_client_request()?;
        let token = HeaderValue::try_from(format!("Bearer {}", self.token))?;
        request.headers_mut().insert("authorization", token);
        let tcp = TcpStream::connect(("127.0.0.1", self.http)).await?;
        tcp.set_nodelay(true)?;
        Ok(client_async(request, tcp).await?.0)
    }

    /// Runs a shell script in the sprite. `more` is more of the query, such as `&tty=true`.
    ///
    /// # Errors
    /// It is refused.
    pub async fn exec(&self, sprite: &str, script: &str, more: &str) -> anyhow::Result<Socket> {
        let script: String = script.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!("/v1/sprites/{sprite}/exec?cmd=sh&cmd=-c&cmd={script}&dir=/{more}");
        self.websocket(&path).await
    }

    /// Runs a shell script in a sprite and returns what it wrote.
    ///
    /// # Errors
    /// It can't be run, or fails.
    pub async fn exec_text(&self, sprite: &str, script: &str) -> anyhow::Result<String> {
        let mut socket = self.exec(sprite, script, "").await?;
        let mut output = Vec::new();
        loop {
            match timeout(PATIENCE, socket.next()).await?.context("the socket ended")?? {
                // The first byte says which stream it is.
                Message::Binary(frame) => output.extend_from_slice(frame.get(1..).unwrap_or_default()),
                Message::Text(text) => {
                    let message: Value = serde_json::from_str(&text)?;
                    if message["type"] == "exit" {
                        let output = String::from_utf8(output)?;
                        ensure!(message["exit_code"] == 0, "{script:?} ended with {text}: {output}");
                        return Ok(output);
                    }
                }
                _ => {}
            }
        }
    }
}

/// The next text message's JSON.
///
/// # Errors
/// None comes in time, or the socket ends.
pub async fn next_text(socket: &mut Socket) -> anyhow::Result<Value> {
    loop {
        let message = timeout(PATIENCE, socket.next()).await?.context("the socket ended")??;
        if let Message::Text(text) = message {
            return Ok(serde_json::from_str(&text)?);
        }
    }
}

/// Reads an exec to its end; returns its exit code and how many bytes of output came.
///
/// # Errors
/// It ends without an exit code.
pub async fn exit_of(mut socket: Socket) -> anyhow::Result<(i64, u64)> {
    let mut bytes = 0;
    loop {
        match timeout(PATIENCE, socket.next()).await?.context("the socket ended")?? {
            // The first byte says which stream it is.
            Message::Binary(frame) => bytes += frame.len().saturating_sub(1) as u64,
            Message::Text(text) => {
                let message: Value = serde_json::from_str(&text)?;
                if message["type"] == "exit" {
                    return Ok((message["exit_code"].as_i64().context("an exit code")?, bytes));
                }
            }
            _ => {}
        }
    }
}
