//! WebSockets to the API.

use std::time::Duration;

use tokio::{
    io::AsyncWriteExt,
    time::{Instant, sleep},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};

pub(crate) use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

use super::{Api, Stream, chunks::Download};
use crate::error::{Error, root};

/// An upgrade is held while a sprite wakes.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(90);
/// Larger than anything that a server has a reason to send in one piece.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// What one read asks of the kernel.
const READ_BUFFER_BYTES: usize = 64 << 10;
/// The first pause before an upgrade is tried again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// An open WebSocket.
pub(crate) type Socket = WebSocketStream<Stream>;

/// Opens one. What refuses it is told as a call's refusal is: the handshake is our own, as a library's
/// gives up at the head of a refusal, and its body says why.
pub(crate) async fn open(api: &Api, url: &str) -> Result<Socket, Error> {
    let began = Instant::now();
    let opened = upgrade(api, url).await;
    api.trace(|| {
        let result = opened.as_ref().map_or_else(ToString::to_string, |_| "open".to_owned());
        format!("WebSocket {url}: {result} after {} ms", began.elapsed().as_millis())
    });
    opened
}

async fn upgrade(api: &Api, url: &str) -> Result<Socket, Error> {
    let (mut stream, endpoint) = api.connect(url).await?;
    let target = url.parse::<http::Uri>().ok();
    let target = target.as_ref().and_then(|uri| uri.path_and_query()).map_or("/", |target| target.as_str());
    let token = api.token().expose();
    if token.bytes().any(|byte| byte.is_ascii_control()) {
        return Err(Error::said("the token has characters that can't be part of one"));
    }
    let key = generate_key();
    let head = format!(
        "GET {target} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\nUser-Agent: sprite-cli/{}\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n",
        endpoint.authority(),
        env!("CARGO_PKG_VERSION"),
    );
    let unreachable = |reason: String| Error::Unreachable { api: api.base.clone(), reason };
    let sent = async {
        stream.write_all(head.as_bytes()).await?;
        stream.flush().await
    };
    sent.await.map_err(|error| unreachable(root(&error)))?;
    let mut answer = Download::new(stream);
    let head = answer.any_head(UPGRADE_TIMEOUT).await.map_err(|error| unreachable(error.to_string()))?;
    if head.status != 101 {
        return Err(answer.refusal(&head).await?);
    }
    if head.accept_key.as_deref() != Some(&derive_accept_key(key.as_bytes())) {
        return Err(Error::said("the server's answer to the WebSocket handshake is wrong"));
    }
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    let (stream, read) = answer.into_parts();
    Ok(WebSocketStream::from_partially_read(stream, read, Role::Client, Some(config)).await)
}

/// Opens one, trying for as long as the budget lasts what may pass by itself: nothing was done yet, so
/// nothing is done twice. `on_trouble` hears each reason once.
pub(crate) async fn open_patiently(
    api: &Api,
    url: impl AsRef<str>,
    budget: Duration,
    mut on_trouble: impl FnMut(&Error),
) -> Result<Socket, Error> {
    let deadline = Instant::now() + budget;
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match Box::pin(open(api, url.as_ref())).await {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        let wanted = match &error {
            Error::Refused { retry_after: Some(seconds), .. } => Duration::from_secs(*seconds).max(pause),
            _ => pause,
        };
        if !error.is_passing() || Instant::now() + wanted > deadline {
            return Err(error);
        }
        on_trouble(&error);
        sleep(wanted).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
