//! `/fs/watch`: tells a client over a WebSocket what happens to files.

use axum::{extract::Request, response::Response};
use frames::{FileEvent, FileEventKind, FileWatchMessage, FileWatchRequest};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;

use super::{
    error::ApiError,
    websocket::{self, Sink, Socket, Upgrade},
};
use crate::files::{Fault, Happening, Watch, What, blocking, place};

/// Paths of one subscription.
const MAX_PATHS: usize = 1_000;

pub(super) async fn open(mut request: Request) -> Result<Response, ApiError> {
    let upgrade = Upgrade::from_request(&mut request)?.ok_or_else(ApiError::upgrade_required)?;
    Ok(upgrade.accept(&[], serve))
}

async fn serve(mut socket: Socket) {
    // This client speaks first.
    if socket.release_head().await.is_err() {
        return;
    }
    let (mut sink, mut source, _) = socket.split();
    let mut watch: Option<Watch> = None;
    loop {
        let said = tokio::select! {
            message = source.next() => match message {
                Some(Ok(Message::Text(text))) => match FileWatchRequest::decode(text.as_bytes()) {
                    Ok(FileWatchRequest::Subscribe { paths, recursive, working_dir }) => {
                        // The new one replaces the old.
                        match subscribe(&paths, recursive, working_dir.as_deref()).await {
                            Ok((begun, paths)) => {
                                watch = Some(begun);
                                FileWatchMessage::Subscribed { paths }
                            }
                            Err(fault) => FileWatchMessage::Error { message: fault.to_string() },
                        }
                    }
                    Ok(FileWatchRequest::Other) => continue,
                    Err(error) => FileWatchMessage::Error { message: error.to_string() },
                },
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
            happening = next(watch.as_mut()) => match happening {
                Some(happening) => FileWatchMessage::Event(event(&happening)),
                None => return websocket::close(sink, source, 1011, "The watch can't go on").await,
            },
        };
        if say(&mut sink, &said).await.is_err() {
            return;
        }
        let lost = watch.as_mut().map_or(0, Watch::take_lost);
        if lost > 0 {
            let message = format!("{lost} events came too fast and are lost; look at the files again");
            if say(&mut sink, &FileWatchMessage::Error { message }).await.is_err() {
                return;
            }
        }
    }
}

async fn say(sink: &mut Sink, message: &FileWatchMessage) -> Result<(), ()> {
    sink.send(Message::text(message.encode())).await.map_err(drop)
}

async fn next(watch: Option<&mut Watch>) -> Option<Happening> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

async fn subscribe(
    paths: &[String],
    recursive: bool,
    working_dir: Option<&str>,
) -> Result<(Watch, Vec<String>), Fault> {
    if paths.is_empty() || paths.len() > MAX_PATHS {
        return Err(Fault::invalid(format!("a subscription names 1 to {MAX_PATHS} paths"), None));
    }
    let places = paths.iter().map(|path| place(working_dir, path)).collect::<Result<Vec<_>, _>>()?;
    let shown = places.iter().map(|place| place.display().to_string()).collect();
    let watch = blocking(move || Watch::begin(&places, recursive)).await?;
    Ok((watch, shown))
}

fn event(happening: &Happening) -> FileEvent {
    // What is gone has no size.
    let metadata = happening.path.symlink_metadata().ok();
    FileEvent {
        path: happening.path.display().to_string(),
        event: match happening.what {
            What::Created => FileEventKind::Create,
            What::Written => FileEventKind::Write,
            What::Removed => FileEventKind::Remove,
            What::Renamed => FileEventKind::Rename,
            What::ModeChanged => FileEventKind::Chmod,
        },
        timestamp: happening.at.to_string(),
        size: metadata.as_ref().map_or(0, std::fs::Metadata::len),
        is_dir: metadata.is_some_and(|metadata| metadata.is_dir()),
    }
}
