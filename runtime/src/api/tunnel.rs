//! `/proxy`: one TCP connection inside the sprite over one WebSocket.
//!
//! The client says in a text message where it wants to go, and is answered in one; from then on binary
//! messages are bytes. Most clients know only one end: the WebSocket's. One that says `half_close` also hears,
//! and may say, that only one direction has ended.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::{Request, State},
    response::Response,
};
use bytes::BytesMut;
use frames::{TunnelMessage, TunnelReply, TunnelRequest};
use futures_util::{SinkExt as _, StreamExt as _};
use ids::Port;
use runtime_api::Target;
use tokio::{
    io::AsyncWriteExt as _,
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{sleep, timeout},
};
use tokio_tungstenite::tungstenite::Message;
use tracing::debug;

use super::{
    error::ApiError,
    websocket::{self, Sink, Socket, Source, Upgrade},
};
use crate::{
    dial::{Reached, reach},
    hosts,
    state::Runtime,
};

/// How long a client may take to say where it wants to go.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// How long connecting may take: clients give up after 10 s.
const CONNECT_LIMIT: Duration = Duration::from_secs(8);
/// In a sprite that has just booted, what the client wants may still be starting.
const BOOTING: Duration = Duration::from_secs(15);
/// Clients that are not ours begin to listen a moment after the reply, and lose what a server says at once.
const QUIET: Duration = Duration::from_millis(10);
/// How much is read from the target at a time, and so a message's size.
const BLOCK_BYTES: usize = 64 * 1024;

pub(super) async fn open(
    State(runtime): State<Arc<Runtime>>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let upgrade = Upgrade::from_request(&mut request)?.ok_or_else(ApiError::upgrade_required)?;
    Ok(upgrade.accept(&[], move |socket| serve(runtime, socket)))
}

async fn serve(runtime: Arc<Runtime>, mut socket: Socket) {
    // This client speaks first.
    if socket.release_head().await.is_err() {
        return;
    }
    let (mut sink, mut source, _) = socket.split();
    let asked = match timeout(REQUEST_LIMIT, first(&mut source)).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(reason)) => return websocket::close(sink, source, 1003, &reason).await,
        Err(_) => return websocket::close(sink, source, 1008, "No initialization message came").await,
    };
    let name = format!("{}:{}", asked.host, asked.port);
    let connected = match timeout(CONNECT_LIMIT, connect(&runtime, &asked)).await {
        Ok(connected) => connected,
        Err(_) => Err("it does not answer".to_owned()),
    };
    let reply = match &connected {
        Ok(target) => TunnelReply::connected(
            target.peer_addr().map_or_else(|_| name.clone(), |address| address.to_string()),
        ),
        Err(reason) => TunnelReply::failed(&name, format!("Failed to connect to {name}: {reason}")),
    };
    let told = sink.send(Message::text(reply.encode())).await;
    match connected {
        Err(reason) => {
            let reason = format!("Failed to connect to target: {reason}");
            websocket::close(sink, source, 1011, &reason).await;
        }
        Ok(_) if told.is_err() => {}
        Ok(target) => {
            if !asked.half_close {
                sleep(QUIET).await;
            }
            relay(sink, source, target, asked.half_close).await;
        }
    }
}

/// The client's first message, or why it is none.
async fn first(source: &mut Source) -> Result<TunnelRequest, String> {
    loop {
        match source.next().await {
            Some(Ok(Message::Text(text))) => {
                return TunnelRequest::decode(text.as_bytes()).map_err(|error| error.to_string());
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(_) | Err(_)) | None => return Err("Expected JSON initialization message".into()),
        }
    }
}

async fn connect(runtime: &Runtime, asked: &TunnelRequest) -> Result<TcpStream, String> {
    let port = Port::try_from(asked.port).map_err(|error| error.to_string())?;
    let address = hosts::address(&asked.host, runtime.identity().map(|(name, ..)| name).as_deref()).await?;
    if address.is_loopback_name() {
        let wait = if runtime.up_for() < BOOTING { CONNECT_LIMIT / 2 } else { Duration::ZERO };
        return match reach(runtime, Target::Port(port), wait).await {
            Ok(Reached::Program(target, _)) => Ok(target),
            Ok(Reached::Api) => Err("it is no program".into()),
            Err(refusal) => Err(refusal.message),
        };
    }
    connect_to(address.ip(), port).await.map_err(|error| error.to_string())
}

async fn connect_to(address: IpAddr, port: Port) -> io::Result<TcpStream> {
    let target = TcpStream::connect(SocketAddr::new(address, port.get())).await?;
    target.set_nodelay(true)?;
    Ok(target)
}

/// How one direction ended.
#[derive(Debug)]
enum End {
    /// In good order; the other direction may go on.
    Half,
    /// The client has closed the WebSocket, and wants no more.
    Closed,
    /// The client is gone.
    Lost,
    /// The target is.
    Broken(io::Error),
}

/// Relays until both directions have ended, or as soon as one has if the client knows no halves. A tunnel may
/// be silent for ever: who is gone without a word is found by TCP, at the edge.
async fn relay(mut sink: Sink, mut source: Source, target: TcpStream, half_close: bool) {
    let (mut reader, mut writer) = target.into_split();
    let (mut up, mut down) = (None, None);
    {
        let upwards = upwards(&mut source, &mut writer, half_close);
        let downwards = downwards(&mut sink, &mut reader, half_close);
        tokio::pin!(upwards, downwards);
        loop {
            tokio::select! {
                end = &mut upwards, if up.is_none() => up = Some(end),
                end = &mut downwards, if down.is_none() => down = Some(end),
            }
            let both = up.is_some() && down.is_some();
            let whole = |end: &Option<End>| end.as_ref().is_some_and(|end| !matches!(end, End::Half));
            if both || whole(&up) || whole(&down) || (!half_close && down.is_some()) {
                break;
            }
        }
    }
    match (up, down) {
        (Some(End::Broken(error)), _) | (_, Some(End::Broken(error))) => {
            websocket::close(sink, source, 1011, &format!("The target broke the connection: {error}")).await;
        }
        (Some(End::Lost), _) | (_, Some(End::Lost)) => {
            debug!("The client of a tunnel is gone");
            reset(reader, writer);
        }
        (Some(End::Closed), _) | (_, Some(End::Closed)) => {
            // tungstenite has answered the Close; it goes out with this.
            let _gone = timeout(Duration::from_secs(1), sink.close()).await;
        }
        (_, Some(End::Half) | None) => websocket::close(sink, source, 1000, "").await,
    }
}

/// From the client to the target.
async fn upwards(source: &mut Source, writer: &mut OwnedWriteHalf, half_close: bool) -> End {
    loop {
        match source.next().await {
            Some(Ok(Message::Binary(bytes))) => {
                if let Err(error) = writer.write_all(&bytes).await {
                    return End::Broken(error);
                }
            }
            Some(Ok(Message::Text(text)))
                if half_close && TunnelMessage::decode(text.as_bytes()) == Ok(TunnelMessage::Eof) =>
            {
                // A target that has gone meanwhile is found by the other direction.
                let _ended = writer.shutdown().await;
                return End::Half;
            }
            Some(Ok(Message::Close(_))) => return End::Closed,
            // Text is for later versions to say more.
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return End::Lost,
        }
    }
}

/// From the target to the client.
async fn downwards(sink: &mut Sink, reader: &mut OwnedReadHalf, half_close: bool) -> End {
    let mut block = BytesMut::new();
    loop {
        // Who waits holds no room for what has not come.
        if let Err(error) = reader.readable().await {
            return End::Broken(error);
        }
        block.reserve(BLOCK_BYTES);
        match reader.try_read_buf(&mut block) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return End::Broken(error),
        }
        if sink.send(Message::binary(block.split().freeze())).await.is_err() {
            return End::Lost;
        }
        if block.capacity() < BLOCK_BYTES {
            block = BytesMut::new();
        }
    }
    if half_close && sink.send(Message::text(TunnelMessage::Eof.encode())).await.is_err() {
        return End::Lost;
    }
    End::Half
}

/// Ends the connection to the target so that it can't take what it got for all there was.
fn reset(reader: OwnedReadHalf, writer: OwnedWriteHalf) {
    if let Ok(target) = reader.reunite(writer) {
        // One that has ended by itself is as good.
        let _reset = target.set_zero_linger();
    }
}
