//! `/ports/watch`: what listens in the sprite, and what begins and stops to.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::{Request, State},
    response::Response,
};
use bytes::Bytes;
use frames::{PortNotice, PortWatchMessage};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::time::{Instant, sleep_until};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{
    error::ApiError,
    websocket::{Sink, Socket, Source, Upgrade, close, refusal},
};
use crate::{ports::to_notice, state::Runtime};

/// After so much silence a ping goes out, so that a client that is gone is noticed. Text that is no event would
/// be taken for one.
const SILENCE: Duration = Duration::from_secs(15);

pub(super) async fn watch(
    State(runtime): State<Arc<Runtime>>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let upgrade = Upgrade::from_request(&mut request)?.ok_or_else(ApiError::upgrade_required)?;
    Ok(upgrade.accept(&[], move |socket| serve(runtime, socket)))
}

async fn serve(runtime: Arc<Runtime>, socket: Socket) {
    let (mut sink, mut source, _) = socket.split();
    let refused = {
        let (telling, listening) = (tell(&runtime, &mut sink), listen(&mut source));
        tokio::pin!(telling, listening);
        tokio::select! {
            // It only ends when the client can't be written to.
            _gone = &mut telling => None,
            refused = &mut listening => refused,
        }
    };
    if let Some((code, reason)) = refused {
        close(sink, source, code, &reason).await;
    }
}

async fn tell(runtime: &Runtime, sink: &mut Sink) -> Result<(), Error> {
    let mut changes = runtime.ports.watch();
    let mut told: BTreeMap<_, PortNotice> = BTreeMap::new();
    let mut list = Vec::new();
    for (listener, pid) in runtime.ports.refresh() {
        let notice = to_notice(listener, pid);
        told.insert(listener, notice.clone());
        list.push(notice);
    }
    sink.send(text(&PortWatchMessage::PortList { ports: list })).await?;
    let mut spoken = Instant::now();
    loop {
        tokio::select! {
            () = changes.changed() => {
                let now = runtime.ports.known();
                let gone: Vec<_> =
                    told.keys().filter(|one| now.iter().all(|(listener, _)| listener != *one)).copied().collect();
                for notice in gone.iter().filter_map(|listener| told.remove(listener)) {
                    sink.send(text(&PortWatchMessage::PortClosed(notice))).await?;
                }
                for (listener, pid) in now {
                    if let Entry::Vacant(untold) = told.entry(listener) {
                        let notice = to_notice(listener, pid);
                        untold.insert(notice.clone());
                        sink.send(text(&PortWatchMessage::PortOpened(notice))).await?;
                    }
                }
            }
            () = sleep_until(spoken + SILENCE) => sink.send(Message::Ping(Bytes::new())).await?,
        }
        spoken = Instant::now();
    }
}

fn text(message: &PortWatchMessage) -> Message {
    Message::Text(message.encode().into())
}

/// A client has nothing to say here; resolves when it leaves, or with why it must.
async fn listen(source: &mut Source) -> Option<(u16, String)> {
    loop {
        match source.next().await? {
            Ok(message) if message.is_close() => return None,
            Ok(_) => {}
            Err(error) => return refusal(&error),
        }
    }
}
