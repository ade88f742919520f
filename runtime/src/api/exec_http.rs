//! `POST /exec`: a command whose output is the answer's body.
//!
//! Frames have no lengths: a frame's border is the border of an HTTP chunk. Clients take each piece that their
//! HTTP library hands them for one frame, and libraries join what arrives together. So between frames of two
//! streams, and before the last one, nothing is sent for a moment.

use std::{convert::Infallible, pin::Pin, sync::Arc, time::Duration};

use axum::{
    body::{Body, BodyDataStream},
    extract::{Request, State},
    http::header,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use frames::{ExecQuery, FromServer};
use futures_util::{StreamExt as _, stream};
use tokio::time::{Instant, sleep_until};

use super::{error::ApiError, exec::command};
use crate::{
    sessions::{Attachment, Next, Session},
    state::Runtime,
};

/// The pause that keeps frames apart. At 5 ms clients were seen to read them one by one, at 1 ms not always.
const QUIET: Duration = Duration::from_millis(10);

pub(super) async fn post(
    State(runtime): State<Arc<Runtime>>,
    request: Request,
) -> Result<Response, ApiError> {
    let query = request.uri().query().unwrap_or_default();
    let query = ExecQuery::decode(query).map_err(|error| ApiError::bad_request(error.to_string()))?;
    for (name, given) in [
        ("tty", query.tty),
        ("id", query.session.is_some()),
        ("detachable", query.detachable),
        ("cc", query.control_mode),
    ] {
        if given {
            let message =
                format!("{name} needs a WebSocket; over POST a command has neither terminal nor session");
            return Err(ApiError::bad_request(message));
        }
    }
    let command = command(&runtime, query)?;
    // Without its client it has nothing to run for.
    let attachment = runtime.sessions.start(&command, Some(Duration::ZERO))?;
    let body = command.stdin.then(|| request.into_body().into_data_stream());
    let input = body.map(|body| Box::pin(carry(Arc::clone(attachment.session()), body)) as Input);
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    Ok((headers, Body::from_stream(frames_of(attachment, input))).into_response())
}

/// Carries the request's body to the command.
type Input = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Answer {
    attachment: Attachment,
    /// Goes on while output is waited for, until it has ended.
    input: Option<Input>,
    /// When the last frame was handed over.
    last: Option<Instant>,
    over: bool,
}

fn frames_of(
    attachment: Attachment,
    input: Option<Input>,
) -> impl futures_util::Stream<Item = Result<Bytes, Infallible>> {
    let answer = Answer { attachment, input, last: None, over: false };
    stream::unfold(answer, |mut answer| async move {
        let frame = answer.next().await?;
        Some((Ok(frame), answer))
    })
}

impl Answer {
    /// The next frame, not before it is clear of the last one.
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        let next = loop {
            let Some(input) = &mut self.input else { break self.attachment.next().await };
            tokio::select! {
                next = self.attachment.next() => break next,
                () = input => self.input = None,
            }
        };
        let (frame, count) = match next {
            Next::Output(chunk, count) => (chunk.frame().clone(), count),
            Next::Ended(code) => {
                self.over = true;
                (FromServer::Exit(code).encode().into(), 0)
            }
            // The process waits for its only reader; but others may have attached, and did not.
            Next::Lost => return None,
        };
        if let Some(last) = self.last {
            sleep_until(last + QUIET).await;
        }
        self.attachment.sent(count);
        self.last = Some(Instant::now());
        Some(frame)
    }
}

async fn carry(session: Arc<Session>, mut body: BodyDataStream) {
    // A client that breaks off has no more to say.
    while let Some(Ok(bytes)) = body.next().await {
        session.write(bytes).await;
    }
    session.end_input().await;
}
