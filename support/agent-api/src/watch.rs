//! The watch stream: `GET /v1/watch`, one [`WatchLine`] a line (NDJSON).
//!
//! It begins with everything there is (in no particular order), then [`WatchEvent::Synced`], then
//! every change in the order of its revision. A watcher that reconnects gets a new snapshot: what it
//! knows and does not hear of before `Synced` is gone.

use ids::{SpriteId, TokenId};
use serde::{Deserialize, Serialize};

use crate::{Organization, Sprite, TokenRecord};

/// How often a stream without changes sends a [`WatchEvent::Heartbeat`], in milliseconds. A watcher
/// that hears nothing for three of these should reconnect.
pub const HEARTBEAT_MS: u64 = 5_000;

/// One line of the stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WatchLine {
    /// Grows with every change; never goes back while the agent's state directory lives.
    pub revision: u64,
    /// What is new.
    #[serde(flatten)]
    pub event: WatchEvent,
}

/// What a line says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WatchEvent {
    /// A sprite is there, or has changed.
    Sprite {
        /// As it is now.
        sprite: Box<Sprite>,
    },
    /// A sprite was destroyed.
    SpriteGone {
        /// Which.
        id: SpriteId,
    },
    /// An organization is there.
    Organization {
        /// Which.
        organization: Organization,
    },
    /// A token is valid.
    Token {
        /// Which.
        token: TokenRecord,
    },
    /// A token is no longer valid.
    TokenGone {
        /// Which.
        id: TokenId,
    },
    /// The snapshot is complete.
    Synced,
    /// Nothing has changed; the stream lives.
    Heartbeat,
}
