//! The agent's API: types, errors and a client.
//!
//! An agent serves HTTP/JSON over a Unix socket (over TCP with mTLS once there are many hosts; the
//! client takes any byte stream, so nothing else changes). Three kinds of traffic:
//!
//! - plain requests that create, change, explain and destroy sprites, organizations and tokens, and those about
//!   checkpoints, some of which are answered by a stream of [`Progress`];
//! - [`watch`]: a snapshot followed by deltas, from which a gateway feeds its route table;
//! - [`lease`]: one long-lived channel for each holder, over which leases are asked for, granted,
//!   refused, revoked and given back.
//!
//! Durations on the wire are whole milliseconds and say so in their names.

mod checkpoint;
pub mod client;
mod error;
pub mod lease;
mod sprite;
pub mod watch;

pub use checkpoint::{Checkpoint, CreateCheckpoint, ForkSprite, MAX_COMMENT_BYTES, Progress, ProgressKind};
pub use error::{ApiError, ErrorBody};
pub use sprite::{
    Capabilities, ChangeSprite, Changed, CreateSprite, MintToken, MintedToken, Organization, PublicState,
    Reason, SleepDepth, SleepSprite, Sprite, SpriteConfig, TokenRecord, UrlAuth, UrlSettings, WhyAwake,
    WhyHolder,
};
