//! Bytes between a local connection and a tunnel, both ways, with the back-pressure of either.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bytes::BytesMut;
use frames::TunnelMessage;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, interval_at},
};
use tokio_tungstenite::tungstenite::{self, protocol::CloseFrame};

use crate::{
    error::root,
    net::ws::{CloseCode, Message, Socket},
};

/// What one message holds at most.
const MESSAGE_BYTES: usize = 64 << 10;
/// Keeps what is on the way from forgetting a silent connection.
const PING: Duration = Duration::from_secs(15);

/// How long a server that was told of our end may be silent. One that knows no halves ignores what it was
/// told, and would keep the connection for as long as the target does.
const HALF: Duration = Duration::from_secs(120);

/// What the end of the target's direction means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TheirEnd {
    /// We may still send.
    Half,
    /// The end of all: nobody would tell us that we have no more to send.
    Whole,
}

/// How a relay ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Everything was carried.
    Whole,
    /// Something may be missing.
    Broken(String),
}

/// Relays until the other side ends, and gives the local halves back.
pub(crate) async fn relay<R, W>(
    socket: Socket,
    mut from: R,
    mut to: W,
    their_end: TheirEnd,
) -> (Ended, (R, W))
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (mut sink, mut stream) = socket.split();
    let ended = {
        let we_ended = AtomicBool::new(false);
        let down = down(&mut stream, &mut to, their_end, &we_ended);
        let up = up(&mut sink, &mut from);
        tokio::pin!(down, up);
        tokio::select! {
            ended = &mut down => ended,
            sent = &mut up => match sent {
                // The local side has said everything; what comes back still comes.
                Ok(()) => {
                    we_ended.store(true, Ordering::Relaxed);
                    down.await
                }
                Err(error) => match tokio::time::timeout(Duration::from_millis(100), &mut down).await {
                    // The reason is in what the server said before it left.
                    Ok(ended) => ended,
                    Err(_) => Ended::Broken(error),
                },
            },
        }
    };
    (ended, (from, to))
}

async fn down(
    stream: &mut (impl Stream<Item = Result<Message, tungstenite::Error>> + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    their_end: TheirEnd,
    we_ended: &AtomicBool,
) -> Ended {
    let mut silent = interval_at(Instant::now() + HALF, HALF);
    let mut ended = false;
    loop {
        let message = tokio::select! {
            message = stream.next() => message,
            _ = silent.tick() => {
                if we_ended.load(Ordering::Relaxed) && !ended {
                    return Ended::Broken(format!("no answer for {} s after our end", HALF.as_secs()));
                }
                continue;
            }
        };
        silent.reset();
        match message {
            Some(Ok(Message::Binary(bytes))) => {
                let written = async {
                    to.write_all(&bytes).await?;
                    to.flush().await
                };
                if let Err(error) = written.await {
                    return Ended::Broken(format!("the local side left: {error}"));
                }
            }
            Some(Ok(Message::Close(frame))) => {
                return match frame {
                    Some(CloseFrame { code: CloseCode::Normal, .. }) => {
                        // Who waits for the end gets it; who has left doesn't need it.
                        let _ = to.shutdown().await;
                        Ended::Whole
                    }
                    Some(frame) if frame.reason.is_empty() => {
                        Ended::Broken(format!("closed with code {}", frame.code))
                    }
                    Some(frame) => Ended::Broken(frame.reason.to_string()),
                    None => Ended::Broken("closed without a reason".to_owned()),
                };
            }
            Some(Ok(Message::Text(text)))
                if TunnelMessage::decode(text.as_bytes()) == Ok(TunnelMessage::Eof) =>
            {
                // As below.
                let _ = to.shutdown().await;
                ended = true;
                if their_end == TheirEnd::Whole {
                    return Ended::Whole;
                }
            }
            Some(Ok(Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Err(error)) => return Ended::Broken(root(&error)),
            None => return Ended::Broken("cut".to_owned()),
        }
    }
}

async fn up(
    sink: &mut (impl Sink<Message, Error = tungstenite::Error> + Unpin),
    from: &mut (impl AsyncRead + Unpin),
) -> Result<(), String> {
    let mut pings = interval_at(Instant::now() + PING, PING);
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(MESSAGE_BYTES);
        let message = tokio::select! {
            read = from.read_buf(&mut buffer) => match read {
                Ok(0) => {
                    return sink.send(Message::text(TunnelMessage::Eof.encode())).await.map_err(|error| root(&error));
                }
                Ok(_) => Message::Binary(buffer.split().freeze()),
                Err(error) => return Err(format!("the local side broke: {error}")),
            },
            _ = pings.tick() => Message::Ping(bytes::Bytes::new()),
        };
        sink.send(message).await.map_err(|error| root(&error))?;
    }
}
