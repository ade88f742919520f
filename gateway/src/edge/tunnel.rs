//! A connection that speaks another protocol now, a WebSocket mostly: bytes both ways, and nothing else kept.
//!
//! Pingora can do this too, but keeps 64 KiB and more for each idle tunnel, ends it when one side closes
//! its half, and loses it when the sprite's 101 comes before the end of the (empty) request body has gone
//! through its pipes: one upgrade in sixty, on a busy machine.

use tokio::{io::AsyncWriteExt, time::timeout};
use tracing::debug;

use super::{
    admit::Forward,
    relay::{LAST_WORDS, Moved, relay},
    tracked::Tracked,
};
use crate::upstream::Direct;

/// Both ends.
pub(super) struct Tunnel {
    pub(super) client: Box<Tracked>,
    pub(super) sprite: Direct,
    /// With the lease that keeps the sprite awake. A watch has none: it sees its sprite fall asleep, and hears
    /// from it again when somebody else has woken it.
    pub(super) forward: Option<Box<Forward>>,
    pub(super) request_id: String,
    pub(super) moved: Moved,
}

impl Tunnel {
    /// Relays until both sides have ended.
    pub(super) async fn run(self: Box<Self>) {
        let Self { mut client, mut sprite, forward, request_id, mut moved } = *self;
        client.admit_all();
        let ended = relay(&mut client, &mut sprite, &mut moved).await;
        debug!(
            request_id,
            to_sprite = moved.to_sprite,
            to_client = moved.to_client,
            ?ended,
            "A tunnel ended"
        );
        drop(forward);
        // The peer may be gone already; either way it is over.
        let _closed = timeout(LAST_WORDS, client.shutdown()).await;
    }
}
