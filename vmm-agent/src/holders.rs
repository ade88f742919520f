//! The open lease channels: who is connected, and how to reach them.
//!
//! A holder is reached by its id, whatever connection it has at the moment. A channel whose holder
//! does not keep up is closed: the holder reconnects and re-asserts what it holds, which is cheaper
//! and safer than an unbounded queue.

use std::{collections::HashMap, convert::Infallible, time::Duration};

use agent_api::lease::GrantorMessage;
use ids::HolderId;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::warn;

/// Messages that may wait for a slow holder. A wake storm grants thousands of leases at once.
const QUEUE: usize = 65_536;
/// How long a new channel waits for an older one of the same holder to tell the sprites that it is gone.
const HAND_OVER: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    channels: Mutex<HashMap<HolderId, Channel>>,
}

#[derive(Debug)]
struct Channel {
    messages: mpsc::Sender<GrantorMessage>,
    /// Resolves when the channel's session is over.
    ended: oneshot::Receiver<Infallible>,
}

/// A registered channel. Dropping it says that the session is over, so it is dropped last.
#[derive(Debug)]
pub(crate) struct Registration {
    _session: oneshot::Sender<Infallible>,
}

impl Holders {
    /// Registers a channel of this holder. An older channel of the same holder ends first, so that
    /// "the holder is lost" can't be heard after what the new channel re-asserts.
    pub(crate) async fn register(&self, holder: HolderId) -> (Registration, mpsc::Receiver<GrantorMessage>) {
        let older = self.channels.lock().remove(&holder);
        if let Some(Channel { messages, ended }) = older {
            drop(messages);
            if timeout(HAND_OVER, ended).await.is_err() {
                warn!(%holder, "An older lease channel of this holder does not end");
            }
        }
        let (messages, receiver) = mpsc::channel(QUEUE);
        let (session, ended) = oneshot::channel();
        self.channels.lock().insert(holder, Channel { messages, ended });
        (Registration { _session: session }, receiver)
    }

    /// Forgets a channel that has closed, unless a newer one has taken its place.
    pub(crate) fn forget_closed(&self, holder: &HolderId) {
        let mut channels = self.channels.lock();
        if channels.get(holder).is_some_and(|channel| channel.messages.is_closed()) {
            channels.remove(holder);
        }
    }

    /// Sends to a holder if it is connected. If it is not, it learns what it must when it re-asserts.
    pub(crate) fn send(&self, holder: &HolderId, message: GrantorMessage) {
        let mut channels = self.channels.lock();
        let Some(channel) = channels.get(holder) else { return };
        match channel.messages.try_send(message) {
            Ok(()) => {}
            // The session is ending by itself.
            Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                warn!(%holder, "Holder does not read its lease channel; closing it");
                channels.remove(holder);
            }
        }
    }

    pub(crate) fn connected(&self) -> usize {
        self.channels.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_newer_channel_waits_for_the_end_of_an_older_one() {
        let holders = std::sync::Arc::new(Holders::default());
        let id: HolderId = "g1".parse().unwrap();
        let (old, mut old_messages) = holders.register(id.clone()).await;
        let newer = tokio::spawn({
            let (holders, id) = (holders.clone(), id.clone());
            async move { holders.register(id).await }
        });
        assert!(old_messages.recv().await.is_none(), "the old channel is told to end");
        assert!(!newer.is_finished());
        drop((old, old_messages));
        let (_new, mut new_messages) = newer.await.unwrap();
        holders.forget_closed(&id);
        holders.send(&id, GrantorMessage::Pong);
        assert_eq!(new_messages.recv().await, Some(GrantorMessage::Pong));
    }
}
