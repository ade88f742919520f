//! WebSockets to the API.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, client::IntoClientRequest, protocol::WebSocketConfig},
};

pub(crate) use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

use super::{Api, Stream, api};
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

/// Opens one. What refuses it is told as a call's refusal is.
pub(crate) async fn open(api: &Api, url: &str) -> Result<(Socket, HeaderMap), Error> {
    let began = Instant::now();
    let (stream, _) = api.connect(url).await?;
    let address = url.replacen("http", "ws", 1);
    let mut request = address
        .into_client_request()
        .map_err(|error| Error::said(format!("{url} is no usable URL: {error}")))?;
    let bearer = format!("Bearer {}", api.token().expose());
    let mut bearer = http::HeaderValue::try_from(bearer)
        .map_err(|_| Error::said("the token has characters that can't be part of one"))?;
    bearer.set_sensitive(true);
    request.headers_mut().insert(http::header::AUTHORIZATION, bearer);
    request.headers_mut().insert(
        http::header::USER_AGENT,
        http::HeaderValue::from_static(concat!("sprite-cli/", env!("CARGO_PKG_VERSION"))),
    );
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    let upgrade = client_async_with_config(request, stream, Some(config));
    let unreachable = |reason| Error::Unreachable { api: api.base.clone(), reason };
    let opened = match timeout(UPGRADE_TIMEOUT, upgrade).await {
        Err(_) => return Err(unreachable(format!("no answer within {} s", UPGRADE_TIMEOUT.as_secs()))),
        Ok(Ok((socket, answer))) => Ok((socket, answer.headers().clone())),
        Ok(Err(tungstenite::Error::Http(answer))) => {
            let retry_after = answer
                .headers()
                .get(http::header::RETRY_AFTER)
                .and_then(|seconds| seconds.to_str().ok()?.parse().ok());
            let body = answer.body().as_deref().unwrap_or_default();
            Err(api::refused(answer.status().as_u16(), retry_after, body))
        }
        Ok(Err(error)) => Err(unreachable(root(&error))),
    };
    api.trace(|| {
        let result = opened.as_ref().map_or_else(ToString::to_string, |_| "open".to_owned());
        format!("WebSocket {url}: {result} after {} ms", began.elapsed().as_millis())
    });
    opened
}

/// Opens one, trying for as long as the budget lasts what may pass by itself: nothing was done yet, so
/// nothing is done twice. `on_trouble` hears each reason once.
pub(crate) async fn open_patiently(
    api: &Api,
    url: impl AsRef<str>,
    budget: Duration,
    mut on_trouble: impl FnMut(&Error),
) -> Result<(Socket, HeaderMap), Error> {
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
